"""Denoising, against a second implementation of T5's definition and by inverting it."""

import collections
import functools
import itertools
import math

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import denoising
from prompt_tuning.tasks.objectives import (
  OBJECTIVES,
  Deshuffle,
  MissingWord,
  PrefixLM,
  Rebuild,
  SpanCorruption,
)

FIRST = 999  # the id of <extra_id_0>; ordinary tokens are below LAST
LAST = FIRST - 99
SEEDS = st.tuples(st.integers(0, 2**31), st.integers(0, 2**31))


@functools.cache
def _traced(objective):
  """One trace for all lengths and seeds: tracing takes longer than all the examples."""
  return tf.function(
    lambda tokens, seed: denoising.corrupt(objective, tokens, (seed, seed + 7), FIRST),
    input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int64)])


def corrupt(objective, tokens, seed=(1, 2)):
  inputs, targets = _traced(objective)(tokens, seed)
  return inputs.numpy().tolist(), targets.numpy().tolist()


def reference_span_counts(length, density, mean_length):
  """Number of noise tokens and spans, from the text of Raffel et al.'s definition."""
  noise = int(np.rint(np.float32(length * np.float32(density))))
  noise = min(max(noise, 1), length - 1)
  return noise, min(max(int(np.rint(np.float32(noise / np.float32(mean_length)))), 1),
                    length - noise)


def reference_corruption(tokens, mask, first=FIRST):
  """Token by token, from a mask: a span becomes a sentinel where the other side keeps it."""
  inputs, targets, sentinel = [], [], first
  for index, (token, hidden) in enumerate(zip(tokens, mask, strict=True)):
    starts = index == 0 or mask[index - 1] != hidden
    if hidden:
      inputs += [sentinel] if starts else []
      sentinel -= starts
      targets.append(token)
    else:
      targets += [sentinel] if starts else []
      inputs.append(token)
  return inputs, targets


def spans_of(sequence):
  """Sentinel -> the tokens after it; what stands ahead of the first is under None."""
  spans, key = collections.OrderedDict({None: []}), None
  for token in sequence:
    if token >= LAST:
      assert token not in spans
      spans[key := token] = []
    else:
      spans[key].append(token)
  return spans


def restore(inputs, targets):
  """Inverts span corruption without knowing the mask."""
  hidden = spans_of(targets)
  assert hidden.pop(None) == []
  restored = []
  for token in inputs:
    restored += hidden.pop(token) if token >= LAST else [token]
  assert not hidden
  return restored


@settings(deadline=None, max_examples=60)
@given(length=st.integers(4, 120), seed=SEEDS, settings_of=st.sampled_from(
  [(0.15, 3.0), (0.05, 1.0), (0.3, 2.0), (0.5, 10.0), (0.9, 1.0)]))
def test_span_corruption_follows_the_definition_and_inverts(length, seed, settings_of):
  density, mean = settings_of
  objective = SpanCorruption(noise_density=density, mean_span_length=mean)
  tokens = list(range(5, 5 + length))
  inputs, targets = corrupt(objective, tokens, seed)
  assert restore(inputs, targets) == tokens
  noise, spans = reference_span_counts(length, density, mean)
  assert objective.noise(length) == (noise, spans)
  sentinels = [token for token in inputs if token >= LAST]
  assert sentinels == [FIRST - index for index in range(spans)]
  assert len([token for token in targets if token < LAST]) == noise
  mask = [token in set(targets) for token in tokens]
  assert not mask[0] and mask[-1]
  assert (inputs, targets) == reference_corruption(tokens, mask)


def test_leading_sentinel_counts_spans_from_one():
  tokens = list(range(5, 45))
  inputs, targets = corrupt(SpanCorruption(leading_sentinel=True), tokens)
  assert [token for token in inputs if token >= LAST] == [FIRST - 1, FIRST - 2]
  assert targets[0] == FIRST - 1
  assert restore(inputs, targets) == tokens


def test_compositions_are_uniform():
  counts = collections.Counter()
  draw = tf.function(lambda seed: denoising.composition(tf.constant(6), tf.constant(3), seed),
                     input_signature=[tf.TensorSpec([2], tf.int64)])
  for seed in range(2000):
    counts[tuple(draw([seed, 0]).numpy().tolist())] += 1
  every = [parts for parts in itertools.product(range(1, 7), repeat=3) if sum(parts) == 6]
  assert set(counts) == set(every) and len(every) == math.comb(5, 2)
  expected = 2000 / len(every)
  chi_squared = sum((counts[parts] - expected) ** 2 / expected for parts in every)
  assert chi_squared < 27.9  # 9 degrees of freedom, p = 0.001; the seeds are fixed


def test_noise_share_and_span_length():
  noise = spans = 0
  for seed in range(100):
    inputs, targets = corrupt(SpanCorruption(), list(range(5, 505)), (seed, 1))
    spans += sum(token >= LAST for token in inputs)
    noise += sum(token < LAST for token in targets)
  assert noise / (100 * 500) == 0.15
  assert noise / spans == 3.0


@settings(deadline=None, max_examples=30)
@given(length=st.integers(4, 90), seed=SEEDS)
def test_rebuild_asks_for_the_whole_text(length, seed):
  tokens = list(range(5, 5 + length))
  inputs, targets = corrupt(Rebuild(noise_density=0.5), tokens, seed)
  dropped, same = corrupt(Rebuild(noise_density=0.5, drop=True), tokens, seed)
  assert targets == same == tokens
  assert [token for token in inputs if token != LAST] == dropped
  noise, spans = reference_span_counts(length, 0.5, 3.0)
  assert len(dropped) == length - noise and inputs.count(LAST) == spans
  # A masked span and only it: each mark stands where tokens are missing.
  for left, mark, right in zip([4, *inputs], inputs, [*inputs[1:], 5 + length], strict=False):
    if mark == LAST:
      assert right > left + 1


def test_prefix_lm_splits_uniformly():
  tokens = list(range(5, 13))
  splits = collections.Counter()
  for seed in range(700):
    inputs, targets = corrupt(PrefixLM(), tokens, (seed, 3))
    assert inputs + targets == tokens
    splits[len(inputs)] += 1
  assert set(splits) == set(range(1, 8))
  assert sum((count - 100) ** 2 / 100 for count in splits.values()) < 22.5  # p = 0.001


def test_prefix_lm_keeps_its_bounds():
  for seed in range(50):
    inputs, _ = corrupt(PrefixLM(min_split=0.25, max_split=0.5), list(range(5, 25)), (seed, 3))
    assert 5 <= len(inputs) <= 10


def test_deshuffle_permutes():
  tokens = list(range(5, 45))
  inputs, targets = corrupt(Deshuffle(), tokens)
  assert targets == tokens and inputs != tokens and sorted(inputs) == tokens


class Vocabulary(seqio.PassThroughVocabulary):
  """1,000 ids, so that FIRST is <extra_id_0>."""

  def __init__(self):
    super().__init__(FIRST + 1, eos_id=1)


FEATURES = {name: seqio.Feature(Vocabulary(), add_eos=True) for name in ("inputs", "targets")}


def denoised(objective, texts, lengths=None, seed=3):
  dataset = tf.data.Dataset.from_generator(
    lambda: ({"targets": text} for text in texts),
    output_signature={"targets": tf.TensorSpec([None], tf.int32)})
  with seqio.map_seed_manager(seed):
    result = denoising.denoise(dataset, objective=objective, output_features=FEATURES,
                               sequence_length=lengths)
  return [(row["inputs"].tolist(), row["targets"].tolist()) for row in result.as_numpy_iterator()]


def test_a_seed_reproduces_a_dataset_and_examples_differ():
  texts = [list(range(5, 45))] * 6
  first = denoised(SpanCorruption(length=40), texts)
  assert first == denoised(SpanCorruption(length=40), texts)
  assert first != denoised(SpanCorruption(length=40), texts, seed=4)
  assert len({str(row) for row in first}) == 6


@pytest.mark.parametrize("sizes, length, expected", [
  ([3, 4], 8, [4]), ([8, 9, 16, 17], 8, [8, 4, 5, 8, 8, 5, 6, 6]), ([0, 100], 60, [50, 50])])
def test_texts_are_cut_into_equal_chunks(sizes, length, expected):
  texts = [list(range(5, 5 + size)) for size in sizes]
  rows = denoised(Deshuffle(length=length), texts)
  assert [len(targets) for _, targets in rows] == expected
  kept = [token for text in texts if len(text) >= 4 for token in text]
  assert [token for _, targets in rows for token in targets] == kept


def test_chunks_of_a_novel_in_one_line():
  # 300,000 tokens x 13,637 chunks is more than 32 bits hold.
  whole = tf.data.Dataset.from_tensors({"targets": np.arange(300_000, dtype=np.int32)})
  chunks = [chunk["targets"].numpy() for chunk in denoising.split_tokens(whole, 22)]
  np.testing.assert_array_equal(np.concatenate(chunks), np.arange(300_000))
  assert {len(chunk) for chunk in chunks} == {21, 22}


@pytest.mark.parametrize("kind, leading", [(SpanCorruption, False), *(
  (kind, True) for kind in OBJECTIVES.values())])
def test_chunks_fill_the_lengths_and_never_pass_them(kind, leading):
  lengths = {"inputs": 64, "targets": 40}
  objective = kind(leading_sentinel=leading)
  chunk = objective.chunk_length(lengths)
  rows = denoised(objective, [list(range(5, 5 + chunk))] * 20, lengths)
  assert len(rows) == 20
  assert max(len(inputs) for inputs, _ in rows) + 1 <= lengths["inputs"]
  assert max(len(targets) for _, targets in rows) + 1 <= lengths["targets"]
  needed = objective.needed(chunk + 1)
  assert needed[0] > 64 or needed[1] > 40
  assert (rows[0][1][0] == FIRST) == (leading or kind is SpanCorruption)


def test_t5s_own_length():
  # 568 tokens before noise fill 512 inputs: the figure in T5's code for its defaults.
  assert SpanCorruption().chunk_length({"inputs": 512, "targets": 114}) == 568


@pytest.mark.parametrize("make, message", [
  (lambda: SpanCorruption(noise_density=0.0), "SpanCorruption.noise_density is out of range"),
  (lambda: Rebuild(mean_span_length=0.5), "Rebuild.mean_span_length is out of range"),
  (lambda: PrefixLM(min_split=0.7, max_split=0.2), "PrefixLM.min_split, max_split"),
  (lambda: MissingWord(words=0), "MissingWord.words is out of range"),
  (lambda: Deshuffle(length=3), "8 tokens or more"),
  (lambda: SpanCorruption().chunk_length(None), "does not know how long a chunk is"),
  (lambda: Rebuild(length=80).chunk_length({"inputs": 96, "targets": 64}), "targets 81"),
  (lambda: PrefixLM().chunk_length({"inputs": 4, "targets": 4}), "fits no chunk"),
  (lambda: denoised(SpanCorruption(length=500, mean_span_length=1), []), "75 in a chunk"),
])
def test_errors(make, message):
  if "75" in message:  # 75 spans are fine, 150 are not
    assert make() == []
    with pytest.raises(UserError, match="needs more sentinels.*\n.*150 in a chunk of 1000"):
      denoised(SpanCorruption(length=1000, mean_span_length=1), [])
    return
  with pytest.raises(UserError) as error:
    make()
  assert message in str(error.value)


def test_missing_word_hides_every_occurrence_of_one_rare_piece():
  objective = MissingWord(length=40, first_rank=200)
  rng = np.random.default_rng(3)
  chosen = set()
  for trial in range(30):
    tokens = rng.integers(3, 230, 40).astype(np.int32)
    seeds = (tf.constant([trial, 1]), tf.constant([trial, 2]))
    corrupted = denoising.corrupt(objective, tf.constant(tokens), seeds, 4099)
    inputs, targets = (x.numpy() for x in corrupted)
    (word,) = targets
    assert word >= 200 and word in tokens and word not in inputs
    # The last of 100 sentinels; putting the word back gives the text.
    np.testing.assert_array_equal(np.where(inputs == 4000, word, inputs), tokens)
    chosen.add(list(np.sort(tokens[tokens >= 200])).index(word))
  assert len(chosen) > 1  # not always the rarest


def test_missing_word_takes_the_rarest_piece_where_none_is_rare():
  objective = MissingWord(length=8, first_rank=200)
  tokens = np.array([5, 9, 150, 9, 7, 150, 3, 4], np.int32)
  inputs, targets = denoising.corrupt(objective, tf.constant(tokens),
                                     (tf.constant([0, 1]),) * 2, 4099)
  assert targets.numpy().tolist() == [150]
  assert inputs.numpy().tolist() == [5, 9, 4000, 9, 7, 4000, 3, 4]


def test_several_missing_words_are_named_once_and_their_gaps_closed():
  objective = MissingWord(length=40, first_rank=200, words=3, marked=False)
  for trial in range(20):
    tokens = np.random.default_rng(trial).integers(150, 215, 40).astype(np.int32)
    seeds = (tf.constant([trial, 1]), tf.constant([trial, 2]))
    inputs, targets = (x.numpy() for x in
                       denoising.corrupt(objective, tf.constant(tokens), seeds, 4099))
    rare = set(tokens[tokens >= 200].tolist())
    assert set(targets.tolist()) <= rare and len(targets) == min(3, len(rare))
    np.testing.assert_array_equal(inputs, tokens[~np.isin(tokens, targets)])


def test_a_text_with_fewer_rare_pieces_gives_those():
  objective = MissingWord(length=8, first_rank=200, words=4)
  tokens = np.array([5, 300, 250, 9, 300, 5, 3, 4], np.int32)
  inputs, targets = denoising.corrupt(objective, tf.constant(tokens),
                                     (tf.constant([0, 1]),) * 2, 4099)
  assert sorted(targets.numpy().tolist()) == [250, 300]
  assert inputs.numpy().tolist() == [5, 4000, 4000, 9, 4000, 5, 3, 4]
