"""Residual prompt tuning (Razdaibiedina et al. 2023, arXiv 2305.03937): P + MLP(P).

Trains:  prompt/embedding [P, D] and the MLP: down [D, h], ReLU, up [h, D], layer norm; one for all
         positions, or one a position.   Serves: the sum, a table [P, D].

At the start the table is not the initialiser's: each row has a vector of mean 0 and variance 1 (the
layer norm's output) added to it, which at T5 1.1's embeddings is small beside the row.

Cost: 12 P D h FLOPs a step (forward and backward), shared or not; separate MLPs hold P times the
weights. Nothing once served.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.tables import FoldedTable, layer_norm, uniform


class ResidualPrompt(FoldedTable):
  """A table of virtual tokens with a residual MLP behind it.

  Attributes:
    initializer: of the embeddings that enter the MLP.
    hidden: h, the bottleneck.
    shared: one MLP for all positions; False: one a position.
  """

  hidden: int = 400
  shared: bool = True

  def __post_init__(self):
    self.check_count("hidden", "PROMPT_BOTTLENECK")
    if not isinstance(self.shared, bool):
      raise UserError("ResidualPrompt.shared is not a choice", found=repr(self.shared),
                      wanted="True: one MLP, False: one a position",
                      fix="set PROMPT_SHARED_MLP")
    super().__post_init__()

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    width, hidden = self.config.emb_dim, self.hidden

    def leaf(name: str, axes: tuple[str, ...], shape: tuple[int, ...],
             init: nn.initializers.Initializer) -> Array:
      """`[1, ...]` where it is shared, else `[P, ...]`."""
      if self.shared:
        return self.leaf(name, axes, shape, init)[None]
      return self.leaf(name, ("prompt", *axes), (self.length, *shape), init)

    def dense(name: str, x: Array, features: int) -> Array:
      """`[P, in] -> [P, features]`, batched over positions."""
      init = uniform(x.shape[1])
      kernel = leaf(f"{name}_kernel", ("in", "out"), (x.shape[1], features), init)
      bias = leaf(f"{name}_bias", ("out",), (features,), init)
      return (x @ kernel[0] if self.shared else jnp.einsum("pi,pio->po", x, kernel)) + bias

    table = self.table()
    y = dense("up", jax.nn.relu(dense("down", table, hidden)), width)
    y = layer_norm(y, leaf("norm_scale", ("out",), (width,), nn.initializers.ones),
                   leaf("norm_offset", ("out",), (width,), nn.initializers.zeros))
    return PromptValues(embeds=table + y)

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    return {**params, "embedding": self.initializer(key, self.length, sources)}
