"""Multitask prompt tuning (Wang et al. 2023, arXiv 2303.02861, section 3.1): one prompt, N factors.

Task n's prompt is the shared one times, number by number, a matrix of low rank:

  P_n = P * (u_n v_n)     u_n [P, R], v_n [R, D]; the paper's R is 1

Trains:  prompt/embedding [P, D], prompt/columns [N, P, R] (u), prompt/rows [N, R, D] (v).
Serves:  the N products, a bank [N, P, D]; a table [P, D] where N = 1, which is the stage that
         adapts to one target task.

At the start every u_n v_n is all ones, so each task's prompt is the initialiser's table: the first
column of u and the first row of v are ones, further rows of v zeros and further columns of u small
random numbers, since ranks that start alike would stay alike.

Cost: 6 N P R D FLOPs a step (forward and backward). Nothing once served.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.prompts.tables import VirtualTokens


class MultitaskPrompt(VirtualTokens):
  """A shared table of virtual tokens and low-rank factors a task.

  Attributes:
    initializer: of the shared table.
    rank: R.
    num_prompts: N tasks; above 1 every row of a batch names its prompt.
  """

  rank: int = 1
  num_prompts: int = 1

  def __post_init__(self):
    self.check_count("rank", "PROMPT_RANK")
    self.check_count("num_prompts", "NUM_PROMPTS")
    super().__post_init__()

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    columns = self.leaf("columns", ("prompt_bank", "prompt", "rank"),
                        (self.num_prompts, self.length, self.rank), _columns)
    rows = self.leaf("rows", ("prompt_bank", "rank", "prompt_embed"),
                     (self.num_prompts, self.rank, self.config.emb_dim), _rows)
    bank = self.table()[None] * (columns @ rows)
    return PromptValues(embeds=bank[0] if self.num_prompts == 1 else self.choose(bank, context))

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    return {**params, "embedding": self.initializer(key, self.length, sources)}

  def served(self) -> PromptMethod:
    return SoftPrompt(self.config, self.length, num_prompts=self.num_prompts, parent=None)

  def fold(self, params: dict) -> dict:
    every = PromptContext(prompt_ids=jnp.arange(self.num_prompts))
    return {"embedding": self.apply({"params": params}, every).embeds}


def _columns(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
  """Ones in the first column, small random numbers in the others."""
  return (0.02 * jax.random.normal(key, shape, dtype)).at[..., 0].set(1)


def _rows(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
  """Ones in the first row, zeros in the others."""
  return jnp.zeros(shape, dtype).at[:, 0].set(1)
