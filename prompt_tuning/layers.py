"""The parts of a T5 block: dense, RMS norm, attention, MLP, relative position bias.

Leaf names, shapes and logical axes are T5X's (`attention/query/kernel [D, H*K]`, axes
`("embed", "joined_kv")`), so that its checkpoints map onto these modules by name. Every projection
takes an optional hook (`interfaces.ProjectionHook`): the seam through which prompt methods act on
a layer without a line about them here.

Raffel et al. 2020 (arXiv 1910.10683), section 2.1; Shazeer 2020 (arXiv 2002.05202) for the gated
MLP of T5 1.1.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from prompt_tuning import quantization
from prompt_tuning.interfaces import KeyValues, T5Config
from prompt_tuning.partitioning import constrain
from prompt_tuning.quantization import Quantized

ACTIVATIONS = {
  "relu": jax.nn.relu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=True),
  "silu": jax.nn.silu,
  "linear": lambda x: x,
}

# Added to masked attention logits: far below any real logit, and finite, so that a row whose keys
# are all masked gives a uniform distribution and not NaN.
MASKED = -1e10

# What remat policies know the outputs of projections by (`t5.py`).
SAVED_PROJECTION = "projection"

_FAN_IN = initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
  """`[..., in] @ [in, out] -> [..., out]`, with a kernel gradient in the kernel's own layout.

  The transpose rule of `dot` makes the gradient as `[out, in]` and turns it, which on CPUs costs
  up to three times the product itself (docs/performance.md). A frozen kernel has no gradient, and
  nothing is kept for one.
  """
  return jnp.dot(x, kernel)


def _matmul_forward(x: Any, kernel: Any) -> tuple[Array, tuple[Array | None, Array]]:
  saved = x.value if kernel.perturbed else None
  # Not `matmul` itself: a remat policy sees what is in here, and a function with a rule is opaque.
  return jnp.dot(x.value, kernel.value), (saved, kernel.value)


def _matmul_backward(saved: tuple[Array | None, Array], grad: Any) -> tuple[Any, Any]:
  x, kernel = saved
  if isinstance(grad, jax.custom_derivatives.SymbolicZero):
    return None, None
  grad_x = jax.lax.dot_general(grad, kernel, (((grad.ndim - 1,), (1,)), ((), ())))
  if x is None:
    return grad_x, None
  # One axis of rows: XLA turns the factors of a product over two, and computes them anew for it.
  x, grad = (array.reshape(-1, array.shape[-1]) for array in (x, grad))
  return grad_x, jax.lax.dot_general(x, grad, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


@jax.custom_vjp
def attend(queries: Array, keys: Array, values: Array, bias: Array, mask: Array,
           keep: Array) -> Array:
  """Softmax attention whose backward pass keeps the weights, and nothing else of that size.

  The row sums of the softmax's gradient are those of output times gradient (Dao et al. 2022,
  arXiv 2205.14135, section 3.1; it holds with dropout too): `[B, H, Q, K]` instead of another pass
  over `[B, H, Q, S]`.

  Args:
    queries: `[B, H, Q, K]`.  keys, values: `[B, H, S, K]`.
    bias: float32, broadcastable to `[B, H, Q, S]`; added to the logits.
    mask: bool, broadcastable to `[B, H, Q, S]`; False is hidden.
    keep: factor of the weights after the softmax (dropout), broadcastable to `[B, H, Q, S]`.

  Returns:
    `[B, H, Q, K]`.
  """
  return _attended(queries, keys, values, bias, mask, keep)[0]


def _attend_forward(*args: Any) -> tuple[Array, tuple]:
  queries, keys, values, bias, mask, keep = (arg.value for arg in args)
  mixed, weights = _attended(queries, keys, values, bias, mask, keep)
  kept_bias = bias if args[3].perturbed else None
  return mixed, (queries, keys, values, kept_bias, keep, weights, mixed)


def _attended(queries: Array, keys: Array, values: Array, bias: Array, mask: Array,
              keep: Array) -> tuple[Array, Array]:
  """What `attend` returns, and the weights before dropout."""
  # Softmax in float32: probabilities of long inputs vanish in bfloat16.
  logits = jnp.einsum("bhqk,bhsk->bhqs", queries, keys, preferred_element_type=jnp.float32)
  logits = logits + (bias + jnp.where(mask, 0.0, MASKED))
  shifted = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  weights = (shifted / jnp.sum(shifted, axis=-1, keepdims=True)).astype(values.dtype)
  return jnp.einsum("bhqs,bhsk->bhqk", weights * keep, values), weights


def _attend_backward(saved: tuple, grad: Any) -> tuple:
  if isinstance(grad, jax.custom_derivatives.SymbolicZero):
    return (None,) * 6
  queries, keys, values, bias, keep, weights, mixed = saved
  # K ahead of S in these two: XLA's CPU back end takes a fifth less for the pair.
  of_values = jnp.einsum("bhqk,bhqs->bhks", grad, weights * keep)
  of_weights = keep * jnp.einsum("bhqk,bhsk->bhqs", grad, values,
                                 preferred_element_type=jnp.float32)
  rows = jnp.sum(mixed * grad, axis=-1, keepdims=True, dtype=jnp.float32)
  # Two products (and a sum) read this; without the barrier XLA may compute it once for each.
  of_logits, of_bias = weights * (of_weights - rows), None
  if bias is None:  # frozen: nothing needs more digits than the products do
    narrow = jax.lax.optimization_barrier(of_logits.astype(queries.dtype))
  else:
    of_logits = jax.lax.optimization_barrier(of_logits)
    narrow, of_bias = of_logits.astype(queries.dtype), _sum_to(of_logits, bias.shape)
  of_queries = jnp.einsum("bhqs,bhsk->bhqk", narrow, keys)
  of_keys = jnp.einsum("bhqk,bhqs->bhks", queries, narrow)
  return of_queries, of_keys.swapaxes(2, 3), of_values.swapaxes(2, 3), of_bias, None, None


attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


class Dense(nn.Module):
  """`[..., in] -> [..., features]` without bias.

  Attributes:
    features: size of the output.
    axes: logical names of the kernel's two axes.
    scale: factor on the initial kernel.
  """

  config: T5Config
  features: int
  axes: tuple[str, str]
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: Array, hook: Any = None) -> Array:
    def init(key, shape, dtype):
      return _FAN_IN(key, shape, dtype) * jnp.asarray(self.scale, dtype)

    kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes),
                        (x.shape[-1], self.features), jnp.dtype(self.config.param_dtype))
    dtype = jnp.dtype(self.config.dtype)

    def project(x: Array) -> Array:
      y = quantization.matmul(x.astype(dtype), kernel) if isinstance(kernel, Quantized) else (
        matmul(x.astype(dtype), kernel.astype(dtype)))
      # The backward pass reads every projection but the last of a block: that one only adds to
      # the residual stream, which is kept anyway.
      return y if self.name == "wo" else checkpoint_name(y, SAVED_PROJECTION)

    return project(x) if hook is None else hook(x.astype(dtype), project).astype(dtype)


class RMSNorm(nn.Module):
  """Scale by the root mean square over D, without mean or bias."""

  config: T5Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.with_logical_partitioning(initializers.ones, ("embed",)),
                       (x.shape[-1],), jnp.dtype(self.config.param_dtype))
    return _rms_norm(x, scale, self.config.layer_norm_epsilon, jnp.dtype(self.config.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rms_norm(x: Array, scale: Array, epsilon: float, dtype: Any) -> Array:
  """The backward pass keeps `x`, which the residual stream holds anyway, and a number a row."""
  return _normed(x, scale, epsilon, dtype)[0]


def _normed(x: Array, scale: Array, epsilon: float, dtype: Any) -> tuple[Array, Array]:
  """What `_rms_norm` returns, and the inverse of each row's root mean square."""
  # The mean of squares overflows half precision and loses digits in bfloat16.
  wide = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon)
  # Rounded before the scale, as in T5X: in bfloat16 the order shows.
  y = (wide * inverse).astype(dtype)
  return y * _over_last_axis(scale.astype(dtype), y.ndim), inverse


def _rms_norm_forward(x: Any, scale: Any, epsilon: float, dtype: Any) -> tuple[Array, tuple]:
  y, inverse = _normed(x.value, scale.value, epsilon, dtype)
  # Residuals are arrays: that the scale is trained is told by there being something, not None.
  return y, (x.value, scale.value, inverse, () if scale.perturbed else None)


def _rms_norm_backward(epsilon: float, dtype: Any, saved: tuple, grad: Any) -> tuple:
  if isinstance(grad, jax.custom_derivatives.SymbolicZero):
    return None, None
  x, scale, inverse, trained = saved
  normed = x.astype(jnp.float32) * inverse
  scaled = grad.astype(jnp.float32) * _over_last_axis(scale.astype(jnp.float32), grad.ndim)
  of_x = inverse * (scaled - normed * jnp.mean(scaled * normed, -1, keepdims=True))
  if trained is None:
    return of_x.astype(x.dtype), None
  of_scale = jnp.sum(grad * normed.astype(dtype), range(grad.ndim - 1), dtype=jnp.float32)
  return of_x.astype(x.dtype), of_scale.astype(scale.dtype)


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward, symbolic_zeros=True)


class Embed(nn.Module):
  """The token table `[V, D]`."""

  config: T5Config

  def setup(self):
    self.embedding = self.param(
      "embedding",
      nn.with_logical_partitioning(initializers.normal(1.0), ("vocab", "embed")),
      (self.config.vocab_size, self.config.emb_dim), jnp.dtype(self.config.param_dtype))

  def __call__(self, tokens: Array) -> Array:
    """`[B, T]` ids (virtual ones read row 0 and are replaced by the caller) -> `[B, T, D]`."""
    ids = jnp.clip(tokens, 0, self.config.vocab_size - 1)
    look_up = quantization.take if isinstance(self.embedding, Quantized) else (
      functools.partial(jnp.take, axis=0))
    x = look_up(self.embedding, ids).astype(jnp.dtype(self.config.dtype))
    # Each device looks its own part of D up for all rows, and then trades it for rows of its own:
    # less to send than the table.
    return constrain(constrain(x, "copy", None, "embed"), "batch", None, None)

  def attend(self, x: Array) -> Array:
    """`[..., D] -> [..., V]` logits against the table (T5 1.0)."""
    return jnp.dot(x, quantization.dequantize(self.embedding, x.dtype).T)


class Attention(nn.Module):
  """Multi-head attention without bias vectors; logits are not scaled by K^-0.5.

  T5 folds that factor into the initial query kernel (Raffel et al., section 2.1 and T5X).
  """

  config: T5Config

  def setup(self):
    joined = self.config.num_heads * self.config.head_dim
    into = ("embed", "joined_kv")
    self.query = Dense(self.config, joined, into, scale=self.config.head_dim**-0.5)
    self.key = Dense(self.config, joined, into)
    self.value = Dense(self.config, joined, into)
    self.out = Dense(self.config, self.config.emb_dim, ("joined_kv", "embed"))
    self.dropout = nn.Dropout(self.config.dropout_rate)

  def keys_values(self, x: Array, hooks: Mapping[str, Any]) -> tuple[Array, Array]:
    """`[B, S, D]` -> keys and values `[B, H, S, K]`.

    Heads first, once and here: every product of attention would turn its factors otherwise, when
    decoding at every token.
    """
    keys = self._heads(self.key(x, hooks.get("key")))
    values = self._heads(self.value(x, hooks.get("value")))
    # Kept only where a caller asks for the collection (`prompted.activations`).
    self.sow("intermediates", "keys_values", (keys, values), reduce_fn=lambda _, new: new)
    return keys, values

  def __call__(self, x: Array, keys: Array, values: Array, mask: Array, bias: Array | None,
               hooks: Mapping[str, Any], extra: KeyValues | None = None,
               enable_dropout: bool = False) -> Array:
    """Attends from `x` to given keys and values.

    Args:
      x: `[B, Q, D]`.
      keys, values: `[B, H, S, K]`; or of fewer rows `[B / n, ...]`, each for n rows of `x` that
        stand together (the beams of an input), where `bias` and `mask` do not depend on the query.
      mask: bool, broadcastable to `[B, H, Q, S]`; False is hidden.
      bias: `[1, H, Q, S]` relative position bias, or None.
      hooks: by projection: query, out.
      extra: keys and values ahead of these, seen by every query without bias (prefix tuning).

    Returns:
      `[B, Q, D]`.
    """
    queries = self._heads(self.query(x, hooks.get("query")))
    rows, shared = keys.shape[0], x.shape[0] // keys.shape[0]
    if shared > 1:
      queries = queries.reshape(rows, shared, *queries.shape[1:]).swapaxes(1, 2)
      queries = queries.reshape(*queries.shape[:2], -1, queries.shape[-1])
    bias = jnp.zeros((1, 1, 1, 1)) if bias is None else bias.astype(jnp.float32)
    if extra is not None:
      bias = _ahead(extra.key.shape[1], bias, 0.0, keys.shape[2])
      mask = _ahead(extra.key.shape[1], mask, True, keys.shape[2])
      keys, values = (
        jnp.concatenate([_over_rows(ahead[::shared], rows).astype(own.dtype), own], axis=2)
        for ahead, own in ((extra.key, keys), (extra.value, values)))
    keep = jnp.ones((1, 1, 1, 1), values.dtype)
    if enable_dropout:
      # One mask for all query positions, as T5X has it: cheaper, and the same in expectation.
      shape = (rows, self.config.num_heads, 1, keys.shape[2])
      keep = self.dropout(jnp.ones(shape, values.dtype), deterministic=False)
    mixed = attend(queries, keys, values, bias, mask, keep).swapaxes(1, 2)
    return self.out(mixed.reshape(*x.shape[:2], -1), hooks.get("out"))

  def _heads(self, x: Array) -> Array:
    """`[B, S, H * K] -> [B, H, S, K]`."""
    if x.shape[1] == 1:
      # One token of decoding: TPUs would make heads within the product, from kernels turned for it,
      # of all layers at once and beside the kernels themselves.
      x = jax.lax.optimization_barrier(x)
    heads = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
    return constrain(heads.swapaxes(1, 2), "batch", "heads", None, None)


@functools.partial(jax.checkpoint, static_argnums=0)
def _activated(activations: tuple[str, ...], *inputs: Array) -> Array:
  """The product of the activations. The backward pass computes them again from their inputs:
  tanh costs less than writing and reading what the gradient of GELU would keep."""
  return math.prod(ACTIVATIONS[name](x) for name, x in zip(activations, inputs, strict=True))


class MLP(nn.Module):
  """`[B, T, D] -> [B, T, D]` through F units; gated where two activations are named."""

  config: T5Config

  @nn.compact
  def __call__(self, x: Array, hooks: Mapping[str, Any], enable_dropout: bool = False) -> Array:
    activations = self.config.mlp_activations
    inputs = []
    for i in range(len(activations)):
      name = "wi" if len(activations) == 1 else f"wi_{i}"
      inputs.append(Dense(self.config, self.config.mlp_dim, ("embed", "mlp"), name=name)(
        x, hooks.get(name)))
    inputs = [constrain(x, "batch", None, "mlp") for x in inputs]
    product = _activated(activations, *inputs)
    product = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))(
      product, deterministic=not enable_dropout)
    return Dense(self.config, self.config.emb_dim, ("mlp", "embed"), name="wo")(
      product, hooks.get("wo"))


def relative_position_bucket(relative: np.ndarray | Array, *, bidirectional: bool,
                             num_buckets: int, max_distance: int) -> Array:
  """Key position minus query position -> bucket, exact nearby and logarithmic further off."""
  buckets = 0
  distance = -relative
  if bidirectional:
    num_buckets //= 2
    buckets = jnp.where(distance < 0, num_buckets, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(distance, 0)
  exact = num_buckets // 2
  # The epsilon keeps log(0) of the branch that is not taken finite.
  ratio = jnp.log(distance.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps)
  far = exact + (ratio / np.log(max_distance / exact) * (num_buckets - exact)).astype(jnp.int32)
  return buckets + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))


class RelativePositionBias(nn.Module):
  """One table a stack, `rel_embedding [H, buckets]`, shared by its layers."""

  config: T5Config
  bidirectional: bool

  @nn.compact
  def __call__(self, query_positions: Array, key_positions: Array) -> Array:
    """Positions `[Q]` and `[S]` -> bias `[1, H, Q, S]`."""
    table = self.param(
      "rel_embedding",
      nn.with_logical_partitioning(initializers.variance_scaling(1.0, "fan_avg", "uniform"),
                                   ("heads", "relpos_buckets")),
      (self.config.num_heads, self.config.relative_attention_num_buckets),
      jnp.dtype(self.config.param_dtype))
    relative = key_positions[None, :] - query_positions[:, None]
    buckets = relative_position_bucket(
      relative, bidirectional=self.bidirectional,
      num_buckets=self.config.relative_attention_num_buckets,
      max_distance=self.config.relative_attention_max_distance)
    return constrain(jnp.take(table, buckets, axis=1)[None], None, "heads", None, None)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
  """Sums the axes of `x` that were broadcast from `shape`, of the same rank."""
  axes = tuple(i for i, (size, wanted) in enumerate(zip(x.shape, shape, strict=True))
               if size != wanted)
  if axes == (0,):
    # XLA's CPU back end sums over a leading axis fifty times slower than it multiplies by ones.
    ones = jnp.ones(x.shape[:1], x.dtype)
    return jnp.tensordot(ones, x, 1, precision=jax.lax.Precision.HIGHEST)[None]
  return jnp.sum(x, axes, keepdims=True)


def _ahead(length: int, x: Array, value: Any, size: int) -> Array:
  """`[..., S or 1] -> [..., length + S]`, with `value` ahead."""
  x = jnp.broadcast_to(x, (*x.shape[:-1], size))
  return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((length, 0),), constant_values=value)


def _over_last_axis(vector: Array, rank: int) -> Array:
  return vector.reshape((1,) * (rank - 1) + (-1,))


def _over_rows(extra: Array, rows: int) -> Array:
  """`[1 or B, P, H, K] -> [B, H, P, K]`."""
  return jnp.broadcast_to(extra, (rows, *extra.shape[1:])).swapaxes(1, 2)
