"""Where virtual tokens stand: in front, anywhere, masked, once a segment; and their ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CASES, LENGTH, batch, forward, loss_and_gradient, random_params
from numpy_t5 import NumpyT5

from prompt_tuning import trees
from prompt_tuning.prompted import PromptedT5, add_virtual_tokens, virtual_tokens

CASE = {case.name: case for case in CASES}


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["soft", "soft_bank"])
def test_masked_prompt_equals_the_plain_model(name):
  """T5's positions are relative, so hidden positions ahead change nothing."""
  model = CASE[name].model()
  params, data = random_params(model), batch(model)
  hidden = data["tokens"].copy()
  hidden[:, :LENGTH] = 0
  encoded, logits = forward(model)(params, {**data, "tokens": hidden})
  plain = forward(PromptedT5(model.backbone))({"backbone": params["backbone"]},
                                              {**data, "tokens": data["tokens"][:, LENGTH:]})
  near(encoded[:, LENGTH:], plain[0])
  near(logits, plain[1])
  assert np.abs(forward(model)(params, data)[1] - plain[1]).max() > 0.01


def test_anywhere_equals_in_front():
  model, anywhere = CASE["soft"].model(), CASE["soft"].model(prompt_in_front=False)
  params = random_params(model)
  arguments = params["prompt"], params["backbone"], batch(model)
  value, gradient = loss_and_gradient(model)(*arguments)
  other_value, other_gradient = loss_and_gradient(anywhere)(*arguments)
  near(other_value, value)
  jax.tree.map(near, other_gradient, gradient)


def test_anywhere_equals_in_front_for_a_bank():
  model, anywhere = CASE["soft_bank"].model(), CASE["soft_bank"].model(prompt_in_front=False)
  params, data = random_params(model), batch(model)
  for ours, wanted in zip(forward(anywhere)(params, data), forward(model)(params, data),
                          strict=True):
    near(ours, wanted)


def test_prompt_inside_the_text():
  """Rows of the prompt among words, out of order and one left out."""
  model = CASE["soft"].model(prompt_in_front=False, scan_layers=False)
  params = random_params(model)
  tokens = np.array([[5, -3, 7, 9, -1, 4, 0, 0]], np.int32)
  flat = trees.flatten(params["backbone"])
  table, prompt = flat["token_embedder/embedding"], params["prompt"]["embedding"]
  x = np.stack([table[5], prompt[2], table[7], table[9], prompt[0], table[4], table[0], table[0]])
  encoded = jax.jit(lambda: model.apply({"params": params}, tokens, method=model.encode))()
  near(encoded[0], NumpyT5(flat, model.backbone.config).encode(x, tokens[0] != 0))


@pytest.mark.parametrize("name", ["soft", "key_values"])
def test_packed_segments_do_not_see_each_other(name):
  model = CASE[name].model(prompt_in_front=False)
  params = {"params": random_params(model)}
  prompt = [] if name == "key_values" else [-1, -2, -3]
  inputs, targets = ([4, 9, 5, 13], [7, 2]), ([3, 8, 6], [11, 12, 10, 5])

  def padded(rows, length):
    return np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int32)

  def segments(rows, length):
    return padded([[i + 1 for i, row in enumerate(rows) for _ in row]], length)

  rows = [[*prompt, *row] for row in inputs]
  ids = np.array([1, 1])
  apart = jax.jit(lambda: model.apply(
    params, padded(rows, 7), padded(targets, 4), enable_dropout=False, prompt_ids=ids))()
  together = jax.jit(lambda: model.apply(
    params, padded([sum(rows, [])], 14), padded([sum(targets, [])], 9),
    encoder_segment_ids=segments(rows, 14), decoder_segment_ids=segments(targets, 9),
    enable_dropout=False, prompt_ids=ids[:1]))()
  near(together[0, :3], apart[0, :3])
  near(together[0, 3:7], apart[1])


def test_virtual_ids():
  np.testing.assert_array_equal(virtual_tokens(3), [-1, -2, -3])
  tokens = jnp.array([[5, 6, 0], [7, 0, 0]])
  ahead = add_virtual_tokens(tokens, 2)
  np.testing.assert_array_equal(ahead, [[-1, -2, 5, 6, 0], [-1, -2, 7, 0, 0]])
  np.testing.assert_array_equal(add_virtual_tokens(tokens, 0), tokens)


def test_ids_beyond_the_table_read_its_edge():
  model = PromptedT5(CASE["soft"].model().backbone)
  params = {"params": random_params(model)}

  tokens = np.array([[4, 19], [4, 99], [4, -7]], np.int32)
  encoded = jax.jit(lambda: model.apply(params, tokens, method=model.encode))()
  np.testing.assert_array_equal(encoded[0], encoded[1])
  assert np.isfinite(encoded[2]).all()
