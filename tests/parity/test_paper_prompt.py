"""Against the code of the paper (Lester et al. 2021): its logits, and its prompt's gradient.

The numbers are its own, run on T5X and Flaxformer; make_paper_prompt.py says from which commits.
"""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.checkpoints import loading
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5
from prompt_tuning.t5x_bridge.module import T5XModule

pytestmark = pytest.mark.parity
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MAKE = runpy.run_path(str(GOLDEN / "make_paper_prompt.py"), run_name="golden")
NAMES = {"NUM_EMBEDDINGS": "vocab_size", "EMBED_DIM": "emb_dim", "NUM_HEADS": "num_heads",
         "HEAD_DIM": "head_dim", "MLP_DIM": "mlp_dim", "NUM_ENCODER_LAYERS": "num_encoder_layers",
         "NUM_DECODER_LAYERS": "num_decoder_layers"}


def config(sizes, buckets, distance):
  return T5Config(**{NAMES[name]: value for name, value in sizes.items()}, scan_layers=False,
                  relative_attention_num_buckets=buckets, relative_attention_max_distance=distance)


def numbers(model, params, vocab_size):
  """As the script's `numbers`, through our module; parameters by T5X's names."""
  inputs, shifted, targets = map(jnp.asarray, MAKE["batch"](vocab_size))

  def logits(prompt):
    tree = trees.unflatten(params | {MAKE["PROMPT"]: prompt})
    return model.apply({"params": tree}, inputs, shifted, targets, enable_dropout=False)

  def both(prompt):
    made = logits(prompt)
    return (made * MAKE["direction"](made.shape, vocab_size)).sum(), made

  (_, made), gradient = jax.jit(jax.value_and_grad(both, has_aux=True))(params[MAKE["PROMPT"]])
  return np.asarray(made)[np.asarray(targets) != 0], np.asarray(gradient)


def assert_close(found, wanted):
  assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_logits_and_gradient():
  golden = np.load(GOLDEN / "paper_prompt.npz")
  sizes = config(MAKE["SIZES"], MAKE["BUCKETS"], MAKE["MAX_DISTANCE"])
  shapes = {name: leaf.shape for name, leaf in loading.expected_leaves(sizes).items()}
  shapes[MAKE["PROMPT"]] = (MAKE["PROMPT_LENGTH"], sizes.emb_dim)
  params = {name: jnp.asarray(MAKE["weight"](name, shape)) for name, shape in shapes.items()}
  model = T5XModule(T5(sizes), SoftPrompt(sizes, MAKE["PROMPT_LENGTH"]))
  logits, gradient = numbers(model, params, sizes.vocab_size)
  assert_close(logits, golden["logits"])
  assert_close(gradient, golden["gradient"])


def test_the_repositorys_own_checkpoint(shared_data):
  golden = np.load(GOLDEN / "paper_prompt.npz")
  sizes = config(MAKE["TINY"], MAKE["TINY_BUCKETS"], MAKE["TINY_DISTANCE"])
  reader = loading.find(path := str(shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3")).open(path)
  params = {name: jnp.asarray(reader.read(name)) for name in reader.leaves}
  shape = (MAKE["PROMPT_LENGTH"], sizes.emb_dim)
  params[MAKE["PROMPT"]] = jnp.asarray(MAKE["weight"](MAKE["PROMPT"], shape))
  model = T5XModule(T5(sizes), SoftPrompt(sizes, MAKE["PROMPT_LENGTH"]))
  logits, gradient = numbers(model, params, sizes.vocab_size)
  assert_close(logits[..., MAKE["COLUMNS"]], golden["tiny_logits"])
  assert_close(gradient, golden["tiny_gradient"])
