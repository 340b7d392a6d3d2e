"""What every prompt method is: a Flax module that returns `PromptValues` and knows its served form.

Reparameterisations (an MLP, an LSTM, low-rank factors) help training and are of no use after it:
`served()` is the module that gives the same values without them, and `fold` its parameters. A
run trains one and leaves the other.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues, T5Config
from prompt_tuning.prompts.initializers import FromBank, FromFile, FromRun, Sources

# GPUs and TPUs multiply float32 in fewer bits unless they are told: rows would be rounded.
_EXACT = jax.lax.Precision.HIGHEST


def virtual_rows(tokens: Array, rows: Array) -> Array:
  """`[B, S]` ids and `[B or 1, P, D]` rows -> `[B, S, D]`: row p where the id is -1-p, else zeros.

  A product instead of a gather: its gradient is a product too, deterministic and without a scatter.
  Each sum has one term, so that half precision loses nothing. P is small.
  """
  one_hot = jax.nn.one_hot(-1 - tokens, rows.shape[1], dtype=rows.dtype)
  if rows.shape[0] == 1:
    return _placed(one_hot, rows[0])
  return jnp.matmul(one_hot, rows, precision=_EXACT)


@jax.custom_vjp
def _placed(one_hot: Array, rows: Array) -> Array:
  """`[B, S, P]`, `[P, D]` -> `[B, S, D]`.

  The gradient of its own keeps the operands' order. What JAX derives is compiled for CPUs with the
  stream's gradient `[B, S, D]` transposed, in one fusion with the norm below it: three layers of
  deep prompts made a step of the shipped model 1.45 times as long.
  """
  return jnp.einsum("bsp,pd->bsd", one_hot, rows, precision=_EXACT)


def _placed_forward(one_hot: Array, rows: Array) -> tuple[Array, Array]:
  return _placed(one_hot, rows), one_hot


def _placed_backward(one_hot: Array, gradient: Array) -> tuple[Array, Array]:
  return jnp.zeros_like(one_hot), jnp.einsum("bsp,bsd->pd", one_hot, gradient, precision=_EXACT)


_placed.defvjp(_placed_forward, _placed_backward)


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
  # Whether it has dropout of its own, which training enables whatever the backbone's rate is.
  has_dropout = False

  @property
  def num_virtual_tokens(self) -> int:
    """P, positions of the encoder's input that it fills."""
    return 0

  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    raise NotImplementedError

  def with_vocabulary(self, encode: Callable[[str], Sequence[int]]) -> "PromptMethod":
    """The method that knows what it must of the vocabulary; itself where that is nothing.

    Args:
      encode: text -> ids, without the end of the sequence.
    """
    return self

  def choose(self, bank: Array, context: PromptContext) -> Array:
    """Each row's prompt of a bank: `[N, ...] -> [B, ...]`; of one prompt `[1, ...]`, for all rows.

    Raises:
      UserError: there are several, and the batch does not say which.
    """
    if self.num_prompts == 1:
      return bank
    if context.prompt_ids is None:
      if not self.is_initializing():
        raise UserError("A bank of prompts was used without prompt ids", found="prompt_ids=None",
                        wanted=f"[B] ids below {self.num_prompts}",
                        fix="give the batch `prompt_ids`, or set num_prompts to 1")
      # Initialisation has no batch; prompt 0 has the right shape.
      return bank[:1]
    return jnp.take(bank, jnp.clip(context.prompt_ids, 0, self.num_prompts - 1), axis=0)

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    """The tree to start training from.

    Args:
      params: what Flax's own initialisers gave, to be replaced where weights are needed.
      sources: what may be read of the backbone.
    """
    return params

  def check_start(self, key: Array, sources: Sources) -> None:
    """Reads the files that it starts from, before any weight is loaded.

    Args:
      sources: with the shape of the embedding table in place of it.

    Raises:
      UserError: one of them is missing or does not fit.
    """
    method: Any = self
    start = getattr(method, "initializer", None)
    if isinstance(start, FromFile | FromRun | FromBank):
      start(key, method.length, sources)

  def check_task(self, task: str, targets: Iterable[tuple[str, Sequence[int]]], *,
                 leading_sentinel: bool = False, label_smoothing: float = 0.0) -> None:
    """Whether it can be trained and evaluated on a task, before any weight is loaded.

    Args:
      task: its name, for the message.
      targets: all that there are, text and ids without the end of the sequence; read only by a
        method that cannot write every text.
      leading_sentinel: LEADING_SENTINEL of the task.
      label_smoothing: of the loss.

    Raises:
      UserError: it cannot.
    """

  def served(self) -> "PromptMethod":
    """The module that serves what this one trains, with the same values."""
    return self

  def fold(self, params: dict) -> dict:
    """The parameters of `served()` that give the same values as `params` do here."""
    return params

  def of_one(self) -> "PromptMethod":
    """The method of one prompt of a bank; itself where it is no bank."""
    return self if self.num_prompts == 1 else self.clone(num_prompts=1)

  def merge(self, backbone: Any, params: dict) -> Any:
    """The backbone with this method worked into its weights, or None where that is not possible.

    Args:
      backbone: flat, `{path: leaf}`, in either layout of layers.
      params: of the served form.
    """
    return None
