"""What weights in few bits do to Hugging Face's tiny random models: logits, loss, tokens.

  python tests/parity/test_few_bits.py      prints the table of docs/scale.md
"""

import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import hf_folders  # noqa: E402  (beside the test folders)

from prompt_tuning.checkpoints import hf, loading  # noqa: E402
from prompt_tuning.run_config import ModelConfig  # noqa: E402

pytestmark = pytest.mark.parity

# FROZEN_DTYPE -> the most that a logit may be off, as a share of the largest; the loss, in nats a
# token; the least share of tokens whose likeliest successor stays. About half as much again as was
# found: the weights are random, so there is little room between the candidates.
BOUNDS = {"float32": (1e-5, 1e-5, 1.0), "bfloat16": (0.14, 0.005, 0.97),
          "int8": (0.19, 0.01, 0.92), "int8/4": (0.2, 0.013, 0.92),
          "int4/4": (1.3, 0.14, 0.4), "int4": (1.1, 0.11, 0.4)}


def log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """`[B, U]`, in float64."""
  logits = logits.astype(np.float64)
  logits -= logits.max(-1, keepdims=True)
  found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.take_along_axis(found, targets[..., None], -1)[..., 0]


def deviations(version: str, frozen_dtype: str) -> tuple[float, float, float]:
  """Against the float32 model that Hugging Face ran: as BOUNDS has them."""
  golden = hf_folders.golden(version)
  with tempfile.TemporaryDirectory() as folder:
    path = hf_folders.save_golden(pathlib.Path(folder), version, golden)
    reader = hf.HFReader(path)
    config = ModelConfig(backbone=reader.config, vocabulary="bytes", initial_checkpoint_path=path,
                         frozen_dtype=frozen_dtype)
    # As `load_backbone`, without the vocabulary: there is none of 37 pieces.
    params = {"backbone": loading.restore(reader, config.backbone_shapes())}
  logits = np.asarray(jax.jit(lambda params, *tokens: config.module().apply(
    {"params": params}, *tokens, enable_dropout=False))(params, golden["inputs"],
                                                        golden["targets"]))
  wanted = golden["logits"]
  # What each step is asked for: the token after the one that it reads.
  targets = np.concatenate([golden["targets"][:, 1:], np.ones_like(golden["targets"][:, :1])], 1)
  return (float(np.abs(logits - wanted).max() / np.abs(wanted).max()),
          float(abs((log_likelihood(logits, targets) - log_likelihood(wanted, targets)).mean())),
          float((logits.argmax(-1) == wanted.argmax(-1)).mean()))


@pytest.mark.parametrize("version", hf_folders.VERSIONS)
@pytest.mark.parametrize("frozen_dtype", BOUNDS)
def test_how_far_few_bits_are_from_hugging_face(version, frozen_dtype):
  logits, loss, same = deviations(version, frozen_dtype)
  most_logits, most_loss, least_same = BOUNDS[frozen_dtype]
  assert logits <= most_logits and loss <= most_loss and same >= least_same
  # Few bits are in use.
  assert frozen_dtype == "float32" or logits > 1e-4


if __name__ == "__main__":
  print("| FROZEN_DTYPE | " + " | ".join(
    f"T5 {version.replace('_', '.')}: logits, loss, same token"
    for version in hf_folders.VERSIONS) + " |")
  print("|---" * (1 + len(hf_folders.VERSIONS)) + "|")
  for name in BOUNDS:
    cells = ["{:.4f}, {:.4f}, {:.2f}".format(*deviations(version, name))
             for version in hf_folders.VERSIONS]
    print(f"| `{name}` | " + " | ".join(cells) + " |")
