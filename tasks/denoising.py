"""Carries out the objectives of `objectives.py` in tf.data, from tokenised texts.

  dataset of {"targets": [n] int32} -> dataset of {"inputs": [..], "targets": [..]} without ends

Random choices are stateless and take their seeds from `seqio.map_over_dataset`: the seed of a
dataset reproduces them. Spans follow T5's definition (random_spans_noise_mask): the numbers of
noise tokens and spans are fixed by the length, and the lengths of the noise spans, and of the
gaps between them, are each a uniformly random composition of their total into positive parts.
"""

import functools
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.objectives import (
  MIN_TOKENS,
  Deshuffle,
  MissingWord,
  Objective,
  PrefixLM,
  Rebuild,
  SpanCorruption,
)
from prompt_tuning.tasks.vocabularies import NUM_SENTINELS


def denoise(dataset: tf.data.Dataset, *, objective: Objective,
            output_features: Mapping[str, seqio.Feature],
            sequence_length: Mapping[str, int] | None = None) -> tf.data.Dataset:
  """Splits the targets into chunks that fit and corrupts each; seqio fills the last two.

  Raises:
    UserError: a chunk does not fit the lengths, or needs more sentinels than there are.
  """
  length = objective.chunk_length(sequence_length)
  if isinstance(objective, SpanCorruption):
    spans = objective.noise(length)[1] + objective.leading_sentinel
    if spans > NUM_SENTINELS:
      raise UserError("span corruption needs more sentinels than the vocabulary has",
                      found=f"{spans} in a chunk of {length} tokens", wanted=NUM_SENTINELS,
                      fix="lower the length or noise_density, or raise mean_span_length")
  first_sentinel = output_features["targets"].vocabulary.vocab_size - 1

  @seqio.map_over_dataset(num_seeds=2)
  def corrupt_one(example, seeds):
    inputs, targets = corrupt(objective, example["targets"], seeds, first_sentinel)
    return {"inputs": inputs, "targets": targets}

  dataset = corrupt_one(split_tokens(dataset, length))
  return add_leading_sentinel(dataset, output_features) if objective.leading_sentinel else dataset


def add_leading_sentinel(dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
                         ) -> tf.data.Dataset:
  """Puts `<extra_id_0>` ahead of the targets."""
  sentinel = output_features["targets"].vocabulary.vocab_size - 1
  return dataset.map(
    lambda example: {**example, "targets": tf.concat([[sentinel], example["targets"]], axis=0)},
    num_parallel_calls=tf.data.AUTOTUNE)


def split_tokens(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
  """Texts -> chunks of nearly equal size, at most `length` tokens.

  Texts of fewer than MIN_TOKENS tokens are left out.
  """

  def chunks(example):
    tokens = example["targets"]
    size = tf.size(tokens)
    count = (size + length - 1) // length
    # Equal chunks instead of full ones and a short rest.
    # In 64 bits: a novel in one line has more tokens x chunks than 32 bits hold.
    total = tf.cast(size, tf.int64)
    limits = tf.range(tf.cast(count, tf.int64) + 1) * total // tf.cast(count, tf.int64)
    return {"targets": tf.RaggedTensor.from_row_splits(tokens, limits, validate=False)}

  return (dataset.filter(lambda example: tf.size(example["targets"]) >= MIN_TOKENS)
          .map(chunks, num_parallel_calls=tf.data.AUTOTUNE).unbatch())


@functools.singledispatch
def corrupt(objective: Any, tokens: tf.Tensor, seeds: tuple[tf.Tensor, tf.Tensor],
            first_sentinel: int) -> tuple[tf.Tensor, tf.Tensor]:
  """`[n]` int32 tokens (n >= 2) -> (inputs, targets), without ends and without leading sentinel.

  `seeds` are two stateless seeds `[2]`; `first_sentinel` is the id of `<extra_id_0>`.
  """
  raise TypeError(f"{type(objective).__name__} is not a denoising objective")


@corrupt.register
def _(objective: SpanCorruption, tokens, seeds, first_sentinel):
  is_noise = noise_mask(objective, tf.size(tokens), seeds)
  first_sentinel -= objective.leading_sentinel
  return (_spans_to_sentinels(tokens, is_noise, first_sentinel, step=-1),
          _spans_to_sentinels(tokens, ~is_noise, first_sentinel, step=-1))


@corrupt.register
def _(objective: Rebuild, tokens, seeds, first_sentinel):
  is_noise = noise_mask(objective, tf.size(tokens), seeds)
  if objective.drop:
    return tf.boolean_mask(tokens, ~is_noise), tokens
  last_sentinel = first_sentinel - NUM_SENTINELS + 1
  return _spans_to_sentinels(tokens, is_noise, last_sentinel, step=0), tokens


@corrupt.register
def _(objective: PrefixLM, tokens, seeds, first_sentinel):
  del first_sentinel
  length = tf.size(tokens)
  least = _clip(_round(_float(length) * objective.min_split), 1, length - 1)
  most = _clip(_round(_float(length) * objective.max_split), least, length - 1)
  split = tf.random.stateless_uniform([], seeds[0], least, most + 1, tf.int32)
  return tokens[:split], tokens[split:]


@corrupt.register
def _(objective: Deshuffle, tokens, seeds, first_sentinel):
  del objective, first_sentinel
  return tf.gather(tokens, tf.argsort(_scores(tf.size(tokens), seeds[0]))), tokens


@corrupt.register
def _(objective: MissingWord, tokens, seeds, first_sentinel):
  rare = tokens >= objective.first_rank
  # Scores are below 0 unless a piece is rare: those come first, at random, and then the rarest.
  scores = tf.where(rare, _scores(tf.size(tokens), seeds[0]), _float(tokens) - 1e6)
  pieces = tf.unique(tf.gather(tokens, tf.argsort(scores, direction="DESCENDING")))[0]
  count = tf.reduce_sum(tf.cast(pieces >= objective.first_rank, tf.int32))
  pieces = pieces[:_clip(count, 1, objective.words)]
  is_hidden = tf.reduce_any(tokens[:, tf.newaxis] == pieces[tf.newaxis], axis=1)
  last_sentinel = first_sentinel - NUM_SENTINELS + 1
  inputs = (tf.where(is_hidden, last_sentinel, tokens) if objective.marked
            else tf.boolean_mask(tokens, ~is_hidden))
  return inputs, pieces


def noise_mask(objective: SpanCorruption | Rebuild, length: tf.Tensor,
               seeds: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
  """`[length]` bool, True where a token is noise: gap, span, gap, span, ..."""
  noise = _clip(_round(_float(length) * objective.noise_density), 1, length - 1)
  spans = tf.maximum(_round(_float(noise) / objective.mean_span_length), 1)
  spans = tf.minimum(spans, length - noise)
  lengths = tf.stack([composition(length - noise, spans, seeds[1]),
                      composition(noise, spans, seeds[0])], axis=1)
  return tf.repeat(tf.tile([False, True], [spans]), tf.reshape(lengths, [-1]))


def composition(total: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """`[parts]` int32 of at least 1 that sum to `total`, each such sequence equally likely."""
  # parts - 1 of the total - 1 places between items are cuts.
  cuts = tf.sort(tf.argsort(_scores(total - 1, seed))[:parts - 1]) + 1
  ends = tf.concat([[0], cuts, [total]], axis=0)
  return ends[1:] - ends[:-1]


def _spans_to_sentinels(tokens: tf.Tensor, is_hidden: tf.Tensor, first: tf.Tensor | int,
                        step: int) -> tf.Tensor:
  """Replaces the i-th run of hidden tokens by the id `first + step * i`."""
  before = tf.concat([[False], is_hidden[:-1]], axis=0)
  starts = is_hidden & ~before
  number = tf.cumsum(tf.cast(starts, tf.int32)) - 1
  replaced = tf.where(starts, first + step * number, tokens)
  return tf.boolean_mask(replaced, starts | ~is_hidden)


def _scores(count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  return tf.random.stateless_uniform([count], seed)


def _float(count: tf.Tensor) -> tf.Tensor:
  return tf.cast(count, tf.float32)


def _round(value: tf.Tensor) -> tf.Tensor:
  """To the nearest whole number, half to even."""
  return tf.cast(tf.round(value), tf.int32)


def _clip(value: tf.Tensor, low: tf.Tensor | int, high: tf.Tensor | int) -> tf.Tensor:
  return tf.minimum(tf.maximum(value, low), high)
