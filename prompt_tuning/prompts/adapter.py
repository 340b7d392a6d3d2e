"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751, section 2), after a sub-layer.

  y = x W        y + up(activation(down(y)))        with biases; up starts at 0: as the model

`parallel` (after He et al. 2022, arXiv 2110.04366, section 3.3) reads x, the projection's own
input, instead of y; the paper's parallel adapter reads the input of the whole sub-layer. Houlsby
et al. train the layer norms too: TRAINABLE = ('.*layer_norm/scale',).

Trains:  prompt/PROJECTION/{down [L, in, R], down_bias [L, R], up [L, R, out], up_bias [L, out]}.
Serves: the same; it is not linear, so it cannot be merged. Cost: 6 R (in + out) FLOPs a token and
projection that a pattern matches, in all L layers: those that its slice leaves out run too, with
zeros. Of `parallel` in is the projection's input, else its output, like out.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.layers import ACTIVATIONS, matmul
from prompt_tuning.prompts import projections
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.prompts.projections import Projection, over_last_axis


@struct.dataclass
class AddBottleneck:
  """A projection hook: `y + up(activation(down(y or x)))`.

  Attributes:
    down: `[L, in, R]`.  down_bias: `[L, R]`.  up: `[L, R, out]`.  up_bias: `[L, out]`.
  """

  down: Array
  down_bias: Array
  up: Array
  up_bias: Array
  activation: str = struct.field(pytree_node=False)
  parallel: bool = struct.field(pytree_node=False)

  def __call__(self, x: Array, project: Callable[[Array], Array]) -> Array:
    y = project(x)
    read = x if self.parallel else y
    inner = matmul(read, self.down.astype(read.dtype))
    inner = ACTIVATIONS[self.activation](inner + over_last_axis(self.down_bias, inner))
    return y + matmul(inner, self.up.astype(y.dtype)) + over_last_axis(self.up_bias, y)


class Bottleneck(nn.Module):
  """The leaves of one adapter, of the chosen layers, over all layers."""

  projection: Projection
  hidden: int
  parallel: bool

  @nn.compact
  def __call__(self) -> dict[str, Array]:
    projection, hidden = self.projection, self.hidden
    into = projection.in_dim if self.parallel else projection.out_dim
    zeros = nn.initializers.zeros
    leaves = {"down": (nn.initializers.normal(into**-0.5), ("adapter_in", "adapter"),
                       (into, hidden)),
              "down_bias": (zeros, ("adapter",), (hidden,)),
              "up": (zeros, ("adapter", "adapter_out"), (hidden, projection.out_dim)),
              "up_bias": (zeros, ("adapter_out",), (projection.out_dim,))}
    # Zeros in the layers that were not chosen: nothing is added there.
    return {name: projection.over_all_layers(self.param(
      name, nn.with_logical_partitioning(init, ("layers", *axes)),
      (projection.num_chosen, *shape), jnp.float32))
      for name, (init, axes, shape) in leaves.items()}


class Adapter(PromptMethod):
  """Attributes:
    hidden: R, the bottleneck.
    targets: patterns of projections (`projections.py`) that have an adapter.
    activation: a name of `interfaces.ACTIVATIONS`.
    parallel: it reads the projection's input.
  """

  hidden: int = 64
  targets: tuple[str, ...] = (".*/(out|wo)",)
  activation: str = "gelu"
  parallel: bool = False

  def __post_init__(self):
    if not isinstance(self.hidden, int) or self.hidden < 1:
      raise UserError("Adapter.hidden is not a size", found=repr(self.hidden),
                      wanted="a whole number, 1 or more", fix="--gin.ADAPTER_HIDDEN=64")
    if self.activation not in ACTIVATIONS:
      raise UserError("Adapter.activation is unknown", found=repr(self.activation),
                      wanted="one of " + ", ".join(ACTIVATIONS),
                      fix=nearest(str(self.activation), ACTIVATIONS))
    object.__setattr__(self, "targets", projections.as_patterns(self.targets))
    self.chosen()
    super().__post_init__()

  def chosen(self) -> tuple[Projection, ...]:
    return projections.choose(self.config, self.targets, "Adapter.targets")

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    return projections.values({
      projection.path: AddBottleneck(
        **Bottleneck(projection, self.hidden, self.parallel, name=projection.name)(),
        activation=self.activation, parallel=self.parallel)
      for projection in self.chosen()})
