"""Losses against T5X's stated numbers, numpy closed forms and the derivative of the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.losses import cross_entropy, sequence_log_likelihood

TARGETS = np.array([[3, 1, 6, 0], [2, 2, 0, 0]], np.int32)
WEIGHTS = TARGETS != 0
LOGITS = np.random.default_rng(0).normal(0.0, 3.0, (2, 4, 7)).astype(np.float32)


def definition(logits, targets, weights, z_loss, label_smoothing):
  """T5X's loss as it is defined: soft one-hot targets, log_softmax, in the dtype given."""
  vocab_size = logits.shape[-1]
  off = label_smoothing / (vocab_size - 1)
  one_hot = jax.nn.one_hot(targets, vocab_size, dtype=logits.dtype)
  soft = one_hot * (1.0 - label_smoothing) + (1.0 - one_hot) * off
  entropy = -sum(p * np.log(p) for p in [1.0 - label_smoothing] + [off] * (vocab_size - 1) if p)
  loss = -jnp.sum(soft * jax.nn.log_softmax(logits), axis=-1) - entropy
  log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
  return jnp.sum(weights.astype(logits.dtype) * (loss + z_loss * log_z**2))


def test_score_batch_golden_of_t5x():
  logits = jnp.arange(24, dtype=jnp.float32).reshape(2, 4, 3)
  targets = jnp.array([[1, 2, 1, 0], [0, 1, 0, 2]], jnp.int32)
  weights = jnp.array([[1, 1, 1, 0], [0, 1, 0, 1]], jnp.int32)
  scores = sequence_log_likelihood(logits, targets, weights)
  # T5X compares at 1e-4: its stated digits are themselves off by 6e-5.
  np.testing.assert_allclose(scores, [-3.222973, -1.815315], rtol=1e-4)
  log_z = np.log(np.exp([0.0, 1.0, 2.0]).sum())
  np.testing.assert_allclose(scores, [4 - 3 * log_z, 3 - 2 * log_z], rtol=1e-6)


def test_weight_sum_is_the_number_of_real_target_tokens():
  targets = jnp.array([[1, 2, 3, 4, 0], [5, 6, 0, 0, 0]], jnp.int32)
  loss = cross_entropy(jnp.zeros((2, 5, 7)), targets, targets != 0)
  assert loss.weight_sum == 6.0
  # Uniform logits: every token costs log V, and log_z = log V too.
  np.testing.assert_allclose(loss.total, 6 * (np.log(7) + 1e-4 * np.log(7) ** 2), rtol=1e-6)
  np.testing.assert_allclose(loss.z_loss, 6e-4 * np.log(7) ** 2, rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
def test_equals_the_definition_in_numpy(z_loss, label_smoothing):
  loss = cross_entropy(LOGITS, TARGETS, WEIGHTS, z_loss=z_loss, label_smoothing=label_smoothing)
  x = LOGITS.astype(np.float64)
  log_z = np.log(np.exp(x).sum(-1))
  off = label_smoothing / 6
  q = np.where(np.arange(7) == TARGETS[..., None], 1 - label_smoothing, off)
  log_q = np.log(np.where(q > 0, q, 1.0))
  divergence = (q * (log_q - x + log_z[..., None])).sum(-1)
  per_token = WEIGHTS * (divergence + z_loss * log_z**2)
  np.testing.assert_allclose(loss.per_token, per_token, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(loss.total, per_token.sum(), rtol=1e-5)
  np.testing.assert_allclose(loss.z_loss, (WEIGHTS * z_loss * log_z**2).sum(), rtol=1e-5)
  assert loss.total.dtype == loss.per_token.dtype == jnp.float32


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_gradient_is_that_of_the_definition(z_loss, label_smoothing):
  def ours(logits):
    return cross_entropy(logits, TARGETS, WEIGHTS, z_loss=z_loss,
                         label_smoothing=label_smoothing).total

  wanted = jax.grad(lambda x: definition(x, TARGETS, jnp.asarray(WEIGHTS), z_loss,
                                         label_smoothing))(LOGITS)
  np.testing.assert_allclose(jax.jit(jax.grad(ours))(LOGITS), wanted, rtol=1e-5, atol=1e-6)


def test_gradient_closed_form_of_each_output():
  softmax = np.exp(LOGITS.astype(np.float64))
  z = softmax.sum(-1, keepdims=True)
  softmax /= z
  weights = np.array([[0.5, 2.0, 1.0, 0.0], [1.0, 3.0, 0.0, 0.0]], np.float32)
  z_gradient = jax.grad(lambda x: cross_entropy(x, TARGETS, weights, z_loss=0.2).z_loss)(LOGITS)
  np.testing.assert_allclose(z_gradient, weights[..., None] * 0.4 * np.log(z) * softmax,
                             rtol=1e-5, atol=1e-6)
  score_gradient = jax.grad(
      lambda x: sequence_log_likelihood(x, TARGETS, weights)[1])(LOGITS)
  wanted = weights[..., None] * (np.eye(7)[TARGETS] - softmax) * np.array([0, 1])[:, None, None]
  np.testing.assert_allclose(score_gradient, wanted, rtol=1e-5, atol=1e-6)


def test_large_logits_and_bfloat16():
  logits = jnp.array([[[3e4, 0.0, -3e4], [500.0, 500.0, 0.0]]], jnp.float32)
  targets = jnp.array([[1, 0]], jnp.int32)
  loss = cross_entropy(logits, targets, jnp.ones((1, 2)), z_loss=0.0)
  np.testing.assert_allclose(loss.per_token, [[3e4, np.log(2)]], rtol=1e-5)

  half = jnp.asarray(LOGITS, jnp.bfloat16)
  value, gradient = jax.value_and_grad(
      lambda x: cross_entropy(x, TARGETS, WEIGHTS).total)(half)
  exact = half.astype(jnp.float32)
  np.testing.assert_allclose(value, cross_entropy(exact, TARGETS, WEIGHTS).total, rtol=1e-6)
  assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16


def test_gradient_program_materialises_no_scatter():
  gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, TARGETS, WEIGHTS).total))
  assert "scatter" not in gradient.lower(LOGITS).as_text()


@pytest.mark.parametrize("setting,message", [
    ({"z_loss": -1.0}, "z_loss is negative\n  found:  -1.0"),
    ({"label_smoothing": 1.0}, "label_smoothing is not a share\n  found:  1.0"),
    ({"label_smoothing": -0.1}, "wanted: 0 <= label_smoothing < 1"),
])
def test_settings_are_checked(setting, message):
  with pytest.raises(UserError) as error:
    cross_entropy(LOGITS, TARGETS, WEIGHTS, **setting)
  assert message in str(error.value)
