"""Decomposed prompt tuning (Xiao et al. 2023, arXiv 2310.12774): a prompt of rank R.

Trains:  prompt/left [P, R] and prompt/right [R, D].   Serves: their product, a table [P, D].

The paper draws both factors from [-0.5, 0.5]. Here they start from an initialiser's table: its best
approximation of rank R (Eckart and Young 1936), U S^0.5 and S^0.5 V of its singular value
decomposition, so that both factors have the same scale.

Cost: 6 P R D FLOPs a step (forward and backward), for (P + D) R trained numbers in place of P D.
Nothing once served.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.tables import FoldedTable


class LowRankPrompt(FoldedTable):
  """A table of virtual tokens as a product of two factors.

  Attributes:
    rank: R, at most P and D; the paper's is 10 (of P = 100).
  """

  rank: int = 10

  def __post_init__(self):
    self.check_count("rank", "PROMPT_RANK")
    self.check_count("length", "PROMPT_LENGTH")
    largest = min(self.length, self.config.emb_dim)
    if self.rank > largest:
      raise UserError("LowRankPrompt.rank is more than the prompt can have", found=self.rank,
                      wanted=f"at most {largest}: P = {self.length}, D = {self.config.emb_dim}",
                      fix=f"--gin.PROMPT_RANK={largest} or less")
    super().__post_init__()

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    left = self.leaf("left", ("prompt", "rank"), (self.length, self.rank))
    right = self.leaf("right", ("rank", "prompt_embed"), (self.rank, self.config.emb_dim))
    return PromptValues(embeds=left @ right)

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    """The factors of the closest table of rank R; `params` is replaced."""
    table = np.asarray(self.initializer(key, self.length, sources), np.float64)
    left, singular, right = np.linalg.svd(table, full_matrices=False)
    root = np.sqrt(singular[:self.rank])
    return {"left": jnp.asarray(left[:, :self.rank] * root, jnp.float32),
            "right": jnp.asarray(root[:, None] * right[:self.rank], jnp.float32)}
