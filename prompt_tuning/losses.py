"""Cross-entropy with z-loss, as T5X defines it, without a one-hot array over the vocabulary.

A target token t with logits x costs

  -sum_v q_v log softmax(x)_v  -  entropy(q)  +  z_loss * log_z^2,      log_z = logsumexp(x)

where q is the target smoothed: 1 - s on t and s / (V - 1) elsewhere. The z-loss keeps log_z near
zero, so that bfloat16 logits stay where they are precise (Mesh TensorFlow; T5X `losses.py`). The
entropy of q does not depend on x; subtracting it lets a perfect model reach zero.

Tensors:  logits [B, U, V] of any float dtype, targets [B, U] int32, weights [B, U] (in T5:
`targets != 0`). Everything is computed in float32. The backward pass keeps only the logits and
log_z, and computes the softmax from them again.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError


@struct.dataclass
class Loss:
  """Sums over a batch's target tokens, not yet divided by their number.

  Attributes:
    total: scalar, cross-entropy plus z-loss.
    z_loss: scalar, the part of `total` that is z-loss.
    weight_sum: scalar, the sum of the weights: the number of real target tokens.
    per_token: `[B, U]`, weighted; its sum is `total`.
  """

  total: Array
  z_loss: Array
  weight_sum: Array
  per_token: Array


def cross_entropy(logits: Array, targets: Array, weights: Array, *, z_loss: float = 1e-4,
                  label_smoothing: float = 0.0) -> Loss:
  """Summed cross-entropy of `targets` (T5X `compute_weighted_cross_entropy`).

  Args:
    logits: `[B, U, V]`, any float dtype.
    targets: `[B, U]` int32.
    weights: `[B, U]`, a token's share in the loss; in T5 it is `targets != 0`, so that padding
      costs nothing. Bool, int or float.
    z_loss: factor of log_z^2.
    label_smoothing: the share s of a target's probability that is spread over the other ids.

  Returns:
    A `Loss` in float32. The caller divides by the number of real target tokens of the whole batch.

  Raises:
    UserError: `z_loss` is negative or `label_smoothing` not in [0, 1).
  """
  if not z_loss >= 0.0:
    raise UserError("z_loss is negative", found=z_loss, wanted="0 or more",
                    fix="set z_loss to 0.0 (off) or to T5's 1e-4")
  if not 0.0 <= label_smoothing < 1.0:
    raise UserError("label_smoothing is not a share", found=label_smoothing,
                    wanted="0 <= label_smoothing < 1",
                    fix="set label_smoothing to 0.0 (off) or 0.1")
  likelihood_loss, log_z = _negative_log_likelihood(logits, targets, label_smoothing)
  weights = weights.astype(jnp.float32)
  z_per_token = z_loss * jnp.square(log_z) * weights
  entropy = _entropy(label_smoothing, logits.shape[-1])
  per_token = (likelihood_loss - entropy) * weights + z_per_token
  return Loss(jnp.sum(per_token), jnp.sum(z_per_token), jnp.sum(weights), per_token)


def sequence_log_likelihood(logits: Array, targets: Array, weights: Array) -> Array:
  """Log-probability of each row's target sequence, without z-loss or smoothing.

  Args:
    logits: `[B, U, V]`.  targets: `[B, U]` int32.  weights: `[B, U]`, in T5 `targets != 0`.

  Returns:
    `[B]` float32: the sum over U, not divided by the length.
  """
  loss, _ = _negative_log_likelihood(logits, targets, 0.0)
  return -jnp.sum(loss * weights.astype(jnp.float32), axis=-1)


def _smoothed(label_smoothing: float, vocab_size: int) -> tuple[float, float]:
  """Probability of the target id, and of each other id."""
  return 1.0 - label_smoothing, label_smoothing / max(vocab_size - 1, 1)


def _entropy(label_smoothing: float, vocab_size: int) -> float:
  if label_smoothing == 0.0:
    return 0.0
  on, off = _smoothed(label_smoothing, vocab_size)
  return -(on * math.log(on) + (vocab_size - 1) * off * math.log(off))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _negative_log_likelihood(logits: Array, targets: Array,
                             label_smoothing: float) -> tuple[Array, Array]:
  """`-sum_v q_v log softmax(x)_v` and `log_z`, both `[B, U]` float32."""
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  on, off = _smoothed(label_smoothing, logits.shape[-1])
  target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = (on - off) * (log_z - target_logit)
  if off:
    loss += off * jnp.sum(log_z[..., None] - logits, axis=-1)
  return loss, log_z


def _forward(logits, targets, label_smoothing):
  loss, log_z = _negative_log_likelihood(logits, targets, label_smoothing)
  return (loss, log_z), (logits, targets, log_z)


def _backward(label_smoothing, residuals, cotangents):
  logits, targets, log_z = residuals
  loss_cotangent, log_z_cotangent = (c[..., None] for c in cotangents)
  softmax = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
  on, off = _smoothed(label_smoothing, logits.shape[-1])
  # A comparison fuses into the loop that writes the gradient; the scatter that JAX derives from a
  # gather would be a second pass, in no fixed order on a GPU.
  ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  target = jnp.where(ids == targets[..., None], on, off)
  gradient = (loss_cotangent + log_z_cotangent) * softmax - loss_cotangent * target
  # Two products read the gradient; without the barrier each would compute it again.
  return jax.lax.optimization_barrier(gradient.astype(logits.dtype)), None


_negative_log_likelihood.defvjp(_forward, _backward)
