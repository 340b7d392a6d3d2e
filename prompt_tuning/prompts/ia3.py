"""IA3 (Liu et al. 2022, arXiv 2205.05638, section 3.3): learned scales of inner activations.

  keys and values of every attention: l * (x W)        the MLP's inner activation: (l * h) W_o

Trains:  prompt/PROJECTION/output [L, out], and prompt/PROJECTION/input [L, in]; all start at 1, so
training starts from the model.   Serves: the same, or, merged into W, a plain backbone.
Cost: no product; a scale a number, forward and backward.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.prompts import projections
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.prompts.projections import Projection, over_last_axis


@struct.dataclass
class Rescale:
  """A projection hook: `output * project(x * input)`.

  Attributes:
    input: `[L, in]`, or None.  output: `[L, out]`, or None.
  """

  input: Array | None = None
  output: Array | None = None

  def __call__(self, x: Array, project: Callable[[Array], Array]) -> Array:
    y = project(x if self.input is None else x * over_last_axis(self.input, x))
    return y if self.output is None else y * over_last_axis(self.output, y)


class Scales(nn.Module):
  """The scales of one projection, of the chosen layers; None where it has none.

  Attributes:
    input, output: the projection with the layers that are scaled on that side.
  """

  input: Projection | None
  output: Projection | None

  @nn.compact
  def __call__(self) -> Rescale:
    def scale(side: str, projection: Projection | None, size: int) -> Array | None:
      if projection is None:
        return None
      init = nn.with_logical_partitioning(nn.initializers.ones, ("layers", "scaled"))
      leaf = self.param(side, init, (projection.num_chosen, size), jnp.float32)
      return projection.over_all_layers(leaf, 1.0)

    return Rescale(scale("input", self.input, self.input.in_dim if self.input else 0),
                   scale("output", self.output, self.output.out_dim if self.output else 0))


class IA3(PromptMethod):
  """Attributes:
    outputs: patterns of projections (`projections.py`) whose output is scaled.
    inputs: of those whose input is scaled.
  """

  outputs: tuple[str, ...] = (".*/(key|value)",)
  inputs: tuple[str, ...] = (".*/wo",)

  def __post_init__(self):
    for field in ("outputs", "inputs"):
      object.__setattr__(self, field, projections.as_patterns(getattr(self, field)))
    if not (self.outputs or self.inputs):
      raise UserError("IA3 scales nothing", found="IA3.outputs and IA3.inputs are empty",
                      wanted="a pattern in one of them", fix="the paper's are the defaults")
    self.chosen()
    super().__post_init__()

  def chosen(self) -> dict[str, dict[str, Projection]]:
    """`input` and `output`, each path -> projection."""
    return {side: {} if not patterns else {
      projection.path: projection
      for projection in projections.choose(self.config, patterns, f"IA3.{side}s")}
      for side, patterns in (("input", self.inputs), ("output", self.outputs))}

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    chosen = self.chosen()
    paths = sorted(chosen["input"].keys() | chosen["output"].keys())
    return projections.values({
      path: Scales(chosen["input"].get(path), chosen["output"].get(path),
                   name=path.replace("/", "."))() for path in paths})

  def merge(self, backbone: Any, params: dict) -> dict[str, Any]:
    """The kernels' rows times the scales of the input, their columns times those of the output;
    `backbone` may be a part of one."""
    for side, axis in (("input", 2), ("output", 1)):
      def edit(projection: Projection, rows: slice, kernels: np.ndarray, side: str = side,
               axis: int = axis) -> np.ndarray:
        scale = np.asarray(params[projection.name][side][rows], np.float32)
        return kernels * np.expand_dims(scale, axis)

      backbone = projections.edit_kernels(backbone, tuple(self.chosen()[side].values()), edit)
    return backbone
