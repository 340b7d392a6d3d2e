"""Writes paper_prompt.npz: what the prompt-tuning paper's own code computes, for
tests/parity/test_paper_prompt.py.

Made from google-research/prompt-tuning 72285ee, T5X cc342d4 and Flaxformer 399ea3a, with the one
repair that the first of them needs since Flax 0.6: in `prompt_tuning/train/utils.py`,
`from flax import optim` reads `from t5x import optimizers as optim` (and `super().__init__` of its
MultiOptimizer takes the sequence unstarred). Their `prompt_tuning` goes by the name of ours, so
their folder comes first, and this file imports nothing of ours:

  PYTHONPATH=PAPER:T5X:FLAXFORMER:AIRIO:JESTIMATOR python tests/golden/make_paper_prompt.py \
      [CHECKPOINT]

CHECKPOINT is the repository's `prompt_tuning/test_data/test_t5_1_1_tiny/checkpoint_3`. Only numbers
are stored: logits and the gradient of the prompt, for weights that are formulas, and for that
checkpoint every 251st column of its logits.
"""

import pathlib
import sys
import zlib

import numpy as np

PROMPT_LENGTH = 5
SIZES = {"NUM_EMBEDDINGS": 48, "EMBED_DIM": 12, "NUM_HEADS": 3, "HEAD_DIM": 4, "MLP_DIM": 20,
         "NUM_ENCODER_LAYERS": 2, "NUM_DECODER_LAYERS": 3}
BUCKETS, MAX_DISTANCE = 8, 20
# The sizes of the repository's test model.
TINY = {"NUM_EMBEDDINGS": 32128, "EMBED_DIM": 4, "NUM_HEADS": 2, "HEAD_DIM": 2, "MLP_DIM": 8,
        "NUM_ENCODER_LAYERS": 2, "NUM_DECODER_LAYERS": 2}
TINY_BUCKETS, TINY_DISTANCE = 4, 8
COLUMNS = slice(None, None, 251)
PROMPT = "encoder/prompt/prompt/prompt"


def weight(name, shape):
  """A float32 leaf that its T5X name decides, of the size that T5 starts with."""
  values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
  if name.endswith("scale"):
    return (1.0 + 0.1 * values).astype(np.float32)
  size = shape[0] ** -0.5 if name.endswith("kernel") else 1.0
  size *= 0.5 if name.endswith("query/kernel") else 1.0  # K^-0.5
  return (size * values).astype(np.float32)


def batch(vocab_size):
  """Encoder input `[2, 9]` with padding, decoder input and target `[2, 6]`."""
  rng = np.random.default_rng(7)
  inputs = rng.integers(2, vocab_size, (2, 9))
  inputs[0, 6:] = 0
  targets = rng.integers(2, vocab_size, (2, 6))
  targets[1, 4:] = 0
  shifted = np.concatenate([np.zeros((2, 1), int), targets[:, :-1]], axis=1)
  return tuple(x.astype(np.int32) for x in (inputs, shifted, targets))


def direction(logits_shape, vocab_size):
  """What the logits are weighted with for a scalar to differentiate: 0 where a target is padding.

  Their decoder hides padding from itself, ours does not; no loss reads what stands there.
  """
  targets = batch(vocab_size)[2]
  values = np.random.default_rng(11).normal(size=logits_shape) * (targets != 0)[..., None]
  return values.astype(np.float32)


def built(architecture):
  """gin fills it."""
  return architecture


def module_of(sizes, buckets, distance):
  """The paper's PromptEncoderDecoder, from its own gin files."""
  import gin
  import t5x

  import prompt_tuning
  gin.clear_config()
  for package in (prompt_tuning, t5x):
    gin.add_config_file_search_path(str(pathlib.Path(next(iter(package.__path__))).parent))
  settings = "\n".join(f"{name} = {value}" for name, value in sizes.items())
  gin.parse_config(f"""
from __gin__ import dynamic_registration
import __main__ as golden
from flaxformer.components import relative_position_biases
include 'prompt_tuning/configs/models/t5_1_1_base_prompt.gin'
{settings}
PROMPT_LENGTH = {PROMPT_LENGTH}
DROPOUT_RATE = 0.0
ACTIVATION_DTYPE = 'float32'
golden.built.architecture = %ARCHITECTURE
relative_position_biases.RelativePositionBiases:
  num_buckets = {buckets}
  max_distance = {distance}
""")
  return gin.get_configurable(built)()


def numbers(module, params, vocab_size):
  """Logits, and the gradient of the prompt of their weighted sum."""
  import jax
  from flax import traverse_util
  tree = traverse_util.unflatten_dict(params, sep="/")

  def logits(prompt):
    tree["encoder"]["prompt"]["prompt"]["prompt"] = prompt
    inputs, shifted, targets = batch(vocab_size)
    return module.apply({"params": tree}, inputs, shifted, targets, enable_dropout=False)

  made = logits(params[PROMPT])
  gradient = jax.grad(lambda prompt: (logits(prompt) * direction(made.shape, vocab_size)).sum())(
    params[PROMPT])
  real = batch(vocab_size)[2] != 0
  return np.asarray(made)[real], np.asarray(gradient)


def main(checkpoint=None):
  import jax
  from flax import traverse_util
  module = module_of(SIZES, BUCKETS, MAX_DISTANCE)
  inputs, shifted, targets = batch(SIZES["NUM_EMBEDDINGS"])
  made = jax.eval_shape(lambda key: module.init(key, inputs, shifted, targets,
                                                enable_dropout=False), jax.random.PRNGKey(0))
  shapes = traverse_util.flatten_dict(dict(made["params"]), sep="/")
  params = {name: weight(name, leaf.shape) for name, leaf in shapes.items()}
  arrays = {}
  arrays["logits"], arrays["gradient"] = numbers(module, params, SIZES["NUM_EMBEDDINGS"])
  if checkpoint is not None:
    from t5x import checkpoints
    tree = checkpoints.load_t5x_checkpoint(checkpoint)["target"]
    params = traverse_util.flatten_dict(tree, sep="/")
    params[PROMPT] = weight(PROMPT, (PROMPT_LENGTH, TINY["EMBED_DIM"]))
    module = module_of(TINY, TINY_BUCKETS, TINY_DISTANCE)
    logits, arrays["tiny_gradient"] = numbers(module, params, TINY["NUM_EMBEDDINGS"])
    arrays["tiny_logits"] = logits[..., COLUMNS]
  np.savez_compressed(pathlib.Path(__file__).with_name("paper_prompt.npz"), **arrays)


if __name__ == "__main__":
  main(*sys.argv[1:])
