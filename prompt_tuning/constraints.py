"""What may not be generated: too early an end, repeated n-grams, anything but a forced prefix.

`Constraints.permitted` says which token may come next, given those a row has so far; the loops of
`decoding.py` hide the others. Sampling draws from what is left, renormalised; a beam keeps the
model's own log-probabilities, so that its scores stay those of the whole sequence.

  min_length       tokens before the end of sequence
  no_repeat_ngram  n: no n tokens in a row come twice (Paulus et al. 2017, arXiv 1705.04304,
                   section 2.5)
  prefix           the first tokens, whatever the other two say

Where nothing would be left, the row ends.
"""

import jax.numpy as jnp
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID, PAD_ID


@struct.dataclass
class Constraints:
  """Attributes:
    prefix: `[F]` ids that every row begins with, or None.
    min_length, no_repeat_ngram: see the module docstring; 0 is none.
  """

  prefix: Array | None = None
  min_length: int = struct.field(pytree_node=False, default=0)
  no_repeat_ngram: int = struct.field(pytree_node=False, default=0)

  def check(self, max_length: int) -> None:
    """Raises a `UserError` for a number that is out of its range."""
    if not 0 <= self.min_length <= max_length:
      raise UserError("min_length is out of range", found=self.min_length,
                      wanted=f"0 to {max_length}, the most tokens a row may have",
                      fix="lower MIN_LENGTH, or raise TASK_FEATURE_LENGTHS['targets']")
    if self.no_repeat_ngram < 0:
      raise UserError("no_repeat_ngram is out of range", found=self.no_repeat_ngram,
                      wanted="a number of tokens, or 0 for none", fix="set it to 3")
    if self.prefix is not None and len(self.prefix) > max_length:
      raise UserError("The forced prefix is longer than the targets",
                      found=f"{len(self.prefix)} tokens", wanted=f"at most {max_length}",
                      fix="shorten FORCED_PREFIX, or raise TASK_FEATURE_LENGTHS['targets']")

  @property
  def is_none(self) -> bool:
    return self.prefix is None and not self.min_length and not self.no_repeat_ngram

  def permitted(self, tokens: Array, step: Array, vocab_size: int, eos_id: int = EOS_ID) -> Array:
    """Which tokens may stand at `step`.

    Args:
      tokens: `[R, U]`, what each row has before `step`.
      step: int32.

    Returns:
      `[R, V]` bool.
    """
    ids = jnp.arange(vocab_size)[None]
    allowed = jnp.ones((len(tokens), vocab_size), bool)
    if self.min_length:
      allowed &= (ids != eos_id) | (step >= self.min_length)
    if 0 < self.no_repeat_ngram <= tokens.shape[1]:
      allowed &= ~_would_repeat(tokens, step, self.no_repeat_ngram, vocab_size)
    allowed |= (ids == eos_id) & ~jnp.any(allowed, axis=-1, keepdims=True)
    if self.prefix is not None and len(self.prefix):
      forced = self.prefix[jnp.minimum(step, len(self.prefix) - 1)]
      allowed = jnp.where(step < len(self.prefix), ids == forced, allowed)
    return allowed

  def hide(self, scores: Array, tokens: Array, step: Array, eos_id: int = EOS_ID) -> Array:
    """Scores `[R, V]`, -inf where a token may not stand; themselves without constraints."""
    if self.is_none:
      return scores
    return jnp.where(self.permitted(tokens, step, scores.shape[-1], eos_id), scores, -jnp.inf)


NONE = Constraints()


def _would_repeat(tokens: Array, step: Array, n: int, vocab_size: int) -> Array:
  """`[R, V]`: the token would end an n-gram that the row has already."""
  rows, length = tokens.shape
  starts = jnp.arange(length - n + 1)
  # Whether the n - 1 tokens from each start are the last n - 1 of the row.
  same = jnp.ones((rows, len(starts)), bool)
  for i in range(n - 1):
    last = jnp.take(tokens, jnp.maximum(step - (n - 1) + i, 0), axis=1)
    same &= tokens[:, i:i + len(starts)] == last[:, None]
  # An n-gram has to end before `step`. Padding after the row's end is not text.
  same &= (starts + n - 1 < step)[None] & (step >= n - 1)
  ends = tokens[:, n - 1:]
  same &= ends != PAD_ID
  row = jnp.broadcast_to(jnp.arange(rows)[:, None], ends.shape)
  return jnp.zeros((rows, vocab_size), bool).at[row, ends].max(same)
