"""Decoding against Python loops, exhaustive enumeration and exact distributions.

The model is a Markov chain: a row's logits are a table's row for its last token. Its state holds a
cache that has to follow the beams and a counter of the calls.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prompt_tuning.decoding import beam_search, greedy, sample
from prompt_tuning.errors import UserError

EOS = 1


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def markov(tables, rows_per_table=1):
  """A step function with one table `[V, V]` a row, and its state.

  The cache `[2, rows, 2]` (a leading layer axis) holds the row's input, and a sum over all tokens
  it has read, which moves the logits: a beam that loses its own history gives other scores.
  """
  tables = np.repeat(np.asarray(tables, np.float32), rows_per_table, axis=0)

  def next_logits(tokens, state):
    own = state["cache"][0, :, 0].astype(jnp.int32)
    read = state["cache"][0, :, 1] + tokens[:, 0].astype(jnp.float32)
    logits = jnp.asarray(tables)[own, tokens[:, 0]] * (1.0 + 0.1 * read)[:, None]
    cache = state["cache"].at[:, :, 1].set(jnp.stack([read, read]))
    return logits, {"cache": cache, "calls": state["calls"] + 1}

  rows = len(tables)
  cache = jnp.zeros((2, rows, 2)).at[:, :, 0].set(jnp.arange(rows, dtype=jnp.float32)[None, :])
  return next_logits, {"cache": cache, "calls": jnp.int32(0)}


def reorder(state, index):
  return {**state, "cache": state["cache"][:, index]}


def step_log_probs(table, prefix, start=0):
  read = [start, *prefix]
  return log_softmax(np.asarray(table, np.float32)[read[-1]] * (1.0 + 0.1 * sum(read)))


def tables(batch_size, vocab_size, seed=0):
  return np.random.default_rng(seed).normal(0.0, 1.5, (batch_size, vocab_size, vocab_size))


def padded(sequence, length):
  return list(sequence) + [0] * (length - len(sequence))


def counting(next_logits, calls):
  """`next_logits` that counts how often it really runs."""
  def wrapped(tokens, state):
    jax.debug.callback(lambda: calls.append(1))
    return next_logits(tokens, state)
  return wrapped


@pytest.mark.parametrize("start", [0, 3])
def test_greedy_is_the_python_loop(start):
  chains = tables(12, 6)
  next_logits, state = markov(chains)
  tokens = jax.jit(lambda s: greedy(next_logits, s, batch_size=12, max_length=7,
                                    start_id=start))(state)
  wanted = []
  for table in chains:
    row = []
    while len(row) < 7 and EOS not in row:
      row.append(int(np.argmax(step_log_probs(table, row, start))))
    wanted.append(padded(row, 7))
  np.testing.assert_array_equal(tokens, wanted)
  assert tokens.dtype == jnp.int32
  lengths = {row.index(EOS) if EOS in row else 7 for row in wanted}
  assert len(lengths) > 2 and 7 in lengths


@pytest.mark.parametrize("lengths,calls_wanted", [((2, 4), 4), ((1, 1), 1), ((3, 50), 9)])
def test_greedy_stops_when_every_row_has_ended(lengths, calls_wanted):
  def next_logits(tokens, state):
    return jax.nn.one_hot(jnp.where(state + 1 >= jnp.array(lengths), EOS, 2), 4), state + 1

  calls = []
  tokens = greedy(counting(next_logits, calls), jnp.int32(0), batch_size=2, max_length=9)
  jax.effects_barrier()
  assert len(calls) == calls_wanted
  for row, length in zip(np.asarray(tokens), lengths, strict=True):
    assert row.tolist() == padded(([2] * (length - 1) + [EOS])[:9], 9)


def hypotheses(table, vocab_size, max_length, alpha):
  """Every sequence that ends, or fills `max_length`, with its score; best first."""
  scored = []
  for length in range(1, max_length + 1):
    for body in itertools.product([t for t in range(vocab_size) if t != EOS], repeat=length - 1):
      for last in range(vocab_size) if length == max_length else [EOS]:
        row = [*body, last]
        log_prob = sum(step_log_probs(table, row[:i])[row[i]] for i in range(length))
        scored.append((log_prob / ((5 + length) / 6) ** alpha, row))
  return sorted(scored, reverse=True)


def python_beam_search(table, vocab_size, max_length, alpha, num_beams):
  """Beam search with lists: no early stop, no fixed shapes."""
  live, ended = [(0.0, [])], []
  for length in range(1, max_length + 1):
    grown = sorted(((total + step_log_probs(table, row)[t], [*row, t])
                    for total, row in live for t in range(vocab_size)), reverse=True)
    grown = grown[:2 * num_beams]
    penalty = ((5 + length) / 6) ** alpha
    ended += [(total / penalty, row) for total, row in grown if row[-1] == EOS]
    live = [(total, row) for total, row in grown if row[-1] != EOS][:num_beams]
  ended += [(total / penalty, row) for total, row in live]
  return sorted(ended, reverse=True)[:num_beams]


def run_beams(chains, num_beams, max_length, alpha):
  next_logits, state = markov(chains, num_beams)
  return jax.jit(lambda s: beam_search(
      next_logits, s, batch_size=len(chains), max_length=max_length, num_beams=num_beams,
      reorder=reorder, alpha=alpha))(state)


def compare(tokens, scores, wanted, max_length):
  for row, row_scores, best in zip(np.asarray(tokens), np.asarray(scores), wanted, strict=True):
    np.testing.assert_allclose(row_scores[:len(best)], [s for s, _ in best], rtol=1e-5)
    assert row[:len(best)].tolist() == [padded(h, max_length) for _, h in best]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beams_that_hold_everything_find_everything(alpha):
  chains = tables(2, 3, seed=4)
  wanted = [hypotheses(table, 3, 3, alpha) for table in chains]
  tokens, scores = run_beams(chains, num_beams=3**3, max_length=3, alpha=alpha)
  compare(tokens, scores, wanted, 3)
  # 1 + 2 + 4 * 3 sequences exist; the other beams are empty.
  assert len(wanted[0]) == 15
  assert np.all(np.isneginf(scores[:, 15:])) and not np.any(tokens[:, 15:])


@pytest.mark.parametrize("num_beams,alpha", [(1, 0.6), (3, 0.6), (3, 0.0), (4, 3.0)])
def test_few_beams_are_the_python_beam_search(num_beams, alpha):
  chains = tables(6, 5, seed=7)
  tokens, scores = run_beams(chains, num_beams, max_length=6, alpha=alpha)
  compare(tokens, scores, [python_beam_search(t, 5, 6, alpha, num_beams) for t in chains], 6)


def test_beams_find_what_greedy_misses():
  # Token 2 looks better, but only 3 leads on to a sure end.
  table = np.full((4, 4), -20.0)
  table[0], table[2], table[3] = [-20, -20, 0.6, 0.4], [0, 0, 0, 0], [-20, 20, -20, -20]
  tokens, scores = run_beams([table], 2, max_length=4, alpha=0.0)
  next_logits, state = markov([table])
  assert greedy(next_logits, state, batch_size=1, max_length=4)[0, 0] == 2
  assert tokens[0, 0].tolist() == [3, EOS, 0, 0]
  assert hypotheses(table, 4, 4, 0.0)[0][1] == [3, EOS]


# A live beam of t tokens scores about -11.8 t, over 1 or at best (45 / 6)^0.6 = 3.35 at the end;
# the second best ending scores -11.8 or -11.8 / (7 / 6)^0.6 = -10.8: t = 2 and t = 4 are enough.
@pytest.mark.parametrize("alpha,calls_wanted", [(0.0, 2), (0.6, 4)])
def test_beam_search_stops_when_no_live_beam_can_win(alpha, calls_wanted):
  logits = np.array([0.0, 12.0, 0.1, 0.2], np.float32)

  def next_logits(tokens, state):
    return jnp.tile(logits, (len(tokens), 1)), state

  calls = []
  tokens, scores = beam_search(counting(next_logits, calls), None, batch_size=2, max_length=40,
                               num_beams=2, reorder=lambda state, index: state, alpha=alpha)
  jax.effects_barrier()
  assert len(calls) == calls_wanted
  assert tokens[0, :, :3].tolist() == [[EOS, 0, 0], [3, EOS, 0]]
  log_probs = log_softmax(logits)
  wanted = [log_probs[1], (log_probs[3] + log_probs[1]) / (7 / 6) ** alpha]
  np.testing.assert_allclose(scores, [wanted, wanted], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 6},
    {"top_p": 0.6}, {"top_p": 0.999}, {"top_p": 1e-9},
    {"temperature": 2.0, "top_k": 4, "top_p": 0.7},
])
def test_samples_follow_the_exact_distribution(settings):
  rows = 20_000
  logits = np.array([0.3, 1.0, -0.7, 1.4, 0.0, 1.1])
  table = np.tile(logits, (6, 1)) + np.array([0, 0, 1, 0, 0, 0])[:, None] * logits

  tokens = np.asarray(jax.jit(lambda key: sample(
      lambda last, state: (jnp.asarray(table, jnp.float32)[last[:, 0]], state), None,
      batch_size=rows, max_length=2, eos_id=99, key=key, **settings))(jax.random.key(3)))

  def exact(logits):
    p = np.exp(log_softmax(logits / settings.get("temperature", 1.0)))
    kept = sorted(range(6), key=lambda t: -p[t])[:settings.get("top_k") or 6]
    p = np.where(np.isin(range(6), kept), p, 0.0) / p[kept].sum()
    mass, nucleus = 0.0, []
    for token in kept:
      if mass < settings.get("top_p", 1.0):
        nucleus.append(token)
        mass += p[token]
    return np.where(np.isin(range(6), nucleus), p, 0.0) / p[nucleus].sum()

  first, then = exact(table[0]), np.array([exact(row) for row in table])
  joint = (first[:, None] * then).reshape(-1)
  counts = np.bincount(tokens[:, 0] * 6 + tokens[:, 1], minlength=36)
  possible = joint > 0
  assert counts[~possible].sum() == 0
  if possible.sum() > 1:
    assert scipy.stats.chisquare(counts[possible], rows * joint[possible]).pvalue > 1e-3


def test_samples_end_pad_and_stop():
  calls = []
  next_logits = counting(lambda last, state: (jnp.zeros((len(last), 3)), state), calls)

  def draw(seed):
    return np.asarray(sample(next_logits, None, batch_size=5, max_length=200,
                             key=jax.random.key(seed)))

  tokens = draw(0)
  jax.effects_barrier()
  lengths = [row.tolist().index(EOS) + 1 for row in tokens]
  assert len(calls) == max(lengths) < 200
  assert all(not row[length:].any() for row, length in zip(tokens, lengths, strict=True))
  np.testing.assert_array_equal(draw(0), tokens)
  assert np.any(draw(1) != tokens)


@pytest.mark.parametrize("settings,message", [
    ({"temperature": 0.0}, "temperature is out of range\n  found:  0.0"),
    ({"temperature": -1.0}, "decode greedily instead"),
    ({"top_k": -1}, "top_k is out of range\n  found:  -1"),
    ({"top_k": 7}, "top_k is more than the vocabulary\n  found:  7\n  wanted: at most 6"),
    ({"top_p": 0.0}, "top_p is out of range\n  found:  0.0"),
    ({"top_p": 1.1}, "wanted: 0 < top_p <= 1"),
    ({"max_length": 0}, "max_length is out of range\n  found:  0"),
])
def test_sample_settings_are_checked(settings, message):
  next_logits, state = markov(tables(2, 6))
  with pytest.raises(UserError) as error:
    sample(next_logits, state, **{"batch_size": 2, "max_length": 3, "key": jax.random.key(0),
                                  **settings})
  assert message in str(error.value)


@pytest.mark.parametrize("settings,message", [
    ({"num_beams": 0}, "num_beams is out of range\n  found:  0"),
    ({"alpha": -0.5}, "the length penalty alpha is negative\n  found:  -0.5"),
    ({"max_length": 0}, "max_length is out of range"),
])
def test_beam_settings_are_checked(settings, message):
  next_logits, state = markov(tables(2, 6))
  with pytest.raises(UserError) as error:
    beam_search(next_logits, state, **{"batch_size": 2, "max_length": 3, "num_beams": 1,
                                       "reorder": reorder, **settings})
  assert message in str(error.value)
