"""Prefix tuning against attention in plain numpy, the MLP by its definition, counted products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import (
  CONFIG,
  LENGTH,
  NUM_PROMPTS,
  batch,
  forward,
  loss_and_gradient,
  random_params,
  unstacked,
)
from flax import linen as nn
from numpy_t5 import NumpyT5

from benchmarks.shapes import Shapes, theory_flop
from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import KeyValues, PromptContext, PromptValues, StackValues, T5Config
from prompt_tuning.plan.hlo import matmul_flop
from prompt_tuning.prompted import PromptedT5, abstract_params, activations
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.prompts.prefix import PrefixPrompt
from prompt_tuning.t5 import T5

PLACES = {"encoder": ("encoder", "self"), "decoder": ("decoder", "self"),
          "cross": ("decoder", "cross")}
HIDDEN = 5


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def model_of(config: T5Config = CONFIG, length: int = LENGTH, **fields) -> PromptedT5:
  return PromptedT5(T5(config), PrefixPrompt(config, length, **fields))


def only(*kinds: str) -> dict[str, bool]:
  return {kind: kind in kinds for kind in PLACES}


def flat_backbone(params: dict) -> dict:
  return trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])


def numpy_table(leaves: dict, kind: str, prompt_id: int) -> np.ndarray:
  """`[L, 2, P, H, K]` of one prompt: a unit, a layer and a vector at a time."""
  embedding, into, into_bias, out, out_bias = (
    np.asarray(leaves[f"{kind}_{name}"][prompt_id], np.float64)
    for name in ("embedding", "kernel_in", "bias_in", "kernel_out", "bias_out"))
  table = np.zeros((len(out), 2, LENGTH, 2, 3))
  for p, vector in enumerate(embedding):
    units = [np.tanh(vector @ into[:, m] + into_bias[m]) for m in range(HIDDEN)]
    for layer in range(len(out)):
      for i in range(2):
        row = out_bias[layer, i] + sum(units[m] * out[layer, i, m] for m in range(HIDDEN))
        table[layer, i, p] = row.reshape(2, 3)
  return table


def test_a_bank_of_mlps_equals_numpy():
  """Each row with its own prompt: its MLP, then attention a row and a head at a time."""
  model = model_of(hidden=HIDDEN, num_prompts=NUM_PROMPTS)
  params, data = random_params(model), batch(model)
  encoded, logits = forward(model)(params, data)
  folded = model.prompt.fold(params["prompt"])
  for row, prompt_id in enumerate(data["prompt_ids"]):
    tables = {kind: numpy_table(params["prompt"], kind, prompt_id) for kind in PLACES}
    for kind, table in tables.items():
      near(folded[kind][prompt_id], table)
    flat, tokens = flat_backbone(params), data["tokens"][row]
    slow = NumpyT5(flat, CONFIG, {PLACES[kind]: table for kind, table in tables.items()})
    wanted = slow.encode(flat["token_embedder/embedding"][tokens], tokens != 0)
    near(encoded[row], wanted)
    near(logits[row], slow.decode(data["decoder_tokens"][row], wanted, tokens != 0))


@pytest.mark.parametrize("kind", PLACES)
def test_one_kind_alone_equals_numpy(kind):
  model = model_of(**only(kind))
  params, data = random_params(model), batch(model)
  assert params["prompt"].keys() == {kind}
  encoded, logits = forward(model)(params, data)
  flat = flat_backbone(params)
  slow = NumpyT5(flat, CONFIG, {PLACES[kind]: params["prompt"][kind]})
  for row in (0, 2):
    tokens = data["tokens"][row]
    wanted = slow.encode(flat["token_embedder/embedding"][tokens], tokens != 0)
    near(encoded[row], wanted)
    near(logits[row], slow.decode(data["decoder_tokens"][row], wanted, tokens != 0))


class Nothing(PromptMethod):
  """Prefixes of length 0."""

  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    def none(layers: int) -> KeyValues:
      empty = jnp.zeros((layers, 1, 0, self.config.num_heads, self.config.head_dim))
      return KeyValues(empty, empty)

    encoder, decoder = self.config.num_encoder_layers, self.config.num_decoder_layers
    return PromptValues(encoder=StackValues(self_kv=none(encoder)),
                        decoder=StackValues(self_kv=none(decoder), cross_kv=none(decoder)))


def test_prefixes_of_length_0_are_the_plain_model():
  plain, empty = PromptedT5(T5(CONFIG)), PromptedT5(T5(CONFIG), Nothing(CONFIG))
  params, data = random_params(plain), batch(plain)
  for ours, wanted in zip(forward(empty)(params, data), forward(plain)(params, data), strict=True):
    near(ours, wanted, 1e-6)


class Listening(NumpyT5):
  """Notes what every attention computes as keys and values, `(path, "key" or "value") -> [S, J]`.
  """

  def attend(self, path, x, source, allowed, bias, extra):
    self.heard = getattr(self, "heard", {})
    for name in ("key", "value"):
      self.heard[path, name] = source @ self.flat[f"{path}/{name}/kernel"]
    return super().attend(path, x, source, allowed, bias, extra)


@functools.cache
def sources() -> Sources:
  """Of the random backbone; a word of n letters has id 3 + n."""
  backbone = random_params(PromptedT5(T5(CONFIG)))["backbone"]
  return Sources(np.ones((20, 8), np.float32), lambda text: [3 + len(w) for w in text.split()],
                 activations=functools.partial(activations, backbone, CONFIG))


@pytest.mark.parametrize("words,ids", [("a word", (4, 7, 4)), ("some such words here", (7, 7, 8))])
def test_words_are_what_the_frozen_model_computes_of_them(words, ids):
  model = model_of(words=words)
  params = random_params(model)
  started = model.prompt.initial_params(jax.random.key(0), params["prompt"], sources())
  slow = Listening(flat_backbone(params), CONFIG)
  everything = np.ones(LENGTH, bool)
  encoded = slow.encode(slow.flat["token_embedder/embedding"][list(ids)], everything)
  slow.decode(np.array(ids), encoded, everything)
  modules = {"encoder": "attention", "decoder": "self_attention",
             "cross": "encoder_decoder_attention"}
  for kind, module in modules.items():
    for layer in range(2 if kind == "encoder" else 3):
      path = f"{PLACES[kind][0]}/layers_{layer}/{module}"
      for i, name in enumerate(("key", "value")):
        near(started[kind][layer, i].reshape(LENGTH, -1), slow.heard[path, name])


@pytest.mark.parametrize("hidden,num_prompts", [(LENGTH - 1, 1), (HIDDEN, 1), (HIDDEN, 3)])
def test_the_mlp_starts_at_the_words(hidden, num_prompts):
  words = "every good boy"
  mlp = model_of(words=words, hidden=hidden, num_prompts=num_prompts)
  before = random_params(mlp)["prompt"]
  started = mlp.prompt.initial_params(jax.random.key(0), before, sources())
  assert {name: leaf.shape for name, leaf in started.items()} == {
    name: leaf.shape for name, leaf in before.items()}
  direct = model_of(words=words, num_prompts=num_prompts)
  wanted = direct.prompt.initial_params(jax.random.key(0), random_params(direct)["prompt"],
                                        sources())
  for kind, leaf in mlp.prompt.fold(started).items():
    assert np.unique(wanted[kind]).size > 20
    # The smallest MLP has as many unknowns as equations: rounding grows with their condition.
    near(leaf, wanted[kind], 1e-4 if hidden < LENGTH else 1e-5)
    # The first layer is what it was; so the prompts of a bank differ from the first step.
    np.testing.assert_array_equal(started[f"{kind}_embedding"], before[f"{kind}_embedding"])


def test_the_start_without_words():
  """The direct form is near 0; a unit of the MLP form has variance 1 before its tanh."""
  wide = dataclasses.replace(CONFIG, emb_dim=64, num_heads=8, head_dim=16)
  direct = model_of(wide, 40, **only("cross"), num_prompts=3)
  mlp = model_of(wide, 40, **only("cross"), hidden=50, num_prompts=3)

  def started(model: PromptedT5) -> dict:
    return nn.meta.unbox(model.prompt.init(jax.random.key(0), PromptContext()))["params"]

  table = started(direct)["cross"]
  assert np.std(table) == pytest.approx(0.02, rel=0.02) and table.shape == (3, 3, 2, 40, 8, 16)
  leaves = started(mlp)
  assert not leaves["cross_bias_in"].any() and not leaves["cross_bias_out"].any()
  for name, fan_in in (("cross_embedding", 1), ("cross_kernel_in", 64), ("cross_kernel_out", 50)):
    assert np.std(leaves[name]) == pytest.approx(fan_in**-0.5, rel=0.03)


SHAPES = Shapes(rows=4, inputs=7, prompt=0, targets=4, width=8, heads=2, head_width=3, mlp=12,
                layers=2, vocabulary=20)
EVEN = dataclasses.replace(CONFIG, num_decoder_layers=2)


def step_flop(model: PromptedT5) -> float:
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                        abstract_params(model))
  step = loss_and_gradient(model).lower(params["prompt"], params["backbone"], batch(model))
  return matmul_flop(step.compile().as_text())


@pytest.mark.parametrize("length,hidden", [(3, None), (5, 5)])
def test_the_step_has_the_products_of_the_docstring(length, hidden):
  counted = step_flop(model_of(EVEN, length, hidden=hidden))
  rows, joined, layers = SHAPES.rows, 6, 2
  added = sum(12 * rows * queries * length * joined * layers
              for queries in (SHAPES.inputs, SHAPES.targets, SHAPES.targets))
  if hidden is not None:
    added += 3 * 6 * length * hidden * (SHAPES.width + 2 * joined * layers)
  theory = theory_flop(SHAPES, "prompt_step") + added
  assert 0.99 * theory <= counted <= 1.01 * theory


def test_a_prefix_in_the_decoder_has_no_backward_pass_of_the_encoder():
  """A further encoder layer costs its forward pass; with a prefix in it, the backward pass too."""
  deeper = dataclasses.replace(EVEN, num_encoder_layers=3)
  positions = SHAPES.rows * SHAPES.inputs
  projections = 2 * positions * (4 * 8 * 6 + 3 * 8 * 12)
  attention = 4 * positions * SHAPES.inputs * 6

  def cost(**fields) -> float:
    return step_flop(model_of(deeper, **fields)) - step_flop(model_of(EVEN, **fields))

  assert cost(**only("decoder", "cross")) == projections + attention
  assert cost(**only("encoder")) == (
    2 * projections + 3 * attention + 12 * positions * LENGTH * 6)


@pytest.mark.parametrize("fields,what,fix", [
  (dict(length=0), "PrefixPrompt.length is not a count", "PROMPT_LENGTH"),
  (dict(num_prompts=1.5), "PrefixPrompt.num_prompts is not a count", "NUM_PROMPTS"),
  (dict(hidden=0), "PrefixPrompt.hidden is not a count", "PREFIX_HIDDEN"),
  (only(), "A prefix in no attention trains nothing", "PREFIX_ENCODER=True"),
  (dict(words="a", hidden=LENGTH - 2), "The MLP is too narrow to start from words",
   f"PREFIX_HIDDEN={LENGTH - 1}")])
def test_settings_are_checked(fields, what, fix):
  with pytest.raises(UserError) as error:
    PrefixPrompt(CONFIG, **{"length": LENGTH} | fields)
  assert error.value.what == what and fix in error.value.fix


def test_a_bank_needs_prompt_ids():
  model = model_of(num_prompts=NUM_PROMPTS)
  with pytest.raises(UserError) as error:
    forward(model)(random_params(model), batch(model) | {"prompt_ids": None})
  assert error.value.what == "A bank of prompts was used without prompt ids"
  assert error.value.wanted == "[B] ids below 3"


def test_words_need_weights():
  model = model_of(words="a")
  without = dataclasses.replace(sources(), activations=None)
  with pytest.raises(UserError, match="needs the backbone's weights"):
    model.prompt.initial_params(jax.random.key(0), random_params(model)["prompt"], without)
