"""Adapters against a numpy T5 whose sub-layers end in one, and their start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CASES, CONFIG, batch, forward, random_params, unstacked
from numpy_t5 import NumpyT5

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.prompts.adapter import Adapter, AddBottleneck

MODEL = {case.name: case for case in CASES}["adapter"].model()


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Adapted(NumpyT5):
  """Every sub-layer's output goes through its adapter, before the residual sum."""

  def __init__(self, flat, config, prompt):
    super().__init__(flat, config)
    self.prompt = prompt

  def adapted(self, path, y):
    stack, layer, module, projection = path.split("/")
    leaves = {name: np.asarray(leaf[int(layer.removeprefix("layers_"))], np.float64)
              for name, leaf in self.prompt[f"{stack}.{module}.{projection}"].items()}
    inner = gelu(y @ leaves["down"] + leaves["down_bias"])
    return y + inner @ leaves["up"] + leaves["up_bias"]

  def attend(self, path, *arguments):
    return self.adapted(path + "/out", super().attend(path, *arguments))

  def mlp(self, path, x):
    return self.adapted(path + "/wo", super().mlp(path, x))


def test_equals_numpy():
  params, data = random_params(MODEL), batch(MODEL)
  plain = trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])
  slow = Adapted(plain, CONFIG, params["prompt"])
  encoded, logits = forward(MODEL)(params, data)
  for row, tokens in enumerate(data["tokens"]):
    real = slow.encode(plain["token_embedder/embedding"][tokens], tokens != 0)
    near(encoded[row], real)
    near(logits[row], slow.decode(data["decoder_tokens"][row], real, tokens != 0))


def test_it_starts_as_the_plain_model():
  params, data = random_params(MODEL), batch(MODEL)
  start = {name: {leaf: 0 * x if leaf.startswith("up") else x for leaf, x in leaves.items()}
           for name, leaves in params["prompt"].items()}
  plain = forward(PromptedT5(MODEL.backbone))({"backbone": params["backbone"]}, data)
  for hooked, alone in zip(forward(MODEL)({**params, "prompt": start}, data), plain, strict=True):
    near(hooked, alone, 1e-6)


@pytest.mark.parametrize("parallel", [False, True])
def test_what_it_reads(parallel):
  prompt = Adapter(CONFIG, hidden=5, targets="decoder/mlp/wo[:1]", activation="relu",
                   parallel=parallel)
  shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(prompt.init, jax.random.key(0), None))
  leaves = shapes["params"]["decoder.mlp.wo"]
  assert leaves["down"].value == (1, 12 if parallel else 8, 5)
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(3, 12)), rng.normal(size=(12, 8))
  given = {"down": rng.normal(size=leaves["down"].value[1:]), "down_bias": rng.normal(size=5),
           "up": rng.normal(size=(5, 8)), "up_bias": rng.normal(size=8)}
  read = x if parallel else x @ w
  wanted = x @ w + np.maximum(read @ given["down"] + given["down_bias"], 0) @ given["up"] + (
    given["up_bias"])
  hook = AddBottleneck(**{name: jnp.asarray(leaf) for name, leaf in given.items()},
                       activation="relu", parallel=parallel)
  near(hook(jnp.asarray(x), lambda x: x @ jnp.asarray(w)), wanted)


def test_it_cannot_be_merged():
  assert MODEL.prompt.merge({}, {}) is None


@pytest.mark.parametrize("field, value, what", [
  ("hidden", 0, "Adapter.hidden is not a size"),
  ("activation", "gellu", "Adapter.activation is unknown"),
  ("targets", ("wo",), "A pattern of Adapter.targets matches no projection")])
def test_mistakes(field, value, what):
  with pytest.raises(UserError) as error:
    Adapter(CONFIG, **{field: value})
  assert error.value.what == what
