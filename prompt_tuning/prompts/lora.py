"""LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): a low-rank product beside a frozen kernel.

  y = x W + (alpha / R) x A B        A gaussian with variance 1 / in, B zero: starts as the model

Trains:  prompt/PROJECTION/{a [L, in, R], b [L, R, out]}.   Serves: the same, or, merged into W, a
plain backbone. Cost: 6 R (in + out) FLOPs a token and projection that a pattern matches, in all L
layers (those that its slice leaves out run too, with zeros), and no virtual token.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.layers import matmul
from prompt_tuning.prompts import projections
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.prompts.projections import Projection


@struct.dataclass
class AddLowRank:
  """A projection hook: `y + scale * dropout(x) A B`.

  Attributes:
    a: `[L, in, R]`.  b: `[L, R, out]`.
    keys: `[L]` random keys; None: no dropout.
  """

  a: Array
  b: Array
  keys: Array | None
  scale: float = struct.field(pytree_node=False)
  dropout: float = struct.field(pytree_node=False)

  def __call__(self, x: Array, project: Callable[[Array], Array]) -> Array:
    kept = x
    if self.keys is not None:
      keep = jax.random.bernoulli(self.keys, 1 - self.dropout, x.shape)
      kept = jnp.where(keep, x / (1 - self.dropout), 0)
    inner = matmul(kept, self.a.astype(x.dtype)) * self.scale
    return project(x) + matmul(inner, self.b.astype(x.dtype))


class Factors(nn.Module):
  """A and B of one projection, of the chosen layers."""

  projection: Projection
  rank: int

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    layers, into, out = (self.projection.num_chosen, self.projection.in_dim,
                         self.projection.out_dim)
    a = nn.with_logical_partitioning(nn.initializers.normal(into**-0.5),
                                     ("layers", "lora_in", "rank"))
    b = nn.with_logical_partitioning(nn.initializers.zeros, ("layers", "rank", "lora_out"))
    return (self.param("a", a, (layers, into, self.rank), jnp.float32),
            self.param("b", b, (layers, self.rank, out), jnp.float32))


class Lora(PromptMethod):
  """Attributes:
    rank: R.
    alpha: the product counts alpha / R times.
    targets: patterns of projections (`projections.py`).
    dropout: rate on the product's input, when dropout is enabled.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: tuple[str, ...] = (".*/(query|value)",)
  dropout: float = 0.0

  def __post_init__(self):
    if not isinstance(self.rank, int) or self.rank < 1:
      raise UserError("Lora.rank is not a rank", found=repr(self.rank),
                      wanted="a whole number, 1 or more", fix="--gin.LORA_RANK=8")
    if not self.alpha > 0:
      raise UserError("Lora.alpha is not a scale", found=self.alpha, wanted="a number above 0",
                      fix="--gin.LORA_ALPHA=16.0")
    if not 0 <= self.dropout < 1:
      raise UserError("Lora.dropout is not a probability", found=self.dropout,
                      wanted="0 <= rate < 1", fix="--gin.LORA_DROPOUT=0.1")
    object.__setattr__(self, "targets", projections.as_patterns(self.targets))
    self.chosen()
    super().__post_init__()

  @property
  def has_dropout(self) -> bool:  # type: ignore[override]  # a property for a constant
    return self.dropout > 0

  def chosen(self) -> tuple[Projection, ...]:
    return projections.choose(self.config, self.targets, "Lora.targets")

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    key = self.make_rng("dropout") if enable_dropout and self.dropout else None
    hooks = {}
    for i, projection in enumerate(self.chosen()):
      a, b = (projection.over_all_layers(factor)
              for factor in Factors(projection, self.rank, name=projection.name)())
      keys = None if key is None else jax.random.split(jax.random.fold_in(key, i), len(a))
      hooks[projection.path] = AddLowRank(a, b, keys, self.alpha / self.rank, self.dropout)
    return projections.values(hooks)

  def merge(self, backbone: Any, params: dict) -> dict[str, Any]:
    """W + (alpha / R) A B; `backbone` may be a part of one."""
    def edit(projection: Projection, rows: slice, kernels: np.ndarray) -> np.ndarray:
      a, b = (np.asarray(params[projection.name][factor][rows], np.float32) for factor in "ab")
      return kernels + self.alpha / self.rank * (a @ b)

    return projections.edit_kernels(backbone, self.chosen(), edit)
