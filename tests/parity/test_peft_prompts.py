"""PEFT's adapters and ours: tensors to the bit, and logits of the prompted model in float32.

Against goldens everywhere, and against PEFT itself where it is installed.
"""

import dataclasses
import functools
import json
import pathlib
import re
import runpy
import tempfile

import hf_folders
import jax
import numpy as np
import pytest
from descriptors import CONFIG
from safetensors.numpy import save_file

from prompt_tuning.checkpoints import hf, loading, peft, prompt_files
from prompt_tuning.interfaces import PromptContext
from prompt_tuning.prompted import PromptedT5, abstract_params, add_virtual_tokens
from prompt_tuning.prompts.ptuning import PTuning
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

pytestmark = pytest.mark.parity

REGENERATE = "to regenerate: python tests/golden/make_peft_prompts.py"
TOLERANCE = 1e-5
DEPTHS = (3, 4)


@functools.cache
def golden() -> dict[str, np.ndarray]:
  with np.load(hf_folders.GOLDEN / "peft_prompts.npz") as file:
    return dict(file)


@functools.cache
def make() -> dict:
  pytest.importorskip("peft", reason="the live comparison needs peft")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(hf_folders.GOLDEN))
    return runpy.run_path(str(hf_folders.GOLDEN / "make_peft_prompts.py"))


def adapter(folder: pathlib.Path, recorded: dict, **changes) -> pathlib.Path:
  """The folder that `save_pretrained` wrote."""
  folder.mkdir()
  config = json.loads(str(recorded["config"])) | changes
  (folder / peft.CONFIG).write_text(json.dumps(config))
  save_file({peft.TENSOR: recorded["tensor"]}, folder / peft.WEIGHTS)
  return folder


def part(prefix: str) -> dict[str, np.ndarray]:
  return {key.removeprefix(prefix): value for key, value in golden().items()
          if key.startswith(prefix)}


@functools.cache
def logits_of():
  """prompt [P, D] -> logits of the golden 1.1 model on its inputs with the prompt in front."""
  recorded = hf_folders.golden("1_1")
  with tempfile.TemporaryDirectory() as folder:
    reader = hf.HFReader(hf_folders.save_golden(pathlib.Path(folder), "1_1"))
    length = golden()["ours/values"].shape[0]
    model = PromptedT5(T5(reader.config), SoftPrompt(reader.config, length))
    backbone = loading.restore(reader, abstract_params(PromptedT5(T5(reader.config)))["backbone"])
  inputs = add_virtual_tokens(recorded["inputs"], length)

  def run(values):
    params = {"params": {"backbone": backbone, "prompt": {"embedding": values}}}
    return model.apply(params, inputs, recorded["targets"], enable_dropout=False)

  return jax.jit(run)


def assert_near(actual, wanted):
  error = np.abs(np.asarray(actual) - wanted).max() / np.abs(wanted).max()
  assert error < TOLERANCE, f"off by {error:.1e} of the largest value; {REGENERATE}"


@pytest.mark.parametrize("method", peft.METHODS)
def test_an_adapter_of_peft_gives_its_logits(tmp_path, method):
  recorded = part(f"saved/{method}/")
  folder = adapter(tmp_path / "adapter", recorded)
  found = prompt_files.read(str(folder))
  assert found.format == "peft" and found.metadata["peft_type"] == method
  # The other rows are those that PEFT gives the decoder and never reads.
  assert recorded["tensor"].shape[0] == 2 * found.values.shape[0]
  np.testing.assert_array_equal(found.values, recorded["tensor"][:len(found.values)])
  assert_near(logits_of()(found.values), recorded["logits"])


@pytest.mark.parametrize("method", peft.METHODS)
def test_what_is_exported_is_what_peft_loaded(tmp_path, method):
  recorded = part(f"ours/{method}/")
  folder = tmp_path / "adapter"
  prompt_files.write(str(folder), golden()["ours/values"], {"peft_type": method})
  assert (folder / peft.CONFIG).read_text() == str(recorded["config"]), REGENERATE
  assert (folder / peft.WEIGHTS).read_bytes() == recorded["weights"].tobytes(), REGENERATE
  assert sorted(path.name for path in folder.iterdir()) == [peft.CONFIG, peft.WEIGHTS]
  assert_near(logits_of()(golden()["ours/values"]), recorded["logits"])


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_prefix_is_read_as_peft_uses_it(tmp_path, depth):
  recorded = part(f"prefix/{depth}/")
  folder = adapter(tmp_path / "prefix", recorded)
  keys, values = peft.read_prefix(folder, depth)
  np.testing.assert_array_equal(keys, recorded["keys"])
  np.testing.assert_array_equal(values, recorded["values"])
  shared = {i for i in range(depth) for j in range(i) if (keys[i] == keys[j]).all()}
  assert len(shared) == (depth // 2 if depth % 2 == 0 else 0)


def encoder_params(found: dict) -> dict[str, np.ndarray]:
  """PEFT's P-tuning encoder in our layout (ptuning.py)."""
  layers = sorted(name[:-len(".weight")] for name in found if re.fullmatch(r"mlp.*\.weight", name))
  params = {"embedding": found["embedding.weight"]}
  for i, name in enumerate(layers):
    params |= {f"mlp_{i}_kernel": found[f"{name}.weight"].T, f"mlp_{i}_bias": found[f"{name}.bias"]}
  for layer in range(2 if "lstm_head.bias_hh_l0" in found else 0):
    inputs, recurrent, bias_in, bias = (
      np.stack([found[f"lstm_head.{name}_l{layer}{way}"] for way in ("", "_reverse")])
      for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    params |= {f"lstm_{layer}_inputs": inputs.swapaxes(1, 2),
               f"lstm_{layer}_recurrent": recurrent.swapaxes(1, 2),
               f"lstm_{layer}_bias": bias_in + bias}
  return params


def assert_encoder(found: dict, kind: str) -> None:
  params = encoder_params(found)
  length, width = params["embedding"].shape
  method = PTuning(dataclasses.replace(CONFIG, emb_dim=width), length, encoder=kind.lower(),
                   hidden=6)
  assert_near(method.apply({"params": params}, PromptContext()).embeds, found["output"])


@pytest.mark.parametrize("kind", ["LSTM", "MLP"])
def test_p_tunings_encoder_gives_what_pefts_gives(kind):
  assert_encoder(part(f"encoder/{kind}/"), kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LSTM", "MLP"])
def test_live_encoder(kind):
  fresh = make()["encoder"](kind, seed=7)
  assert np.abs(fresh["output"] - part(f"encoder/{kind}/")["output"]).max() > 0.01
  assert_encoder(fresh, kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", peft.METHODS)
def test_live(tmp_path, method):
  model = hf_folders.golden("1_1")
  fresh = make()["saved"](method, model, seed=5)
  found = prompt_files.read(str(adapter(tmp_path / "theirs", fresh)))
  assert np.abs(fresh["logits"] - part(f"saved/{method}/")["logits"]).max() > 0.1
  assert_near(logits_of()(found.values), fresh["logits"])
  values = np.random.default_rng(5).normal(size=found.values.shape).astype(np.float32)
  prompt_files.write(str(tmp_path / "ours"), values, {"peft_type": method})
  assert_near(logits_of()(values), make()["loaded"](tmp_path / "ours", model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [2, 5])
def test_live_prefix(tmp_path, depth):
  fresh = make()["prefix"](depth, seed=6)
  keys, values = peft.read_prefix(adapter(tmp_path / "prefix", fresh))
  np.testing.assert_array_equal(keys, fresh["keys"])
  np.testing.assert_array_equal(values, fresh["values"])
