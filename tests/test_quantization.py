"""Weights in few bits: against their definition in numpy, in the compiled program, and on load."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from descriptors import CASES, batch, loss, random_params

from prompt_tuning import quantization, trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.quantization import Quantized, Scheme
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5

WEIGHT = np.random.default_rng(0).normal(size=(3, 8, 6)).astype(np.float32)


def by_definition(weight, bits, groups):
  """Loops over layers, groups and columns."""
  largest = 2 ** (bits - 1) - 1
  found = np.zeros_like(weight)
  size = weight.shape[1] // groups
  for layer in range(weight.shape[0]):
    for group in range(groups):
      for column in range(weight.shape[2]):
        part = weight[layer, group * size:(group + 1) * size, column]
        scale = np.abs(part).max() / largest
        found[layer, group * size:(group + 1) * size, column] = np.rint(part / scale) * scale
  return found


@pytest.mark.parametrize("bits,group,groups", [(8, None, 1), (8, 4, 2), (4, None, 1), (4, 2, 4),
                                               (4, 5, 2)])
@pytest.mark.parametrize("xp", [np, jnp])
def test_values_and_scales_by_definition(bits, group, groups, xp):
  made = quantization.quantize(xp.asarray(WEIGHT), Scheme(bits, group), -2, xp)
  assert made.values.dtype == jnp.dtype(f"int{bits}") and made.scales.shape == (3, groups, 6)
  wanted = by_definition(WEIGHT, bits, groups)
  np.testing.assert_allclose(np.asarray(made), wanted, rtol=2e-6, atol=1e-7)
  # Half a step of the scale at most.
  steps = np.repeat(np.asarray(made.scales), 8 // groups, axis=1)
  assert (np.abs(np.asarray(made) - WEIGHT) <= 0.5001 * steps).all()


def test_a_column_of_zeros_stays_zero():
  made = quantization.quantize(jnp.zeros((4, 2)), Scheme(8), -2)
  assert not np.asarray(made).any() and np.isfinite(made.scales).all()


@pytest.mark.parametrize("group", [None, 4])
def test_products_and_their_gradient_are_those_of_the_weight(group):
  made = quantization.quantize(jnp.asarray(WEIGHT[0]), Scheme(8, group), -2)
  whole = np.asarray(made)
  x = np.random.default_rng(1).normal(size=(5, 2, 8)).astype(np.float32)
  y, pull = jax.vjp(lambda x: quantization.matmul(x, made), x)
  np.testing.assert_allclose(y, x @ whole, atol=1e-5)
  grad = np.random.default_rng(2).normal(size=y.shape).astype(np.float32)
  np.testing.assert_allclose(pull(jnp.asarray(grad))[0], grad @ whole.T, atol=1e-5)


def test_rows_of_a_table():
  made = quantization.quantize(jnp.asarray(WEIGHT[0]), Scheme(8), -1)
  ids = np.array([[3, 0], [7, 3]])
  np.testing.assert_array_equal(quantization.take(made, ids), np.asarray(made)[ids])


def quantised(params, scheme):
  def leaf(path, x):
    axis = quantization.summed_axis(path) if path.startswith("backbone/") else None
    return x if axis is None else quantization.quantize(jnp.asarray(x), scheme, axis)
  return trees.map_with_path(leaf, params)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_few_bits_is_the_model_of_their_weights(tied):
  """Loss and prompt gradient: scanned int8 leaves against the same numbers in float32."""
  model = CASES[0].model(logits_via_embedding=tied)
  few = quantised(random_params(model), Scheme(8))
  whole = trees.map_with_path(
    lambda _, x: np.asarray(x, np.float32) if isinstance(x, Quantized) else x, few)
  data = batch(model)
  both = [jax.jit(jax.value_and_grad(lambda prompt, backbone: loss(model, prompt, backbone, data)))
          (params["prompt"], params["backbone"]) for params in (few, whole)]
  for a, b in zip(*map(jax.tree.leaves, both), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("stored", ["int8", "int8/4"])
def test_no_stacked_leaf_is_expanded_in_the_compiled_step(stored):
  """Of `[L, in, out]` there are integers alone; one layer of it may be made within the scan."""
  model = CASES[0].model(dtype="bfloat16", remat="full")
  params = quantised(abstract_as_arrays(model), quantization.scheme_of(stored))
  data = batch(model)
  function = jax.grad(lambda prompt, backbone: loss(model, prompt, backbone, data))
  text = jax.jit(function).lower(params["prompt"], params["backbone"]).compile().as_text()
  stacks = {leaf.values.shape for path, leaf in trees.flatten(params).items()
            if isinstance(leaf, Quantized) and "/layers/" in path}
  for shape in stacks:
    kinds = set(re.findall(r"\b(\w+)\[" + ",".join(map(str, shape)) + r"\]", text))
    assert kinds == {"s8"}, (shape, kinds)


def abstract_as_arrays(model):
  return trees.map_with_path(lambda _, x: jnp.ones(x.shape, x.dtype), abstract_params(model))


@pytest.mark.parametrize("stored", ["int8", "int4/8"])
def test_a_checkpoint_is_quantised_while_it_is_read(tmp_path, stored):
  params = small_models.save_backbone(tmp_path / "backbone")
  config = small_models.model(initial_checkpoint_path=str(tmp_path / "backbone"),
                              frozen_dtype=stored)
  scheme = quantization.scheme_of(stored)
  found = trees.flatten(config.load_backbone(0))
  shapes = trees.flatten(config.backbone_shapes())
  for path, leaf in trees.flatten(params).items():
    axis = quantization.summed_axis(path)
    assert jax.tree.map(jnp.shape, found[path]) == jax.tree.map(jnp.shape, shapes[path])
    if axis is None:
      np.testing.assert_array_equal(found[path], leaf)
    else:
      wanted = quantization.quantize(jnp.asarray(leaf), scheme, axis)
      np.testing.assert_array_equal(found[path].values, wanted.values)
      np.testing.assert_allclose(found[path].scales, wanted.scales, rtol=1e-6)


def test_bytes_of_few_bits_and_the_numbers_they_stand_for():
  xxl = T5Config(vocab_size=32128, emb_dim=4096, num_heads=64, head_dim=64, mlp_dim=10240,
                 num_encoder_layers=24, num_decoder_layers=24, dtype="bfloat16")
  total = trees.count(abstract_params(PromptedT5(T5(xxl)))["backbone"])
  for stored, a_number in (("bfloat16", 2.0), ("int8", 1.0), ("int4", 0.5)):
    model = dataclasses.replace(small_models.model(prompt=False), backbone=xxl,
                                frozen_dtype=stored)
    shapes = model.backbone_shapes()
    assert trees.count(shapes) == total == 11_135_332_352
    # Scales and norms are a thousandth.
    assert 0.999 <= trees.num_bytes(shapes) / (a_number * total) <= 1.003


@pytest.mark.parametrize("stored", ["int3", "int8/", "int8/1", "bfloat16/4"])
def test_an_unknown_type_is_an_error(stored):
  with pytest.raises(UserError, match="FROZEN_DTYPE is unknown") as error:
    small_models.model(frozen_dtype=stored)
  assert "'int4/64'" in str(error.value)


@pytest.mark.parametrize("size, group, groups", [
  (512, 64, 8), (512, 100, 8), (15, 4, 5), (16, 100, 1), (16, None, 1), (7, 4, 7)])
def test_groups_are_equal_and_as_large_as_they_may_be(size, group, groups):
  assert Scheme(4, group).groups(size) == groups


def test_weights_that_have_no_groups_are_an_error():
  odd = dataclasses.replace(small_models.CONFIG, mlp_dim=17)
  with pytest.raises(UserError, match="nothing of 2 to 4 divides F = 17") as error:
    ModelConfig(backbone=odd, initial_checkpoint_path="random", frozen_dtype="int8/4")
  assert "--gin.FROZEN_DTYPE=int8" in str(error.value)
  ModelConfig(backbone=odd, initial_checkpoint_path="random", frozen_dtype="int8")


@pytest.mark.parametrize("trained", ["table", "output"])
def test_a_prompt_starts_where_one_of_both_tables_is_trained(trained):
  config = small_models.model(frozen_dtype="int8")
  assert not small_models.CONFIG.logits_via_embedding
  plain = small_models.backbone(3)
  few = quantised({"backbone": plain}, Scheme(8))["backbone"]
  mixed = {**few, "token_embedder": (plain if trained == "table" else few)["token_embedder"],
           "decoder": {**few["decoder"], "logits_dense": (
             plain if trained == "output" else few)["decoder"]["logits_dense"]}}
  for made, wanted in zip(jax.tree.leaves(config.start_prompt(mixed, 0)),
                          jax.tree.leaves(config.start_prompt(plain, 0)), strict=True):
    np.testing.assert_array_equal(made, wanted)
