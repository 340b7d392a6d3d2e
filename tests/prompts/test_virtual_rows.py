"""Rows at the positions of virtual tokens, and their gradient, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from prompt_tuning.prompts.method import virtual_rows

TOKENS = np.array([[-1, 7, -3, 0], [5, -2, -1, 9], [4, 4, 4, 1]], np.int32)
P, D = 3, 5


@pytest.mark.parametrize("bank", [1, 3])
def test_rows_and_gradient_by_loops(bank):
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(bank, P, D)).astype(np.float32)
  given = rng.normal(size=(3, 4, D)).astype(np.float32)
  placed, pull = jax.vjp(lambda rows: virtual_rows(jnp.asarray(TOKENS), rows), rows)
  wanted, gradient = np.zeros((3, 4, D)), np.zeros((bank, P, D))
  for b, s in np.ndindex(TOKENS.shape):
    if TOKENS[b, s] < 0:
      row = -1 - TOKENS[b, s]
      wanted[b, s] = rows[b % bank, row]
      gradient[b % bank, row] += given[b, s]
  np.testing.assert_array_equal(placed, wanted.astype(np.float32))
  np.testing.assert_allclose(pull(given)[0], gradient, atol=1e-6)


def test_half_precision_loses_nothing():
  rows = np.random.default_rng(1).normal(size=(1, P, D)).astype(jnp.bfloat16)
  placed = np.asarray(virtual_rows(jnp.asarray(TOKENS), jnp.asarray(rows)))
  np.testing.assert_array_equal(placed[0, 0], rows[0, 0])
  np.testing.assert_array_equal(placed[1, 1], rows[0, 1])


@pytest.mark.parametrize("bank", [1, 3])
def test_no_device_rounds_the_rows_or_their_gradient(bank):
  """By default GPUs multiply float32 in 10 bits, TPUs in 8: here CPUs show what was asked for."""
  def products(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "dot_general":
        yield equation.params["precision"]
      for inner in jaxprs_in_params(equation.params):
        yield from products(inner)

  rows = np.ones((bank, P, D), np.float32)
  both = jax.value_and_grad(lambda rows: virtual_rows(jnp.asarray(TOKENS), rows).sum())
  found = list(products(jax.make_jaxpr(both)(rows).jaxpr))
  assert found == [(jax.lax.Precision.HIGHEST,) * 2] * 2
