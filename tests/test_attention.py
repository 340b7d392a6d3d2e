"""The layers' own backward passes against what JAX derives from the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.interfaces import T5Config
from prompt_tuning.layers import RMSNorm, attend, matmul

# Rows, heads, queries, keys, head width: no two alike.
B, H, Q, S, K = 2, 3, 4, 5, 6
CONFIG = T5Config(vocab_size=20, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12,
                  num_encoder_layers=1, num_decoder_layers=1)


def normal(name: int, *shape):
  return jax.random.normal(jax.random.key(name), shape)


def plain_attention(queries, keys, values, bias, mask, keep):
  logits = jnp.einsum("bhqk,bhsk->bhqs", queries, keys) + bias + jnp.where(mask, 0.0, -1e10)
  return jnp.einsum("bhqs,bhsk->bhqk", keep * jax.nn.softmax(logits, axis=-1), values)


@pytest.mark.parametrize("bias_shape", [(1, H, Q, S), (1, 1, 1, S), (B, H, Q, S)])
@pytest.mark.parametrize("dropout", [False, True])
def test_attention_and_its_gradients(bias_shape, dropout):
  queries, keys, values = normal(0, B, H, Q, K), normal(1, B, H, S, K), normal(2, B, H, S, K)
  bias, wanted = normal(3, *bias_shape), normal(4, B, H, Q, K)
  mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, (B, 1, Q, S)), bool)
  mask = mask.at[1, 0, 2].set(False)  # A query that sees no key at all.
  keep = 2.0 * (normal(5, B, H, 1, S) > 0) if dropout else jnp.ones((1, 1, 1, 1))

  def both(function):
    def loss(queries, keys, values, bias):
      return jnp.sum(function(queries, keys, values, bias, mask, keep) * wanted)
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(queries, keys, values, bias)

  (ours, our_gradients), (plain, gradients) = both(attend), both(plain_attention)
  np.testing.assert_allclose(ours, plain, rtol=1e-5)
  for one, other in zip(our_gradients, gradients, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    assert np.abs(other).max() > 0


def test_attention_in_bfloat16_is_the_one_in_float32_rounded():
  wide = [normal(i, B, H, size, K) for i, size in enumerate((Q, S, S))]
  narrow = [x.astype(jnp.bfloat16) for x in wide]
  bias, mask = normal(3, 1, H, Q, S), jnp.ones((1, 1, 1, 1), bool)

  def gradients(arrays):
    keep = jnp.ones((1, 1, 1, 1), arrays[0].dtype)
    return jax.jit(jax.grad(
      lambda *x: jnp.sum(jnp.square(attend(*x, bias, mask, keep).astype(jnp.float32))),
      (0, 1, 2)))(*arrays)

  for one, other in zip(gradients(narrow), gradients(wide), strict=True):
    assert one.dtype == jnp.bfloat16
    np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.03 * np.abs(other).max())


def test_attention_keeps_one_array_of_the_size_of_its_weights():
  arrays = normal(0, B, H, Q, K), normal(1, B, H, S, K), normal(2, B, H, S, K)
  bias, mask, keep = jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1), bool), jnp.ones((1, 1, 1, 1))
  _, backward = jax.vjp(lambda *x: attend(*x, bias, mask, keep), *arrays)
  kept = [leaf.shape for leaf in jax.tree.leaves(backward)]
  assert kept.count((B, H, Q, S)) == 1


def test_norm_and_its_gradients():
  x, scale, wanted = 3.0 * normal(0, 2, 5, 8), normal(1, 8), normal(2, 2, 5, 8)
  module = RMSNorm(CONFIG)

  def ours(x, scale):
    return jnp.sum(module.apply({"params": {"scale": scale}}, x) * wanted)

  def plain(x, scale):
    size = jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + CONFIG.layer_norm_epsilon)
    return jnp.sum(x / size * scale[None, None] * wanted)

  (our_value, our_gradients), (value, gradients) = (
    jax.jit(jax.value_and_grad(f, (0, 1)))(x, scale) for f in (ours, plain))
  np.testing.assert_allclose(our_value, value, rtol=1e-5)
  for one, other in zip(our_gradients, gradients, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("rows", [(7,), (2, 5), (2, 3, 4)])
def test_products_with_kernels_and_their_gradients(rows):
  x, kernel, wanted = normal(0, *rows, 6), normal(1, 6, 8), normal(2, *rows, 8)
  ours, plain = (jax.jit(jax.grad(
    lambda x, kernel, product=product: jnp.sum(product(x, kernel) * wanted), (0, 1)))(x, kernel)
    for product in (matmul, jnp.dot))
  for one, other in zip(ours, plain, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
