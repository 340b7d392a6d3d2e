"""Our model behind T5X's calls; no T5X is needed."""

import dataclasses

import descriptors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, trees
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5, add_virtual_tokens
from prompt_tuning.prompts.prefix import PrefixPrompt
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5
from prompt_tuning.t5x_bridge import names
from prompt_tuning.t5x_bridge.module import T5XModule, add_prompt_ids, freeze_all_but

CONFIG = dataclasses.replace(descriptors.CONFIG, scan_layers=False)
P, N = 3, 3
METHODS = {"soft": SoftPrompt(CONFIG, P), "bank": SoftPrompt(CONFIG, P, num_prompts=N),
           "prefix": PrefixPrompt(CONFIG, P, hidden=5),
           "prefix_bank": PrefixPrompt(CONFIG, P, num_prompts=N)}
IDS = jnp.array([2, 0])


def tokens():
  inputs = jnp.array([[5, 6, 7, 1, 0], [8, 9, 1, 0, 0]], jnp.int32)
  targets = jnp.array([[4, 3, 1], [7, 1, 0]], jnp.int32)
  shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  return inputs, shifted, targets


def as_t5x_has_it(method, inputs):
  return add_prompt_ids(inputs, IDS) if method.num_prompts > 1 else inputs


def native(method):
  """The same model and random parameters, of the native kind and by T5X's names."""
  model = PromptedT5(T5(CONFIG), method)
  params = descriptors.random_params(model)
  return model, params, names.to_t5x(params)


@pytest.mark.parametrize("name", METHODS)
def test_logits_are_those_of_the_native_model(name):
  method = METHODS[name]
  inputs, shifted, targets = tokens()
  model, params, in_t5x = native(method)
  found = T5XModule(T5(CONFIG), method).apply(
    {"params": in_t5x}, as_t5x_has_it(method, inputs), shifted, targets,
    encoder_segment_ids=None, decoder_segment_ids=None, encoder_positions=None,
    decoder_positions=None, decode=False, enable_dropout=False, rngs=None, mutable=False)
  wanted = model.apply({"params": params}, add_virtual_tokens(
    inputs, method.num_virtual_tokens), shifted, enable_dropout=False, prompt_ids=IDS)
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["bank", "prefix"])
def test_cached_decoding_in_t5xs_way_is_greedy(name):
  """The calls of T5X's `predict_batch_with_aux`, with a greedy loop in the place of its own."""
  method, length = METHODS[name], 4
  module = T5XModule(T5(CONFIG), method)
  model, params, in_t5x = native(method)
  inputs, _, _ = tokens()
  given = as_t5x_has_it(method, inputs)
  variables = {"params": in_t5x}
  encoded = module.apply(variables, given, enable_dropout=False, method=module.encode)
  ones = jnp.ones((2, length), jnp.int32)
  _, made = module.apply(variables, encoder_input_tokens=jnp.ones_like(given),
                         decoder_input_tokens=ones, decoder_target_tokens=ones,
                         mutable=["cache"], decode=True, enable_dropout=False)

  @jax.jit
  def step(cache, last):
    logits, new = module.apply(
      variables | {"cache": cache}, encoded, given, last, last, enable_dropout=False, decode=True,
      max_decode_length=length, mutable=["cache"], method=module.decode)
    return new["cache"], jnp.argmax(logits[:, 0], axis=-1)

  cache, last, found = made["cache"], jnp.zeros((2,), jnp.int32), []
  for _ in range(length):
    cache, last = step(cache, last[:, None])
    found.append(last)
  virtual = add_virtual_tokens(inputs, method.num_virtual_tokens)

  def native_step(module, last, cache):
    return module.decode_step(last, cache, virtual, IDS)

  cache = model.apply({"params": params}, virtual, length, IDS, method=model.start_decoding)
  wanted = decoding.greedy(
    lambda last, cache: model.apply({"params": params}, last, cache, method=native_step), cache,
    batch_size=2, max_length=length, eos_id=-1)
  np.testing.assert_array_equal(np.stack(found, axis=1), wanted)


def test_the_batch_is_the_second_axis_of_the_cache():
  """What `scan_layers` tells T5X's beams, in either layout of layers."""
  module = T5XModule(T5(CONFIG), METHODS["soft"])
  inputs, shifted, _ = tokens()
  _, made = jax.eval_shape(lambda: module.apply(
    {"params": native(METHODS["soft"])[2]}, inputs, shifted, shifted, mutable=["cache"],
    decode=True, enable_dropout=False))
  assert module.scan_layers
  assert {name: leaf.shape[1:2] for name, leaf in made["cache"].items()} == {
    "cached_key": (2,), "cached_value": (2,), "cache_index": ()}


def test_init_gives_t5xs_names_and_axes_and_takes_its_float_tokens():
  """T5X initialises for an evaluation without saying that tokens are integers."""
  module = T5XModule(T5(CONFIG), METHODS["bank"])
  floats = jnp.ones((2, 5), jnp.float32)
  made = jax.eval_shape(lambda key: module.init(key, floats, floats, floats, decode=False,
                                                enable_dropout=False), jax.random.key(0))
  assert {path: leaf.shape for path, leaf in trees.flatten(made["params"]).items()} == {
    path: leaf.shape for path, leaf in trees.flatten(native(METHODS["bank"])[2]).items()}
  assert {f"{path}_axes" for path in trees.flatten(made["params"])} == set(
    trees.flatten(made["params_axes"]))


def test_only_trained_leaves_have_a_gradient():
  method = METHODS["soft"]
  trained = names.Trained(backbone=CONFIG, prompt=method, trainable=("decoder/decoder_norm/.*",))
  module = T5XModule(T5(CONFIG), method)
  inputs, shifted, targets = tokens()

  def loss(params, cut):
    params = freeze_all_but(trained, params) if cut else params
    logits = module.apply({"params": params}, inputs, shifted, targets, enable_dropout=False)
    return jnp.sum(jnp.sin(logits))

  params = native(method)[2]
  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  found, whole = (trees.flatten(gradient(params, cut)) for cut in (True, False))
  for name, leaf in found.items():
    if name in trained.names:
      assert np.abs(leaf).max() > 0
      np.testing.assert_allclose(leaf, whole[name], rtol=1e-5, atol=1e-6)
    else:
      assert not np.asarray(leaf).any(), name


def test_packed_rows_are_an_error():
  module = T5XModule(T5(CONFIG), METHODS["soft"])
  inputs, shifted, targets = tokens()
  with pytest.raises(UserError, match="Packed rows(.*\n)*.*pack = False"):
    module.apply({"params": native(METHODS["soft"])[2]}, inputs, shifted, targets,
                 encoder_segment_ids=jnp.ones_like(inputs), enable_dropout=False)


def test_stacked_layers_are_an_error():
  module = T5XModule(T5(descriptors.CONFIG), METHODS["soft"])
  inputs, shifted, targets = tokens()
  with pytest.raises(UserError, match="T5X's T5s have one leaf a layer"):
    module.init(jax.random.key(0), inputs, shifted, targets)
