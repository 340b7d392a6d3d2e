"""The cloze with candidates, by undoing it and by counting."""

import collections

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import denoising, vocabularies
from prompt_tuning.tasks.objectives import WordChoice
from prompt_tuning.tasks.word_choice import piece_tables

VOCABULARY = vocabularies.load("tiny")
GAP, SEPARATOR = 4000, 4001  # <extra_id_99>, <extra_id_98>
LENGTH = 20


def texts(count):
  """Token ids of distinct rare whole words, so that each text says where it came from."""
  rare, _ = piece_tables(VOCABULARY, 400)
  words = np.flatnonzero(rare)
  return [np.random.default_rng(i).choice(words, LENGTH).astype(np.int32) for i in range(count)]


def examples(rows, seed=0, **settings):
  dataset = tf.data.Dataset.from_generator(
    lambda: iter({"targets": row} for row in rows),
    output_signature={"targets": tf.TensorSpec([None], tf.int32)})
  features = {name: seqio.Feature(VOCABULARY) for name in ("inputs", "targets")}
  with seqio.utils.map_seed_manager(seed):
    made = denoising.denoise(dataset, objective=WordChoice(length=LENGTH, **settings),
                             output_features=features)
    return [(e["inputs"].numpy(), e["targets"].numpy()) for e in made]


def parts(inputs):
  cut = int(np.flatnonzero(inputs == SEPARATOR)[0])
  return list(inputs[:cut]), inputs[cut + 1:]


def test_undone_each_example_is_one_of_the_texts():
  rows = texts(64)
  made = examples(rows)
  assert len(made) == 64
  known = {tuple(row) for row in rows}
  marked = 0
  for inputs, (word,) in made:
    candidates, text = parts(inputs)
    assert candidates.count(word) >= 1 and 2 <= len(candidates) <= 8
    assert word not in text
    if GAP in text:
      marked += 1
      assert tuple(np.where(text == GAP, word, text)) in known
    else:
      closed = {tuple(row[row != word]) for row in rows if word in row}
      assert tuple(text) in closed
  assert 16 < marked < 48


def test_the_answer_is_anywhere_and_the_number_of_candidates_varies():
  made = examples(texts(400))
  places, counts = collections.Counter(), collections.Counter()
  for inputs, (word,) in made:
    candidates, _ = parts(inputs)
    counts[len(candidates)] += 1
    if len(candidates) == 4:
      places[candidates.index(word)] += 1
  assert set(counts) == set(range(2, 9))
  assert set(places) == {0, 1, 2, 3} and max(places.values()) < 0.6 * sum(places.values())


def test_wrong_candidates_are_answers_of_other_examples():
  made = examples(texts(80))
  answers = {int(word) for _, (word,) in made}
  assert all(set(map(int, parts(inputs)[0])) <= answers for inputs, _ in made)


def test_all_or_no_gaps_are_marked():
  assert all(GAP in inputs for inputs, _ in examples(texts(24), marked=1.0))
  assert not any(GAP in inputs for inputs, _ in examples(texts(24), marked=0.0))


def test_texts_without_a_rare_whole_word_are_left_out():
  rows = texts(16) + [np.full(LENGTH, 5, np.int32)] * 8
  assert len(examples(rows)) == 16


def test_chunks_leave_room_for_the_candidates():
  assert WordChoice().chunk_length({"inputs": 80, "targets": 2}) == 80 - 8 - 1 - 1
  with pytest.raises(UserError, match="WordChoice of 72 tokens does not fit"):
    WordChoice(length=72).chunk_length({"inputs": 80, "targets": 2})
  assert max(len(inputs) for inputs, _ in examples(texts(64))) == 8 + 1 + LENGTH


def test_the_same_seed_gives_the_same_examples():
  first, again, other = (examples(texts(32), seed=seed) for seed in (1, 1, 2))
  assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
  assert any(not np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def test_chunks_of_a_novel_in_one_line():
  # 300,000 tokens x 13,637 chunks is more than 32 bits hold.
  whole = tf.data.Dataset.from_tensors({"targets": np.arange(300_000, dtype=np.int32)})
  chunks = [chunk["targets"].numpy() for chunk in denoising.split_tokens(whole, 22)]
  np.testing.assert_array_equal(np.concatenate(chunks), np.arange(300_000))
  assert {len(chunk) for chunk in chunks} == {21, 22}


@pytest.mark.parametrize("settings, message", [
  ({"candidates": 1}, "WordChoice.candidates is out of range"),
  ({"marked": 1.5}, "WordChoice.marked is out of range")])
def test_errors(settings, message):
  with pytest.raises(UserError, match=message):
    WordChoice(**settings)


def test_bytes_have_no_words():
  with pytest.raises(UserError, match="word_choice needs a vocabulary of pieces"):
    piece_tables(vocabularies.load("bytes"), 400)
