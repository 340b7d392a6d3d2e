"""Constraints on what is generated, against Python loops over all of a tiny vocabulary's rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from test_decoding import EOS, log_softmax, markov, padded, reorder, step_log_probs, tables

from prompt_tuning.constraints import NONE, Constraints
from prompt_tuning.decoding import beam_search, greedy, sample
from prompt_tuning.errors import UserError

VOCAB, LENGTH = 4, 4
LIMITS = [Constraints(min_length=3), Constraints(no_repeat_ngram=1), Constraints(no_repeat_ngram=2),
          Constraints(no_repeat_ngram=3, min_length=2), Constraints(prefix=jnp.array([2, 3, 2])),
          Constraints(prefix=jnp.array([3, 3]), no_repeat_ngram=2, min_length=3)]


def may_follow(limits, prefix, token):
  """Whether `token` may come after `prefix`, said plainly."""
  forced = [] if limits.prefix is None else np.asarray(limits.prefix).tolist()
  if len(prefix) < len(forced):
    return token == forced[len(prefix)]

  def allowed(token):
    if token == EOS and len(prefix) < limits.min_length:
      return False
    n = limits.no_repeat_ngram
    grown = [*prefix, token]
    grams = [tuple(grown[i:i + n]) for i in range(len(grown) - n + 1)]
    return not n or tuple(grown[-n:]) not in grams[:-1] or len(grown) < n

  left = [t for t in range(VOCAB) if allowed(t)]
  return token in left if left else token == EOS


def sequences(limits):
  """Every row that ends, or fills `LENGTH`, and keeps the limits. Padding (0) is no token here."""
  for length in range(1, LENGTH + 1):
    for row in itertools.product(range(1, VOCAB), repeat=length):
      ends = row[-1] == EOS or length == LENGTH
      if ends and EOS not in row[:-1] and all(
          may_follow(limits, list(row[:i]), token) for i, token in enumerate(row)):
        yield list(row)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_permitted_is_the_plain_rule(limits):
  rows = [list(row) for row in itertools.product(range(1, VOCAB), repeat=LENGTH - 1)]
  permitted = jax.jit(lambda tokens, step: limits.permitted(tokens, step, VOCAB))
  tokens = np.array([padded(row, LENGTH) for row in rows], np.int32)
  for step in range(LENGTH):
    found = np.asarray(permitted(jnp.where(jnp.arange(LENGTH)[None] < step, tokens, 0), step))
    for row, one in zip(rows, found, strict=True):
      wanted = [may_follow(limits, row[:step], token) for token in range(1, VOCAB)]
      assert one[1:].tolist() == wanted, (row[:step], step)


def chains(count):
  """Tables that never give token 0, so that a row is what `sequences` lists."""
  values = tables(count, VOCAB, seed=4)
  values[:, :, 0] = -1e9
  return values


@pytest.mark.parametrize("limits", [LIMITS[0], LIMITS[5]], ids=str)
def test_beams_that_hold_everything_are_the_exhaustive_search(limits):
  table, = chains(1)
  scored = sorted(((sum(step_log_probs(table, row[:i])[token] for i, token in enumerate(row))
                    / ((5 + len(row)) / 6) ** 0.6, row) for row in sequences(limits)), reverse=True)
  next_logits, state = markov([table], 32)
  tokens, scores = jax.jit(lambda s: beam_search(
    next_logits, s, batch_size=1, max_length=LENGTH, num_beams=32, reorder=reorder,
    limits=limits))(state)
  count = len(scored)
  assert 0 < count < 32
  np.testing.assert_allclose(scores[0, :count], [score for score, _ in scored], rtol=1e-5)
  assert tokens[0, :count].tolist() == [padded(row, LENGTH) for _, row in scored]
  assert np.all(np.asarray(scores[0, count:]) < -1e8)


def test_greedy_takes_the_likeliest_of_what_is_permitted():
  limits = LIMITS[5]
  many = chains(6)
  next_logits, state = markov(many)
  found = jax.jit(lambda s: greedy(next_logits, s, batch_size=6, max_length=LENGTH,
                                   limits=limits))(state)
  for table, tokens in zip(many, np.asarray(found).tolist(), strict=True):
    row = []
    while len(row) < LENGTH and EOS not in row:
      log_probs = step_log_probs(table, row)
      row.append(max((t for t in range(1, VOCAB) if may_follow(limits, row, t)),
                     key=lambda t: log_probs[t]))
    assert tokens == padded(row, LENGTH)


def test_samples_follow_the_renormalised_distribution():
  limits, rows = Constraints(min_length=1, no_repeat_ngram=1), 20_000
  table, = chains(1)

  def probability(row):
    p = 1.0
    for i, token in enumerate(row):
      left = [t for t in range(1, VOCAB) if may_follow(limits, row[:i], t)]
      p *= np.exp(log_softmax(table[row[i - 1] if i else 0][left])[left.index(token)])
    return p

  possible = {tuple(padded(row, LENGTH)): probability(row) for row in sequences(limits)}
  assert sum(possible.values()) == pytest.approx(1.0)
  step = jnp.asarray(table, jnp.float32)
  found = np.asarray(jax.jit(lambda key: sample(
    lambda last, state: (step[last[:, 0]], state), None, batch_size=rows, max_length=LENGTH,
    key=key, limits=limits))(jax.random.key(2)))
  kinds, counts = np.unique(found, axis=0, return_counts=True)
  counted = dict(zip(map(tuple, kinds.tolist()), counts, strict=True))
  assert counted.keys() <= possible.keys()
  expected = [rows * p for p in possible.values()]
  assert scipy.stats.chisquare([counted.get(k, 0) for k in possible], expected).pvalue > 1e-3


def test_a_row_draws_the_same_in_any_batch():
  keys = jax.random.split(jax.random.key(0), 6)
  chain = jnp.asarray(chains(1)[0], jnp.float32)

  @jax.jit
  def draw(keys):
    return sample(lambda last, state: (chain[last[:, 0]], state), None, key=keys,
                  batch_size=len(keys), max_length=LENGTH, eos_id=99)

  whole = np.asarray(draw(keys))
  assert len(np.unique(whole, axis=0)) > 1
  np.testing.assert_array_equal(draw(keys[2:4]), whole[2:4])


@pytest.mark.parametrize("limits,message", [
  (Constraints(min_length=5), "min_length is out of range\n  found:  5\n  wanted: 0 to 4"),
  (Constraints(min_length=-1), "min_length is out of range"),
  (Constraints(no_repeat_ngram=-2), "no_repeat_ngram is out of range\n  found:  -2"),
  (Constraints(prefix=jnp.ones(5, jnp.int32)), "The forced prefix is longer than the targets")])
def test_limits_are_checked(limits, message):
  next_logits, state = markov(tables(2, VOCAB))
  with pytest.raises(UserError) as error:
    greedy(next_logits, state, batch_size=2, max_length=LENGTH, limits=limits)
  assert message in str(error.value)
  assert NONE.is_none and not limits.is_none
