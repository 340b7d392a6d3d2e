"""Combined methods against each part alone, merged weights, and a numpy T5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CASES, CONFIG, LENGTH, batch, forward, random_params, unstacked
from dummy_prompts import BlockInputPrompt, KeyValuePrompt, ProductPrompt
from numpy_t5 import NumpyT5

from prompt_tuning import config, trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, T5Config
from prompt_tuning.prompted import PromptedT5, init_prompt
from prompt_tuning.prompts.adapter import Adapter
from prompt_tuning.prompts.combined import (
  ChainedBlockInputs,
  ChainedOutputs,
  ChainedProjections,
  Combined,
)
from prompt_tuning.prompts.deep import DeepPrompt
from prompt_tuning.prompts.ia3 import IA3
from prompt_tuning.prompts.initializers import Sources, Uniform
from prompt_tuning.prompts.lora import Lora
from prompt_tuning.prompts.prefix import PrefixPrompt
from prompt_tuning.prompts.ptuning import PTuning
from prompt_tuning.prompts.residual import ResidualPrompt
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import ModelConfig

MODEL = {case.name: case for case in CASES}["combined"].model()
SOFT = SoftPrompt(CONFIG, LENGTH)
CONTEXT = PromptContext(prompt_ids=jnp.array([0, 2, 1, 2]))


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def prompt_params(method):
  return random_params(PromptedT5(MODEL.backbone, method))["prompt"]


@pytest.mark.parametrize("part", [SOFT, SoftPrompt(CONFIG, 2, num_prompts=3),
                                  KeyValuePrompt(CONFIG, 2, 3), BlockInputPrompt(CONFIG),
                                  ProductPrompt(CONFIG)], ids=lambda part: type(part).__name__)
def test_one_part_is_that_part(part):
  params = prompt_params(part)
  both = Combined(CONFIG, {"it": part})
  for name in ("num_virtual_tokens", "num_prompts", "reads_input", "has_dropout"):
    assert getattr(both, name) == getattr(part, name)
  found = both.apply({"params": {"it": params}}, CONTEXT)
  wanted = part.apply({"params": params}, CONTEXT)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_soft_and_lora_equal_the_soft_prompt_on_merged_weights():
  params, data = random_params(MODEL), batch(MODEL)
  lora = MODEL.prompt.parts["lora"]
  merged = lora.merge(trees.flatten(params["backbone"]), params["prompt"]["lora"])
  alone = forward(PromptedT5(MODEL.backbone, SOFT))(
    {"backbone": trees.unflatten(merged), "prompt": params["prompt"]["soft"]}, data)
  for ours, wanted in zip(forward(MODEL)(params, data), alone, strict=True):
    near(ours, wanted)


def test_a_bank_of_prefixes_beside_a_soft_prompt_equals_numpy():
  model = PromptedT5(MODEL.backbone, Combined(CONFIG, {
    "kv": KeyValuePrompt(CONFIG, 2, 3), "soft": SOFT}))
  params, data = random_params(model), batch(model)
  encoded, logits = forward(model)(params, data)
  flat = trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])
  for row, prompt_id in enumerate(data["prompt_ids"]):
    kv = {name: leaf[prompt_id] for name, leaf in params["prompt"]["kv"].items()}
    tokens = data["tokens"][row]
    x = np.concatenate([params["prompt"]["soft"]["embedding"],
                        flat["token_embedder/embedding"][tokens[LENGTH:]]])
    slow = NumpyT5(flat, CONFIG, {("encoder", "self"): kv["encoder"],
                                  ("decoder", "self"): kv["decoder"],
                                  ("decoder", "cross"): kv["cross"]})
    wanted = slow.encode(x, tokens != 0)
    near(encoded[row], wanted)
    near(logits[row], slow.decode(data["decoder_tokens"][row], wanted, tokens != 0))


@pytest.mark.parametrize("in_front", [True, False])
def test_folded_parts_equal_numpy(in_front):
  """Each part's own served form, in numpy; what the combination serves gives the same."""
  parts = {"prefix": PrefixPrompt(CONFIG, 2, hidden=5), "ptuning": PTuning(CONFIG, 2, hidden=7),
           "residual": ResidualPrompt(CONFIG, LENGTH, hidden=5)}
  model = PromptedT5(MODEL.backbone, Combined(CONFIG, parts), in_front)
  served = PromptedT5(model.backbone, model.prompt.served(), in_front)
  params, data = random_params(model), batch(model)
  folded = jax.tree.map(np.asarray, model.prompt.fold(params["prompt"]))
  assert jax.tree.map(np.shape, folded) == {
    "prefix": {"encoder": (2, 2, 2, 2, 3), "decoder": (3, 2, 2, 2, 3), "cross": (3, 2, 2, 2, 3)},
    "ptuning": {"embedding": (2, 8)}, "residual": {"embedding": (LENGTH, 8)}}
  tables = {name: part.fold(params["prompt"][name]) for name, part in parts.items()}
  rows = np.concatenate([tables["ptuning"]["embedding"], tables["residual"]["embedding"]])
  trained = forward(model)(params, data)
  fast = forward(served)({"backbone": params["backbone"], "prompt": folded}, data)
  flat = trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])
  slow = NumpyT5(flat, CONFIG, {("encoder", "self"): tables["prefix"]["encoder"],
                                ("decoder", "self"): tables["prefix"]["decoder"],
                                ("decoder", "cross"): tables["prefix"]["cross"]})
  for row, tokens in enumerate(data["tokens"]):
    x = np.concatenate([rows, flat["token_embedder/embedding"][tokens[len(rows):]]])
    encoded = slow.encode(x, tokens != 0)
    logits = slow.decode(data["decoder_tokens"][row], encoded, tokens != 0)
    for found in (trained, fast):
      near(found[0][row], encoded)
      near(found[1][row], logits)


def test_rows_and_layers_are_joined_in_order():
  parts = {"bank": SoftPrompt(CONFIG, 2, num_prompts=3), "one": SOFT,
           "kv": KeyValuePrompt(CONFIG, 2, 3), "kv_one": KeyValuePrompt(CONFIG, 1)}
  both = Combined(CONFIG, parts)
  params = prompt_params(both)
  values = both.apply({"params": params}, CONTEXT)
  assert (both.num_virtual_tokens, both.num_prompts) == (2 + LENGTH, 3)
  for row, prompt_id in enumerate(CONTEXT.prompt_ids):
    np.testing.assert_array_equal(values.embeds[row], np.concatenate(
      [params["bank"]["embedding"][prompt_id], params["one"]["embedding"]]))
    np.testing.assert_array_equal(values.decoder.cross_kv.value[:, row], np.concatenate(
      [params["kv"]["cross"][prompt_id][:, 1], params["kv_one"]["cross"][0][:, 1]], axis=1))
  assert values.encoder.self_kv.key.shape == (2, 4, 3, 2, 3)


@pytest.mark.parametrize("first", ["soft", "deep"])
def test_a_part_finds_its_own_virtual_tokens(first):
  """Deep prompts replace the hidden states at their own rows, wherever these are."""
  parts = {"soft": SOFT, "deep": DeepPrompt(CONFIG, 2)}
  both = Combined(CONFIG, {name: parts[name] for name in sorted(parts, key=lambda n: n != first)})
  params = prompt_params(both)
  tokens = jnp.array([[-1, -2, -3, -4, -5, 7, 0]])
  hook = both.apply({"params": params}, PromptContext(tokens=tokens)).encoder.block_input
  x = np.arange(7 * 8, dtype=np.float32).reshape(1, 7, 8)
  wanted = x.copy()
  start = 0 if first == "deep" else LENGTH
  wanted[0, start:start + 2] = params["deep"]["states"][1]
  own = jax.tree.map(lambda leaf: leaf[1], hook)
  np.testing.assert_array_equal(own(jnp.asarray(x), tokens), wanted)


def test_a_part_reads_the_real_tokens_alone():
  seen = []

  class Reader(SoftPrompt):
    """Keeps what it was shown."""

    reads_input = True

    def __call__(self, context, enable_dropout=False):
      seen.append(context.tokens)
      return super().__call__(context, enable_dropout)

  both = Combined(CONFIG, {"soft": SOFT, "reader": Reader(CONFIG, 2)})
  params = {"soft": prompt_params(SOFT), "reader": {"embedding": np.zeros((2, 8), np.float32)}}
  both.apply({"params": params}, PromptContext(tokens=jnp.array([[-1, -2, -3, -4, -5, 7, 0]])))
  assert both.reads_input and seen[-1].tolist() == [[-3, -3, -3, -1, -2, 7, 0]]


def test_hooks_act_in_order():
  def twice(x, project):
    return 2 * project(x)

  def shifted_input(x, project):
    return project(x + 1)

  x, square = jnp.array([3.0]), jnp.square
  assert ChainedProjections((twice, shifted_input))(x, square) == 2 * (3 + 1) ** 2
  assert ChainedProjections((lambda x, project: project(x) + 1, twice))(x, square) == 2 * (9 + 1)
  blocks = ChainedBlockInputs((lambda x, tokens: x + tokens, lambda x, tokens: x * tokens))
  assert blocks(x, jnp.array([5.0])) == (3 + 5) * 5
  output = ChainedOutputs((lambda x, tokens, positions, project: project(x) + tokens,
                           lambda x, tokens, positions, project: positions * project(x + 1)))
  assert output(x, 10.0, 7.0, square) == 7 * ((3 + 1) ** 2 + 10)


def test_every_part_starts_as_itself_from_a_key_of_its_own():
  first, second = SoftPrompt(CONFIG, 2, Uniform(0.5)), SoftPrompt(CONFIG, 2, Uniform(0.5))
  sources = Sources(np.ones((20, 8), np.float32))
  both = Combined(CONFIG, {"a": first, "b": second, "lora": Lora(CONFIG, rank=2)})
  start = init_prompt(jax.random.key(0), PromptedT5(MODEL.backbone, both), sources)
  assert np.abs(start["a"]["embedding"] - start["b"]["embedding"]).min() > 0
  again = init_prompt(jax.random.key(0), PromptedT5(MODEL.backbone, Combined(
    CONFIG, {"b": second})), sources)
  np.testing.assert_array_equal(again["b"]["embedding"], start["b"]["embedding"])
  assert start["lora"]["encoder.attention.query"]["a"].std() > 0.1


def test_what_can_be_merged():
  lora, ia3 = Lora(CONFIG, rank=2, targets=".*/wo"), IA3(CONFIG)
  both = Combined(CONFIG, {"lora": lora, "ia3": ia3})
  params = prompt_params(both)
  backbone = trees.flatten(random_params(MODEL)["backbone"])
  merged = both.merge(backbone, params)
  path = "decoder/layers/mlp/wo/kernel"
  leaves = params["lora"]["decoder.mlp.wo"]
  # IA3 is around LoRA: it scales what LoRA reads too.
  near(merged[path], params["ia3"]["decoder.mlp.wo"]["input"][:, :, None] * (
    backbone[path] + 16 / 2 * leaves["a"] @ leaves["b"]), 1e-6)
  for part in (Adapter(CONFIG), SOFT):
    assert Combined(CONFIG, {"lora": lora, "other": part}).merge(backbone, params) is None


def test_the_gin_file():
  config.load(["commands/model.gin", "models/tiny.gin", "prompts/combined.gin",
               "inits/sampled_vocab.gin"], ["PROMPT_LENGTH = 7", "LORA_RANK = 3"])
  model = config.build(ModelConfig)
  assert list(model.prompt.parts) == ["soft", "lora"] and model.prompt.num_virtual_tokens == 7
  assert model.prompt.parts["lora"].rank == 3
  assert type(model.prompt.parts["soft"].initializer).__name__ == "SampledVocabulary"
  text = config.operative()
  assert "'lora': @" in text.replace("\n", " ") and hash(model.module()) == hash(model.module())


@pytest.mark.parametrize("parts, what", [
  ({}, "Combined.parts names no method"), (None, "Combined.parts names no method"),
  ({"soft": SoftPrompt}, "A part of Combined is no prompt method"),
  ({"config": SOFT}, "A part of Combined cannot have this name"),
  ({"merge": SOFT}, "A part of Combined cannot have this name"),
  ({"a/b": SOFT}, "A part of Combined cannot have this name"),
  ({"soft": SoftPrompt(T5Config(**{**vars(CONFIG), "emb_dim": 16}), 3)},
   "A part of Combined is for another backbone"),
  ({"a": SoftPrompt(CONFIG, 1, num_prompts=2), "b": SoftPrompt(CONFIG, 1, num_prompts=3)},
   "The parts of Combined have banks of different sizes")])
def test_mistakes(parts, what):
  with pytest.raises(UserError) as error:
    Combined(CONFIG, parts)
  assert error.value.what == what
