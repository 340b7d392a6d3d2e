"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): P learned vectors ahead of the input.

Trains:  prompt/embedding [P, D], or [N, P, D] for a bank.   Serves: the same table.
Cost: the encoder runs over P more positions; forward and backward pass through the whole model.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.prompts.initializers import Initializer, Sources, Uniform
from prompt_tuning.prompts.method import PromptMethod


class SoftPrompt(PromptMethod):
  """A table of virtual tokens.

  Attributes:
    length: P.
    initializer: where the table starts.
    num_prompts: N; above 1 the table is a bank, and every row of a batch names its prompt.
  """

  length: int
  initializer: Initializer = Uniform()
  num_prompts: int = 1

  def __post_init__(self):
    for name in ("length", "num_prompts"):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise UserError(f"SoftPrompt.{name} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more",
                        fix="--gin.PROMPT_LENGTH=100 is the paper's length")
    super().__post_init__()

  @property
  def num_virtual_tokens(self) -> int:
    return self.length

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    axes: tuple[str, ...] = ("prompt", "prompt_embed")
    shape: tuple[int, ...] = (self.length, self.config.emb_dim)
    if self.num_prompts > 1:
      axes, shape = ("prompt_bank", *axes), (self.num_prompts, *shape)
    table = self.param("embedding", nn.with_logical_partitioning(nn.initializers.zeros, axes),
                       shape, jnp.float32)
    return PromptValues(embeds=self.choose(table, context))

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    """The tree to start training from; `params` is replaced."""
    keys = jax.random.split(key, self.num_prompts)
    tables = [self.initializer(k, self.length, sources) for k in keys]
    return {"embedding": tables[0] if self.num_prompts == 1 else jnp.stack(tables)}
