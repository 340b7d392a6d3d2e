"""Frozen weights in 8 or 4 bits with scales: FROZEN_DTYPE `int8`, `int4`, or in groups `int4/64`.

  weight [.., in, out] ~ values [.., in, out] (int8, int4) * scales [.., G, out] (float32)

Symmetric: a scale is the largest absolute value of its part over 127 or 7 (the round-to-nearest
baseline of Dettmers et al. 2022, arXiv 2208.07339, section 2.1). A part is a kernel's column (all
that is summed into one output), a row of the token table, or a group of numbers of it: of as many
as FROZEN_DTYPE says, or the most below that divide it. The pair stands in the tree under the leaf's
own name, so patterns and converters see one leaf.

With a scale a column, `y = (x @ values) * scales`, `dx = (dy * scales) @ values.T`: the weight is
never scaled, only cast where the product reads it. In groups the weight of one layer is made within
the scan. Either way no stacked leaf is ever expanded.

Qwix and AQT do this too, by replacing `dot_general` while a model is traced. They see no product
inside a function that has a gradient rule of its own, as ours have; and what they put in the tree
are values and scales as here. So the fifty lines that are left are ours.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import DTYPES, T5Config

_BITS = {"int8": 8, "int4": 4}
STORED = (*DTYPES, *_BITS)


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How a leaf is stored.

  Attributes:
    bits: 8 or 4.
    group: how many numbers share a scale at most; None: all that are summed into one output.
  """

  bits: int
  group: int | None = None

  @property
  def dtype(self) -> Any:
    return jnp.dtype(f"int{self.bits}")

  @property
  def largest(self) -> int:
    return 2 ** (self.bits - 1) - 1

  def groups(self, size: int) -> int:
    """Of an axis: equal ones, as large as they may be."""
    most = size if self.group is None else min(self.group, size)
    return size // max(n for n in range(1, most + 1) if size % n == 0)


@struct.dataclass
class Quantized:
  """A leaf in few bits; it has the shape of what it stands for.

  Attributes:
    values: int8 or int4, as large as the weight.
    scales: float32; of the axis that is summed over only the groups are left.
  """

  values: Any
  scales: Any

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  @property
  def ndim(self) -> int:
    return len(self.values.shape)

  @property
  def dtype(self) -> Any:
    return self.scales.dtype

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    del copy
    return np.asarray(dequantize(self, jnp.float32), dtype)


def scheme_of(stored: str) -> Scheme | None:
  """FROZEN_DTYPE -> how leaves are stored; None of a floating-point type.

  Raises:
    UserError: there is no such type.
  """
  name, slash, group = str(stored).partition("/")
  if name not in STORED or slash and (name not in _BITS or not group.isdigit() or int(group) < 2):
    raise UserError("FROZEN_DTYPE is unknown", found=repr(stored),
                    wanted="one of " + ", ".join(STORED) + "; or in groups, as 'int4/64'",
                    fix=nearest(name, STORED))
  return Scheme(_BITS[name], int(group) if slash else None) if name in _BITS else None


def check(stored: str, config: T5Config) -> None:
  """Checks that FROZEN_DTYPE is a type, and that there are groups of what is summed over.

  Raises:
    UserError: it is none, or no number of 2 up to the group's divides an axis.
  """
  scheme = scheme_of(stored)
  axes = {"D": config.emb_dim, "heads x K": config.num_heads * config.head_dim,
          "F": config.mlp_dim}
  for name, size in axes.items():
    if scheme is not None and scheme.groups(size) == size > 1:
      raise UserError("FROZEN_DTYPE's groups do not fit the weights",
                      found=f"{stored!r}, and nothing of 2 to {scheme.group} divides "
                      f"{name} = {size}",
                      wanted="larger groups, or one scale an output",
                      fix=f"--gin.FROZEN_DTYPE={stored.partition('/')[0]}")


def scheme_like(leaf: Quantized, axis: int) -> Scheme:
  """The scheme that makes a leaf of these shapes."""
  groups = leaf.scales.shape[axis]
  return Scheme(4 if "int4" in str(leaf.values.dtype) else 8,
                leaf.shape[axis] // groups if groups > 1 else None)


def summed_axis(path: str) -> int | None:
  """The axis that a product with a leaf sums over; None of leaves that stay as they are.

  Those (norms, the relative position bias) are a thousandth of a model.
  """
  return {"kernel": -2, "embedding": -1}.get(path.rsplit("/", 1)[-1])


def quantize(weight: Any, scheme: Scheme, axis: int, xp: Any = jnp) -> Quantized:
  """A weight in the nearest multiples of its scales.

  Args:
    axis: -1 or -2, the one that is summed over.
    xp: `numpy` for arrays of the host.
  """
  groups = scheme.groups(weight.shape[axis])
  wide = _grouped(weight.astype(xp.float32), groups, axis)
  largest = xp.max(xp.abs(wide), axis=axis, keepdims=True)
  scales = xp.where(largest > 0, largest / scheme.largest, 1.0).astype(xp.float32)
  values = xp.round(wide / scales).astype(scheme.dtype).reshape(weight.shape)
  return Quantized(values, scales.squeeze(axis))


def whole(weight: Any) -> Any:
  """A leaf of few bits in float32; any other as it is."""
  return dequantize(weight, jnp.float32) if isinstance(weight, Quantized) else weight


def dequantize(weight: Any, dtype: Any) -> Array:
  """The weight itself; what is not quantised is only cast."""
  if not isinstance(weight, Quantized):
    return jnp.asarray(weight).astype(dtype)
  axis = -1 if weight.scales.shape[-1] != weight.shape[-1] else -2
  groups = weight.scales.shape[axis]
  wide = _grouped(jnp.asarray(weight.values).astype(dtype), groups, axis)
  scales = jnp.expand_dims(jnp.asarray(weight.scales), axis).astype(dtype)
  return (wide * scales).reshape(weight.shape)


@jax.custom_vjp
def matmul(x: Array, kernel: Quantized) -> Array:
  """`[..., in] @ [in, out] -> [..., out]`; the kernel has no gradient."""
  if kernel.scales.shape[-2] > 1:
    return jnp.dot(x, dequantize(kernel, x.dtype))
  return _scaled(jnp.dot(x, kernel.values.astype(x.dtype)), kernel.scales[0])


def _matmul_forward(x: Array, kernel: Quantized) -> tuple[Array, Quantized]:
  if kernel.scales.shape[-2] > 1:
    return jnp.dot(x, dequantize(kernel, x.dtype)), kernel
  return _scaled(jnp.dot(x, kernel.values.astype(x.dtype)), kernel.scales[0]), kernel


def _matmul_backward(kernel: Quantized, grad: Array) -> tuple[Array, None]:
  if kernel.scales.shape[-2] > 1:
    weight = dequantize(kernel, grad.dtype)
  else:
    weight, grad = kernel.values.astype(grad.dtype), _scaled(grad, kernel.scales[0])
  return jax.lax.dot_general(grad, weight, (((grad.ndim - 1,), (1,)), ((), ()))), None


matmul.defvjp(_matmul_forward, _matmul_backward)


def take(table: Quantized, ids: Array) -> Array:
  """Rows `[..., D]` of a token table, float32."""
  return dequantize(Quantized(jnp.take(table.values, ids, axis=0),
                              jnp.take(table.scales, ids, axis=0)), jnp.float32)


def _grouped(weight: Any, groups: int, axis: int) -> Any:
  """The axis apart into groups and what is in one."""
  position = len(weight.shape) + axis
  shape = weight.shape
  return weight.reshape(*shape[:position], groups, shape[position] // groups,
                        *shape[position + 1:])


def _scaled(x: Array, scales: Array) -> Array:
  return (x.astype(jnp.float32) * scales.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
