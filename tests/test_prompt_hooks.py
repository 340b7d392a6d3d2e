"""The hooks of PromptValues against independent arithmetic: plain numpy, and merged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CASES, batch, forward, random_params, unstacked
from dummy_prompts import merged
from numpy_t5 import NumpyT5

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues, StackValues
from prompt_tuning.prompted import PromptedT5, abstract_params, init_prompt
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.soft import SoftPrompt

CASE = {case.name: case for case in CASES}


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["soft_bank", "key_values"])
def test_prompt_equals_numpy_t5(name):
  """A row at a time, a head at a time: each row with its own prompt of the bank."""
  model = CASE[name].model()
  params, data = random_params(model), batch(model)
  encoded, logits = forward(model)(params, data)
  flat = trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])
  for row, prompt_id in enumerate(data["prompt_ids"]):
    prompt = {path: leaf[prompt_id] for path, leaf in params["prompt"].items()}
    tokens = data["tokens"][row]
    x = flat["token_embedder/embedding"][np.maximum(tokens, 0)]
    extra = {}
    if name == "soft_bank":
      x = np.where((tokens < 0)[:, None], prompt["embedding"][np.maximum(-1 - tokens, 0) % 3], x)
    else:
      # [L, 2, P, H, K]
      extra = {("encoder", "self"): prompt["encoder"], ("decoder", "self"): prompt["decoder"],
               ("decoder", "cross"): prompt["cross"]}
    slow = NumpyT5(flat, model.backbone.config, extra)
    wanted = slow.encode(x, tokens != 0)
    near(encoded[row], wanted)
    near(logits[row], slow.decode(data["decoder_tokens"][row], wanted, tokens != 0))


def test_products_equal_merged_weights():
  model = CASE["products"].model()
  params, data = random_params(model), batch(model)
  plain = PromptedT5(model.backbone)
  backbone = trees.unflatten(merged(trees.flatten(params["backbone"]), params["prompt"]))
  for hooked, folded, untouched in zip(
      forward(model)(params, data), forward(plain)({"backbone": backbone}, data),
      forward(plain)({"backbone": params["backbone"]}, data), strict=True):
    near(hooked, folded)
    assert np.abs(hooked - untouched).max() > 0.01


def test_a_hook_on_an_unknown_projection_is_an_error():
  class Misspelt(SoftPrompt):
    """Names a projection that no block has."""

    def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
      return PromptValues(encoder=StackValues(projections={"atention/query": jnp.zeros((2, 1))}))

  model = CASE["soft"].model()
  model = PromptedT5(model.backbone, Misspelt(model.backbone.config, 1))
  with pytest.raises(UserError, match="did you mean 'attention/query'"):
    abstract_params(model)


def test_dropout_acts_only_when_enabled():
  model, plain = CASE["soft"].model(dropout_rate=0.5), CASE["soft"].model()
  params, data = random_params(model), batch(model)

  def logits(module, seeds, enable_dropout):
    run = jax.jit(lambda key: module.apply(
      {"params": params}, data["tokens"], data["decoder_tokens"], enable_dropout=enable_dropout,
      prompt_ids=data["prompt_ids"], rngs={"dropout": key}))
    return [np.asarray(run(jax.random.key(seed))) for seed in seeds]

  off = forward(plain)(params, data)[1]
  near(forward(model)(params, data)[1], off)
  near(logits(plain, [0], True)[0], off)
  first, again, second = logits(model, [0, 0, 1], True)
  np.testing.assert_array_equal(first, again)
  for one, other in ((first, off), (first, second)):
    assert (np.abs(one - other).max(axis=(1, 2)) > 1e-2).all()


@pytest.mark.parametrize("field,value,what", [
  ("length", 0, "SoftPrompt.length is not a count"),
  ("length", 2.0, "SoftPrompt.length is not a count"),
  ("num_prompts", -1, "SoftPrompt.num_prompts is not a count")])
def test_soft_prompt_sizes_are_checked(field, value, what):
  config = CASE["soft"].model().backbone.config
  with pytest.raises(UserError) as error:
    SoftPrompt(config, **{"length": 3, field: value})
  assert error.value.what == what and error.value.found == repr(value)
  assert "PROMPT_LENGTH" in error.value.fix


def test_a_bank_needs_prompt_ids():
  model = CASE["soft_bank"].model()
  data = batch(model)
  with pytest.raises(UserError) as error:
    forward(model)(random_params(model), {**data, "prompt_ids": None})
  assert error.value.what == "A bank of prompts was used without prompt ids"
  assert error.value.wanted == "[B] ids below 3"


def test_prompt_of_another_width_is_an_error():
  model = CASE["soft"].model()
  with pytest.raises(UserError) as error:
    init_prompt(jax.random.key(0), model, Sources(np.ones((20, 16), np.float32)))
  assert error.value.what == "The prompt and the backbone differ in width"
  assert (error.value.found, error.value.wanted) == ("prompt D = 8", "D = 16")


def test_no_prompt_has_no_parameters():
  model = PromptedT5(CASE["soft"].model().backbone)
  assert init_prompt(jax.random.key(0), model, Sources(np.ones((20, 8)))) == {}
