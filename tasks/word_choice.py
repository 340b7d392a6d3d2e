"""The objective `WordChoice` in tf.data: texts in groups, each group's words its candidates.

  dataset of {"targets": [n] int32} -> dataset of {"inputs": [..], "targets": [1]} without ends

A group is as many chunks, from anywhere in a window of the stream, as an example has candidates;
one word is cut from each, and the group's other words are the wrong candidates. So wrong and right
ones come from one distribution, and only the text tells them apart.
"""

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.objectives import WordChoice
from prompt_tuning.tasks.vocabularies import NUM_SENTINELS

# Chunks that a group is drawn from: many documents, and little memory.
WINDOW = 4096
WORD_START = "\u2581"
MIN_LETTERS = 3


def choose(chunks: tf.data.Dataset, *, objective: WordChoice,
           vocabulary: seqio.Vocabulary) -> tf.data.Dataset:
  """Chunks of tokens -> examples.

  Raises:
    UserError: the vocabulary has no SentencePiece pieces.
  """
  rare, starts = (tf.constant(t) for t in piece_tables(vocabulary, objective.first_rank))
  gap = vocabulary.vocab_size - NUM_SENTINELS
  separator = gap + 1
  size = objective.candidates

  def is_word(tokens):
    # A piece is a whole word where the next one starts another.
    return tf.gather(rare, tokens) & tf.concat([tf.gather(starts, tokens[1:]), [False]], axis=0)

  @seqio.map_over_dataset(num_seeds=1)
  def cut(example, seed):
    tokens = example["targets"]
    scores = tf.random.stateless_uniform(tf.shape(tokens), seed)
    word = tokens[tf.argmax(tf.where(is_word(tokens), scores, -1.0))]
    return {"tokens": tokens, "word": word}

  @seqio.map_over_dataset(num_seeds=3)
  def build(example, seeds):
    tokens, word, words = example["tokens"], example["word"], example["group"]
    draws = tf.random.stateless_uniform([2], seeds[0])
    count = 2 + tf.cast(draws[0] * (size - 1), tf.int32)
    # The right candidate and, at random, some of the others; then all in a random order.
    scores = tf.random.stateless_uniform([size], seeds[1])
    chosen = tf.gather(words, tf.argsort(tf.where(tf.range(size) == example["own"], -1.0,
                                                  scores))[:count])
    front = tf.gather(chosen, tf.argsort(tf.random.stateless_uniform([count], seeds[2])))
    text = tf.cond(draws[1] < objective.marked, lambda: tf.where(tokens == word, gap, tokens),
                   lambda: tf.boolean_mask(tokens, tokens != word))
    return {"inputs": tf.concat([front, [separator], text], axis=0),
            "targets": word[tf.newaxis]}

  def with_group(group):
    return {**group, "own": tf.range(size), "group": tf.tile(group["word"][tf.newaxis], [size, 1])}

  chunks = cut(chunks.filter(lambda example: tf.reduce_any(is_word(example["targets"]))))
  chunks = chunks.shuffle(WINDOW, seed=0, reshuffle_each_iteration=False)
  chunks = chunks.ragged_batch(size, drop_remainder=True)
  return build(chunks.map(with_group, num_parallel_calls=tf.data.AUTOTUNE).unbatch())


def piece_tables(vocabulary: seqio.Vocabulary, first_rank: int) -> tuple[np.ndarray, np.ndarray]:
  """Two tables `[V]` bool: the piece is rare and spells a word; it starts a word.

  Raises:
    UserError: the vocabulary has no SentencePiece pieces.
  """
  if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
    raise UserError("word_choice needs a vocabulary of pieces", found=type(vocabulary).__name__,
                    wanted="a SentencePiece vocabulary",
                    fix="leave word_choice out of RATES, or use another VOCABULARY")
  tokenizer = vocabulary.tokenizer
  pieces = [tokenizer.IdToPiece(i) for i in range(tokenizer.GetPieceSize())]
  pieces += [""] * (vocabulary.vocab_size - len(pieces))
  starts = np.array([piece.startswith(WORD_START) for piece in pieces])
  words = np.array([piece[1:].isalpha() and len(piece) > MIN_LETTERS for piece in pieces])
  return starts & words & (np.arange(len(pieces)) >= first_rank), starts
