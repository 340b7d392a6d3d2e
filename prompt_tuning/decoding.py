"""Greedy decoding, sampling and beam search over any step function; nothing here knows T5.

The step function is `next_logits(tokens [B, 1] int32, state) -> (logits [B, V], state)`: it reads
each row's last token and answers with the logits of the next one. `state` is any pytree of fixed
shapes, in T5 the decoder's caches and position. The loops are `lax.while_loop`s that end when every
row has ended. What they return holds no start token, includes the end of sequence, and is 0 after.

A beam hypothesis of n tokens (its end of sequence counts) scores

  log p / ((5 + n) / 6)^alpha                                     (Wu et al. 2016; T5: alpha = 0.6)

and one cut off at `max_length` competes like one that ended there. All three take `Constraints`
(`constraints.py`): minimum length, no repeated n-grams, a forced prefix.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from prompt_tuning import constraints
from prompt_tuning.constraints import Constraints
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID, PAD_ID

State = Any
NextLogits = Callable[[Array, State], tuple[Array, State]]
Reorder = Callable[[State, Array], State]


def greedy(next_logits: NextLogits, state: State, *, batch_size: int, max_length: int,
           eos_id: int = EOS_ID, start_id: int = PAD_ID,
           limits: Constraints = constraints.NONE) -> Array:
  """The likeliest token at every step, the lowest id where several are.

  Args:
    next_logits: the step function.  state: its state for `batch_size` rows.
    batch_size, max_length: B, and the most tokens a row may have.
    eos_id: ends a row.  start_id: what the first step reads.
    limits: what may not be generated.

  Returns:
    `[B, max_length]` int32.

  Raises:
    UserError: `max_length` is below 1, or a limit out of its range.
  """
  return _decode(next_logits, state, lambda logits, step: jnp.argmax(logits, axis=-1),
                 batch_size, max_length, eos_id, start_id, limits)


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
  """Raises a UserError where a setting of `sample` is out of its range."""
  if not temperature > 0.0:
    raise UserError("temperature is out of range", found=temperature, wanted="above 0",
                    fix="decode greedily instead of at temperature 0")
  if top_k < 0:
    raise UserError("top_k is out of range", found=top_k, wanted="a number of tokens, or 0 for all",
                    fix="set top_k to 0 or more")
  if not 0.0 < top_p <= 1.0:
    raise UserError("top_p is out of range", found=top_p, wanted="0 < top_p <= 1 (1.0 for all)",
                    fix="set top_p, for instance to 0.95")


def check_beams(num_beams: int, alpha: float) -> None:
  """Raises a UserError where a setting of `beam_search` is out of its range."""
  if num_beams < 1:
    raise UserError("num_beams is out of range", found=num_beams, wanted="1 or more",
                    fix="set num_beams to 4, T5's choice")
  if not alpha >= 0.0:
    raise UserError("the length penalty alpha is negative", found=alpha, wanted="0 or more",
                    fix="set alpha to 0.6, T5's choice, or to 0.0 for none")


def sample(next_logits: NextLogits, state: State, *, batch_size: int, max_length: int, key: Array,
           temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, eos_id: int = EOS_ID,
           start_id: int = PAD_ID, limits: Constraints = constraints.NONE) -> Array:
  """Tokens drawn at random from the model's distribution, or from the top of it.

  Args:
    next_logits, state, batch_size, max_length, eos_id, start_id, limits: as for `greedy`.
    key: a JAX random key for each row, `[B]`, so that what a row draws does not depend on the batch
      it is in; or one key, whose `fold_in(key, b)` is row b's. Step t uses `fold_in(row's, t)`.
    temperature: divides the logits.
    top_k: draw among the k likeliest tokens; 0 for all.
    top_p: of those, draw among the fewest likeliest whose probabilities reach p; 1.0 for all.

  Returns:
    `[B, max_length]` int32.

  Raises:
    UserError: a number is out of its range, or `top_k` is more than V.
  """
  check_sampling(temperature, top_k, top_p)

  keys = key if key.ndim else jax.vmap(lambda row: jax.random.fold_in(key, row))(
    jnp.arange(batch_size))

  def draw(logits, step):
    logits = logits.astype(jnp.float32) / temperature
    step_keys = jax.vmap(lambda row: jax.random.fold_in(row, step))(keys)
    vocab_size = logits.shape[-1]
    if top_k > vocab_size:
      raise UserError("top_k is more than the vocabulary", found=top_k,
                      wanted=f"at most {vocab_size}", fix="set top_k to 0 for all tokens")
    if not top_k and top_p == 1.0:
      return jax.vmap(jax.random.categorical)(step_keys, logits)
    logits, ids = lax.top_k(logits, top_k or vocab_size)
    if top_p < 1.0:
      probabilities = jax.nn.softmax(logits)
      # What comes before a token, not up to it: the token that crosses p is still in.
      before = jnp.cumsum(probabilities, axis=-1) - probabilities
      # The likeliest token stays whatever rounding makes of a tiny p.
      logits = jnp.where(before < top_p, logits, -jnp.inf).at[:, 0].set(logits[:, 0])
    choice = jax.vmap(jax.random.categorical)(step_keys, logits)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0]

  return _decode(next_logits, state, draw, batch_size, max_length, eos_id, start_id, limits)


def _decode(next_logits, state, choose, batch_size, max_length, eos_id, start_id, limits):
  """The loop of one hypothesis a row; `choose(logits [B, V], step) -> [B]`."""
  _check_length(max_length)
  limits.check(max_length)

  def unfinished(carry):
    step, _, ended, _, _ = carry
    return (step < max_length) & ~jnp.all(ended)

  def advance(carry):
    step, last, ended, tokens, state = carry
    logits, state = next_logits(last[:, None], state)
    logits = limits.hide(logits, tokens, step, eos_id)
    last = jnp.where(ended, PAD_ID, choose(logits, step).astype(jnp.int32))
    return step + 1, last, ended | (last == eos_id), tokens.at[:, step].set(last), state

  start = (jnp.int32(0), jnp.full((batch_size,), start_id, jnp.int32),
           jnp.zeros((batch_size,), bool), jnp.full((batch_size, max_length), PAD_ID, jnp.int32),
           state)
  return lax.while_loop(unfinished, advance, start)[3]


def beam_search(next_logits: NextLogits, state: State, *, batch_size: int, max_length: int,
                num_beams: int, reorder: Reorder, alpha: float = 0.6, eos_id: int = EOS_ID,
                start_id: int = PAD_ID,
                limits: Constraints = constraints.NONE) -> tuple[Array, Array]:
  """The best of the hypotheses that stay among `num_beams` at every step.

  Args:
    next_logits, batch_size, max_length, eos_id, start_id, limits: as for `greedy`, but
      `next_logits` works on B * num_beams rows: row `b * num_beams + k` is beam k of input b.
    state: for those B * num_beams rows.
    reorder: `(state, index [B * num_beams]) -> state` whose row i is the old row `index[i]`. An
      index never leaves the rows of its input, so what is the same for all beams of an input
      (cross-attention keys and values) need not move.
    alpha: of the length penalty; 0 for none.

  Returns:
    tokens `[B, num_beams, max_length]` int32, best first, and scores `[B, num_beams]` float32.
    Where fewer hypotheses exist than beams, the tokens are 0 and the score is -inf.

  Raises:
    UserError: `max_length` or `num_beams` is below 1, `alpha` negative, or a limit out of range.
  """
  _check_length(max_length)
  limits.check(max_length)
  check_beams(num_beams, alpha)
  first_rows = jnp.arange(batch_size, dtype=jnp.int32)[:, None] * num_beams

  def penalized(log_probs, length):
    return log_probs / ((5.0 + jnp.float32(length)) / 6.0) ** alpha

  def unfinished(carry):
    step, _, live, _, _, ended_scores, _ = carry
    # A log-probability only falls, and is divided by no more than the penalty of max_length.
    bound = penalized(jnp.max(live, axis=-1), max_length)
    return (step < max_length) & jnp.any(bound > ended_scores[:, -1])

  def advance(carry):
    step, last, live, tokens, ended, ended_scores, state = carry
    logits, state = next_logits(last.reshape(-1, 1), state)
    # Hidden after the softmax: a score is the model's log-probability of the hypothesis.
    log_probs = limits.hide(jax.nn.log_softmax(logits.astype(jnp.float32)),
                            tokens.reshape(-1, max_length), step, eos_id)
    vocab_size = log_probs.shape[-1]
    totals = live[:, :, None] + log_probs.reshape(batch_size, num_beams, vocab_size)
    # Of twice as many candidates as beams at most half end, so the live beams stay full.
    totals, flat = lax.top_k(totals.reshape(batch_size, -1), num_beams * min(2, vocab_size))
    parents, last = flat // vocab_size, flat % vocab_size
    tokens = _rows(tokens, parents).at[:, :, step].set(last)
    ends = last == eos_id
    ended, ended_scores = _best(num_beams, [ended, tokens], [
        ended_scores, jnp.where(ends, penalized(totals, step + 1), -jnp.inf)])
    live, kept = lax.top_k(jnp.where(ends, -jnp.inf, totals), num_beams)
    parents, last = (jnp.take_along_axis(x, kept, axis=1) for x in (parents, last))
    state = reorder(state, (first_rows + parents).reshape(-1))
    return step + 1, last, live, _rows(tokens, kept), ended, ended_scores, state

  empty = jnp.full((batch_size, num_beams, max_length), PAD_ID, jnp.int32)
  no_score = jnp.full((batch_size, num_beams), -jnp.inf, jnp.float32)
  # All beams start alike; with one of them alive, no hypothesis is found twice.
  start = (jnp.int32(0), jnp.full((batch_size, num_beams), start_id, jnp.int32),
           no_score.at[:, 0].set(0.0), empty, empty, no_score, state)
  step, _, live, tokens, ended, ended_scores, _ = lax.while_loop(unfinished, advance, start)
  found, scores = _best(num_beams, [ended, tokens], [ended_scores, penalized(live, step)])
  return jnp.where(jnp.isneginf(scores)[:, :, None], PAD_ID, found), scores


def _rows(tokens: Array, index: Array) -> Array:
  return jnp.take_along_axis(tokens, index[:, :, None], axis=1)


def _best(count: int, tokens: list[Array], scores: list[Array]) -> tuple[Array, Array]:
  """The `count` best hypotheses of several sets `[B, ., U]`, best first."""
  scores, index = lax.top_k(jnp.concatenate(scores, axis=1), count)
  return _rows(jnp.concatenate(tokens, axis=1), index), scores


def _check_length(max_length: int) -> None:
  if max_length < 1:
    raise UserError("max_length is out of range", found=max_length, wanted="1 or more",
                    fix="set the length of the targets")
