"""Buckets against the definition, and the corners of attention and dense layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_t5 import bucket

from prompt_tuning.interfaces import KeyValues, T5Config
from prompt_tuning.layers import Attention, Dense, RMSNorm, relative_position_bucket

CONFIG = T5Config(vocab_size=20, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12,
                  num_encoder_layers=1, num_decoder_layers=1)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both_ways", "one_way"])
@pytest.mark.parametrize("num_buckets,max_distance", [(32, 128), (8, 10), (16, 1024), (6, 37)])
def test_buckets_are_the_definition(num_buckets, max_distance, bidirectional):
  offsets = np.arange(-2 * max_distance, 2 * max_distance + 1)
  ours = relative_position_bucket(offsets, bidirectional=bidirectional, num_buckets=num_buckets,
                                  max_distance=max_distance)
  wanted = [bucket(int(x), bidirectional, num_buckets, max_distance) for x in offsets]
  np.testing.assert_array_equal(ours, wanted)
  # All are in use, but for distance 0 of the direction that has none.
  assert len(set(wanted)) == num_buckets - (1 if bidirectional else 0)


def test_a_row_without_any_visible_key_is_finite():
  module = Attention(CONFIG)
  x = jax.random.normal(jax.random.key(0), (1, 2, 8))
  keys = jax.random.normal(jax.random.key(1), (1, 2, 4, 3))
  mask = jnp.zeros((1, 1, 2, 4), bool)
  y, _ = jax.jit(module.init_with_output)(jax.random.key(2), x, keys, keys, mask, None, {})
  assert np.isfinite(y).all()


def test_extra_keys_of_one_row_serve_the_whole_batch():
  module = Attention(CONFIG)
  x = jax.random.normal(jax.random.key(0), (3, 2, 8))
  keys = jax.random.normal(jax.random.key(1), (3, 2, 4, 3))
  mask = jnp.ones((1, 1, 1, 4), bool)
  one = jax.random.normal(jax.random.key(2), (1, 5, 2, 3))
  extra = KeyValues(one, one + 1)
  each = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=0), extra)

  def attend(key):
    y, params = module.init_with_output(key, x, keys, keys, mask, None, {}, extra)
    return (y, module.apply(params, x, keys, keys, mask, None, {}, each),
            module.apply(params, x, keys, keys, mask, None, {}))

  shared, repeated, without = jax.jit(attend)(jax.random.key(3))
  np.testing.assert_allclose(shared, repeated, rtol=1e-6)
  assert np.abs(shared - without).max() > 1e-3


def test_initial_query_kernel_carries_the_scale_of_the_logits():
  """Raffel et al. scale by K^-0.5 in the initial query kernel, not in the logits."""
  config = T5Config(vocab_size=20, emb_dim=256, num_heads=8, head_dim=64, mlp_dim=12,
                    num_encoder_layers=1, num_decoder_layers=1)
  x, keys = jnp.ones((1, 1, 256)), jnp.ones((1, 1, 8, 64))
  module = Attention(config)

  def init(key):
    params = module.init(key, x, keys, keys, jnp.ones((1, 1, 1, 1), bool), None, {})["params"]
    # The projections of keys are made by the method that uses them.
    return params | module.init(key, x, {}, method=module.keys_values)["params"]

  params = jax.jit(init)(jax.random.key(0))
  spread = {name: float(jnp.std(leaf["kernel"].value)) for name, leaf in params.items()}
  assert spread["query"] == pytest.approx(256**-0.5 * 64**-0.5, rel=0.02)
  assert spread["key"] == pytest.approx(256**-0.5, rel=0.02)
  assert spread["value"] == pytest.approx(256**-0.5, rel=0.02)
  assert spread["out"] == pytest.approx(512**-0.5, rel=0.02)


def test_norm_of_large_half_precision_values_is_finite():
  config = T5Config(vocab_size=20, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12,
                    num_encoder_layers=1, num_decoder_layers=1, dtype="float16")
  x = jnp.full((1, 8), 6e4, jnp.float16)
  y, _ = RMSNorm(config).init_with_output(jax.random.key(0), x)
  assert y.dtype == jnp.float16
  np.testing.assert_allclose(y, 1.0, rtol=1e-3)


def test_a_hook_stands_around_the_projection():
  x = jax.random.normal(jax.random.key(0), (2, 8))
  module = Dense(CONFIG, 6, ("embed", "mlp"))
  y, params = module.init_with_output(jax.random.key(1), x)
  def hook(x, project):
    return project(3 * x) + x.sum(-1, keepdims=True)

  hooked = module.apply(params, x, hook)
  np.testing.assert_allclose(hooked, 3 * y + x.sum(-1, keepdims=True), rtol=1e-5)
