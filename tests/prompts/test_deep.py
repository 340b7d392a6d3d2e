"""Deep prompts against T5 in plain numpy, against a prompt of the first layer only, and counted."""

import dataclasses

import jax
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
from numpy_t5 import NumpyT5

from benchmarks.shapes import Shapes, theory_flop
from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.plan.hlo import matmul_flop
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.deep import DeepPrompt
from prompt_tuning.prompts.initializers import Sources, Text
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


class DeepNumpy(NumpyT5):
  """Changes the virtual positions ahead of every block but the first."""

  def prompted(self, tokens, table, mode):
    x = self.flat["token_embedder/embedding"][np.maximum(tokens, 0)]
    bias = self.bias("encoder", len(x))
    allowed = np.tile(tokens != 0, (len(x), 1))
    for i in range(self.config.num_encoder_layers):
      for position, token in enumerate(tokens):
        if token < 0:
          keep = x[position] if mode == "add" and i > 0 else 0.0
          x[position] = keep + table[i][-1 - token]
      path = f"encoder/layers_{i}"
      y = self.norm(path + "/pre_attention_layer_norm", x)
      x = x + self.attend(path + "/attention", y, y, allowed, bias, None)
      x = x + self.mlp(path + "/mlp", self.norm(path + "/pre_mlp_layer_norm", x))
    return self.norm("encoder/encoder_norm", x)


@pytest.mark.parametrize("mode,in_front", [("replace", True), ("add", False)])
def test_a_bank_equals_numpy(mode, in_front):
  """Each row with its own prompt, ahead of the input or in it."""
  prompt = DeepPrompt(CONFIG, LENGTH, mode, num_prompts=NUM_PROMPTS)
  model = PromptedT5(T5(CONFIG), prompt, in_front)
  params, data = random_params(model), dict(batch(model))
  if not in_front:
    data["tokens"] = data["tokens"][:, [3, 4, 2, 0, 5, 1, 6, 7, 8, 9]]
  encoded, logits = forward(model)(params, data)
  flat = trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])
  slow = DeepNumpy(flat, CONFIG)
  for row, prompt_id in enumerate(data["prompt_ids"]):
    tokens = data["tokens"][row]
    wanted = slow.prompted(tokens, params["prompt"]["states"][prompt_id], mode)
    near(encoded[row], wanted)
    near(logits[row], slow.decode(data["decoder_tokens"][row], wanted, tokens != 0))


def test_nothing_added_after_the_first_layer_is_a_soft_prompt():
  deep = PromptedT5(T5(CONFIG), DeepPrompt(CONFIG, LENGTH, "add"))
  soft = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, LENGTH))
  params, data = random_params(soft), batch(soft)
  rows = params["prompt"]["embedding"]
  neutral = params | {"prompt": {"states": np.stack([rows, 0 * rows])}}
  wanted = forward(soft)(params, data)
  for ours, theirs in zip(forward(deep)(neutral, data), wanted, strict=True):
    near(ours, theirs)
  other = params | {"prompt": {"states": np.stack([rows, rows])}}
  assert np.abs(forward(deep)(other, data)[1] - wanted[1]).max() > 1e-2


def test_every_layer_of_every_prompt_starts_by_the_initialiser():
  table = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
  sources = Sources(table, lambda text: [3 + len(w) for w in text.split()])
  prompt = DeepPrompt(CONFIG, LENGTH, initializer=Text("a word"), num_prompts=2)
  shape = {"states": np.zeros((2, 2, LENGTH, 8), np.float32)}
  started = prompt.initial_params(jax.random.key(0), shape, sources)
  for rows in np.asarray(started["states"]).reshape(4, LENGTH, 8):
    np.testing.assert_array_equal(rows, table[[4, 7, 4]])


def test_the_step_has_the_products_of_the_docstring():
  config = dataclasses.replace(CONFIG, num_decoder_layers=2)
  model = PromptedT5(T5(config), DeepPrompt(config, LENGTH))
  shapes = abstract_params(model)
  step = loss_and_gradient(model).lower(shapes["prompt"], shapes["backbone"], batch(model))
  counted = matmul_flop(step.compile().as_text())
  plain = theory_flop(Shapes(rows=4, inputs=7, prompt=0, targets=4, width=8, heads=2, head_width=3,
                             mlp=12, layers=2, vocabulary=20), "prompt_step")
  rows, real, targets, width, joined, mlp, layers = 4, 7, 4, 8, 6, 12, 2
  positions = LENGTH + real
  encoder = (4 * rows * LENGTH * layers * (4 * width * joined + 3 * width * mlp)
             + 12 * rows * joined * layers * (positions**2 - real**2))
  decoder = (8 * rows * LENGTH * width * joined + 12 * rows * targets * LENGTH * joined) * layers
  placing = 4 * rows * positions * LENGTH * width * layers
  theory = plain + encoder + decoder + placing
  assert 0.99 * theory <= counted <= 1.01 * theory


@pytest.mark.parametrize("fields,what,fix", [
  (dict(length=0), "DeepPrompt.length is not a count", "PROMPT_LENGTH"),
  (dict(num_prompts=None), "DeepPrompt.num_prompts is not a count", "NUM_PROMPTS"),
  (dict(mode="replac"), "DeepPrompt.mode is unknown", "did you mean 'replace'?")])
def test_settings_are_checked(fields, what, fix):
  with pytest.raises(UserError) as error:
    DeepPrompt(CONFIG, **{"length": LENGTH} | fields)
  assert error.value.what == what and fix in error.value.fix


def test_a_bank_needs_prompt_ids():
  model = PromptedT5(T5(CONFIG), DeepPrompt(CONFIG, LENGTH, num_prompts=NUM_PROMPTS))
  with pytest.raises(UserError, match="without prompt ids"):
    forward(model)(random_params(model), batch(model) | {"prompt_ids": None})
