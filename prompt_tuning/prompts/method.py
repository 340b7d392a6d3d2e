"""What every prompt method is: a Flax module that returns `PromptValues` and knows its served form.

Reparameterisations (an MLP, an LSTM, low-rank factors) help training and are of no use after it:
`served()` is the module that gives the same values without them, and `fold` its parameters. A
run trains one and leaves the other.
"""

from typing import Any

from flax import linen as nn
from jax import Array

from prompt_tuning.interfaces import PromptContext, PromptValues, T5Config
from prompt_tuning.prompts.initializers import Sources


class PromptMethod(nn.Module):
  """Base of the methods.

  Attributes:
    config: the backbone's architecture.
  """

  config: T5Config

  # Whether the method looks at the input (`PromptContext.embedded`).
  reads_input = False
  # N of a bank: above 1 every row of a batch names its prompt (`PromptContext.prompt_ids`).
  num_prompts = 1

  @property
  def num_virtual_tokens(self) -> int:
    """P, positions of the encoder's input that it fills."""
    return 0

  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    raise NotImplementedError

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    """The tree to start training from.

    Args:
      params: what Flax's own initialisers gave, to be replaced where weights are needed.
      sources: what may be read of the backbone.
    """
    return params

  def served(self) -> "PromptMethod":
    """The module that serves what this one trains, with the same values."""
    return self

  def fold(self, params: dict) -> dict:
    """The parameters of `served()` that give the same values as `params` do here."""
    return params

  def merge(self, backbone: Any, params: dict) -> Any:
    """The backbone with this method worked into its weights, or None where that is not possible.

    Args:
      backbone: flat, `{path: leaf}`, in either layout of layers.
      params: of the served form.
    """
    return None
