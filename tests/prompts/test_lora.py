"""LoRA against a numpy T5 with W + (alpha / R) A B as its kernels, and its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import (
  CASES,
  CONFIG,
  batch,
  forward,
  random_params,
  unstacked,
)
from numpy_t5 import NumpyT5

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.optimizers import AdamW
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.lora import AddLowRank, Factors, Lora
from prompt_tuning.prompts.projections import choose
from prompt_tuning.train_state import LossConfig, make_train_step, new_state
from prompt_tuning.trees import plan_split

MODEL = {case.name: case for case in CASES}["lora"].model()
# Of the row in descriptors.py: R 2, alpha 1; keys from layer 1 on.
SCALE = 0.5


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def expected_kernels(backbone, prompt):
  """The unstacked backbone, flat, with the products added by hand."""
  flat = dict(trees.flatten(unstacked({"backbone": backbone})["backbone"]))
  for name, leaves in prompt.items():
    stack, module, projection = name.split(".")
    first = 1 if projection == "key" else 0
    for row, (a, b) in enumerate(zip(leaves["a"], leaves["b"], strict=True)):
      path = f"{stack}/layers_{first + row}/{module}/{projection}/kernel"
      flat[path] = flat[path] + SCALE * a @ b
  return flat


def test_hooks_and_both_merged_layouts_equal_numpy():
  params, data = random_params(MODEL), batch(MODEL)
  wanted = expected_kernels(params["backbone"], params["prompt"])
  for backbone in (trees.flatten(params["backbone"]),
                   trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])):
    merged = MODEL.prompt.merge(backbone, params["prompt"])
    assert merged.keys() == backbone.keys() and merged is not backbone
    flat = trees.flatten(unstacked({"backbone": trees.unflatten(merged)})["backbone"])
    for path, leaf in wanted.items():
      near(flat[path], leaf, 1e-6)
  encoded, logits = forward(MODEL)(params, data)
  slow = NumpyT5(wanted, CONFIG)
  for row, tokens in enumerate(data["tokens"]):
    real = slow.encode(wanted["token_embedder/embedding"][tokens], tokens != 0)
    near(encoded[row], real)
    near(logits[row], slow.decode(data["decoder_tokens"][row], real, tokens != 0))


def test_without_its_product_it_is_the_plain_model():
  params, data = random_params(MODEL), batch(MODEL)
  prompt = {name: {"a": leaves["a"], "b": 0 * leaves["b"]}
            for name, leaves in params["prompt"].items()}
  plain = forward(PromptedT5(MODEL.backbone))({"backbone": params["backbone"]}, data)
  for hooked, alone in zip(forward(MODEL)({**params, "prompt": prompt}, data), plain, strict=True):
    near(hooked, alone, 1e-6)


def test_the_start():
  projection = choose(CONFIG, ["decoder/mlp/wo"], "x")[0]
  boxed = Factors(projection, rank=3000).init(jax.random.key(0))
  a, b = (boxed["params"][name].unbox() for name in "ab")
  assert a.shape == (3, 12, 3000) and b.shape == (3, 3000, 8) and not b.any()
  # 9,000 draws for each of 12 rows; a gaussian's 4th moment is 3 squared variances.
  np.testing.assert_allclose(np.square(a).mean(), 1 / 12, rtol=0.02)
  np.testing.assert_allclose((a**4).mean(), 3 / 144, rtol=0.05)


def test_dropout_of_the_hook():
  x, w = jnp.ones((2, 1000)), jnp.zeros((1000, 1000))
  hook = AddLowRank(jnp.eye(1000), jnp.eye(1000), jax.random.key(0), scale=2.0, dropout=0.25)
  y = np.asarray(hook(x, lambda x: x @ w))
  assert np.allclose(np.unique(y), [0, 2 / 0.75])
  np.testing.assert_allclose((y == 0).mean(), 0.25, atol=0.04)
  np.testing.assert_array_equal(hook.replace(keys=None)(x, lambda x: x @ w), 2 * x)


def test_a_step_trains_it_with_dropout_beside_a_slice_of_the_backbone():
  lora = Lora(CONFIG, rank=2, alpha=1.0, dropout=0.5, targets=("decoder/mlp/wo[1:]",))
  model = PromptedT5(MODEL.backbone, lora)
  data = batch(model)
  data = {"encoder_input_tokens": data["tokens"], "decoder_input_tokens": data["decoder_tokens"],
          "decoder_target_tokens": data["decoder_tokens"],
          "decoder_loss_weights": np.ones((4, 4), np.float32)}
  split = plan_split(abstract_params(model), ("decoder/layers/mlp/wi_0/.*[2:]",))
  params = jax.tree.map(jnp.asarray, random_params(model))
  trainable, frozen = split.split(params)
  optimizer = AdamW(learning_rate=1e-3)
  transformation = optimizer.build(trainable)
  state = new_state(trainable, transformation)
  step = jax.jit(make_train_step(model, split, optimizer, transformation, LossConfig(), 0))
  (after, first), (_, again), (_, other) = (
    step(state.replace(step=jnp.int32(i)), frozen, data) for i in (0, 0, 1))
  assert first["loss"] == again["loss"] != other["loss"]
  moved = [path for path, leaf in trees.flatten(after.trainable).items()
           if np.all(np.asarray(leaf) != np.asarray(trees.flatten(trainable)[path]))]
  assert moved == ["backbone/decoder/layers/mlp/wi_0/kernel", "prompt/decoder.mlp.wo/a",
                   "prompt/decoder.mlp.wo/b"]


@pytest.mark.parametrize("dropout, enabled", [(0.0, True), (0.1, False), (0.1, True)])
def test_random_numbers_are_drawn_only_by_dropout(dropout, enabled):
  lora = Lora(CONFIG, rank=1, dropout=dropout, targets="decoder/mlp/.*")
  values = jax.eval_shape(lambda key: lora.init_with_output(key, None, enabled)[0],
                          jax.random.key(0))
  keys = [hook.keys for hook in values.decoder.projections.values()]
  assert lora.has_dropout == (dropout > 0) and len(keys) == 3
  assert [None if key is None else key.shape for key in keys] == (
    [(3,)] * 3 if dropout and enabled else [None] * 3)


@pytest.mark.parametrize("field, value, what", [
  ("rank", 0, "Lora.rank is not a rank"), ("rank", 2.5, "Lora.rank is not a rank"),
  ("alpha", 0.0, "Lora.alpha is not a scale"),
  ("dropout", 1.0, "Lora.dropout is not a probability"),
  ("targets", "quary", "A pattern of Lora.targets matches no projection")])
def test_mistakes(field, value, what):
  with pytest.raises(UserError) as error:
    Lora(CONFIG, **{field: value})
  assert error.value.what == what
