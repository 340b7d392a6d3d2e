"""Rows of ids to the arrays a T5 takes, under T5X's feature names.

Virtual tokens are written last, after tokenising, trimming and caching: an `inputs` length of T
stays T real tokens and the encoder's array is P + T wide (wider by a template's anchor words). All
of it is numpy, one batch at a time.

  encoder_input_tokens  [B, P + T] int32    ids -1..-P, the input, padding (`placement.py`)
  decoder_target_tokens [B, U] int32        the target, padding
  decoder_input_tokens  [B, U] int32        the target shifted right by one, after a 0
  decoder_loss_weights  [B, U] float32      1 at real target tokens
  prompt_ids            [B] int32           optional: which prompt of a bank each row uses
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import EOS_ID, PAD_ID
from prompt_tuning.placement import PLAIN, Placement
from prompt_tuning.token_cache import FEATURES, TokenCache

PERCENTILES = (50, 90, 95, 99, 100)
LENGTH_MULTIPLE = 8

Batch = dict[str, np.ndarray]
Row = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LengthReport:
  """How the rows of a cache fit into the lengths.

  Attributes:
    rows: how many there are.
    long_inputs, long_targets: how many are longer than their length, EOS included.
    percentiles: feature -> percentile -> length in ids.
    unusable: rows of the source that could not be used, and are none of `rows`; None: not known.
    short_contexts: rows with fewer solved examples in front than FEW_SHOT; None: not known.
  """

  rows: int
  long_inputs: int
  long_targets: int
  percentiles: Mapping[str, Mapping[int, int]]
  unusable: int | None = None
  short_contexts: int | None = None

  @classmethod
  def of(cls, caches: Sequence[TokenCache], lengths: Mapping[str, int]) -> "LengthReport":
    """Counts over all rows of `caches`."""
    found = {name: np.concatenate([cache.lengths(name) for cache in caches]) for name in FEATURES}
    long = {name: int((found[name] > lengths[name]).sum()) for name in FEATURES}
    percentiles = {
        name: {p: int(np.percentile(found[name], p, method="higher")) for p in PERCENTILES}
        for name in FEATURES}
    known = [cache.lost for cache in caches if cache.lost is not None]
    lost: dict[str, int] = {} if len(known) < len(caches) else {
        name: sum(each[name] for each in known) for name in ("unusable", "short_contexts")}
    return cls(len(found["inputs"]), long["inputs"], long["targets"], percentiles, **lost)

  def counts(self) -> dict[str, int | None]:
    """For summary.json."""
    return {name: getattr(self, name) for name in ("rows", "unusable", "long_inputs",
                                                   "long_targets", "short_contexts")}

  def __str__(self) -> str:
    def line(name, long):
      shown = ", ".join(f"{p}%: {length}" for p, length in self.percentiles[name].items())
      return f"{long} of {self.rows} {name} are too long (lengths by percentile: {shown})"
    return f"{line('inputs', self.long_inputs)}; {line('targets', self.long_targets)}"


def check_feature_lengths(lengths: Mapping[str, int]) -> dict[str, int]:
  """`TASK_FEATURE_LENGTHS` as a dict, or a `UserError`: two whole numbers, 1 or more."""
  wanted = 'a length for "inputs" and for "targets", nothing else'
  for name in lengths:
    if name not in FEATURES:
      raise UserError("TASK_FEATURE_LENGTHS has an unknown feature", found=repr(name),
                      wanted=wanted, fix=nearest(str(name), FEATURES))
  for name in FEATURES:
    if name not in lengths:
      raise UserError(f"TASK_FEATURE_LENGTHS has no length for {name!r}", found=dict(lengths),
                      wanted=wanted,
                      fix='e.g. TASK_FEATURE_LENGTHS = {"inputs": 512, "targets": 64}')
    length = lengths[name]
    if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 1:
      raise UserError(f"TASK_FEATURE_LENGTHS[{name!r}] is not a length", found=repr(length),
                      wanted="a whole number, 1 or more", fix=f"set the length of {name}")
  return {name: int(lengths[name]) for name in FEATURES}


def check_truncation(task: str, cache: TokenCache, lengths: Mapping[str, int], *,
                     max_truncated_inputs: float = 0.5,
                     max_truncated_targets: float = 0.0) -> LengthReport:
  """The report of a cache; a `UserError` if more rows than the stated share would be trimmed."""
  report = LengthReport.of([cache], lengths)
  for name, long, share in (("inputs", report.long_inputs, max_truncated_inputs),
                            ("targets", report.long_targets, max_truncated_targets)):
    if long > share * report.rows:
      fits = int(np.percentile(cache.lengths(name), 100 * (1 - share), method="higher"))
      fits = -(-fits // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
      shown = ", ".join(f"{p}%: {length}" for p, length in report.percentiles[name].items())
      raise UserError(
          f"Too many {name} of {task!r} are longer than their length of {lengths[name]}",
          found=f"{long} of {report.rows} would lose their end; lengths by percentile: {shown}",
          wanted=f"at most {share:.2%} of the rows (MAX_TRUNCATED_{name.upper()} = {share})",
          fix=f'--gin.TASK_FEATURE_LENGTHS="{dict(lengths) | {name: fits}}" or more, or '
              f"--gin.MAX_TRUNCATED_{name.upper()}={_share_above(long, report.rows)}")
  return report


def check_ids(task: str, cache: TokenCache, vocab_size: int | None) -> None:
  """A `UserError` if an id is reserved (0 or less) or has no row in the embedding table."""
  for name in FEATURES:
    low, high = cache.id_range(name) or (1, 1)
    if low <= PAD_ID:
      raise UserError(f"The {name} of {task!r} hold a reserved id", found=low,
                      wanted="ids of 1 or more: 0 is padding, negative ids are the prompt's",
                      fix="check the task's vocabulary and preprocessors")
    if vocab_size is not None and high >= vocab_size:
      raise UserError(f"The {name} of {task!r} don't fit the model's vocabulary",
                      found=f"id {high}", wanted=f"ids below {vocab_size}, the model's vocab_size",
                      fix="use the vocabulary the model was trained with")


def trim(ids: np.ndarray, length: int) -> np.ndarray:
  """At most `length` ids; a row that ended with EOS still does, as T5's preprocessors leave it."""
  if len(ids) <= length:
    return ids
  if ids[-1] != EOS_ID:
    return ids[:length]
  return np.append(ids[:length - 1], ids[-1])


def shift_right(targets: np.ndarray, segment_ids: np.ndarray | None = None) -> np.ndarray:
  """`[B, U]` targets -> what the decoder reads: 0, then the targets; anew in every segment."""
  shifted = np.zeros_like(targets)
  shifted[:, 1:] = targets[:, :-1]
  if segment_ids is not None:
    shifted[:, 1:][segment_ids[:, 1:] != segment_ids[:, :-1]] = PAD_ID
  return shifted


def convert(rows: Sequence[Row], lengths: Mapping[str, int], *,
            placement: Placement = PLAIN, prompt_ids: Sequence[int] | None = None) -> Batch:
  """One row of ids a batch row -> the arrays of the module docstring.

  Args:
    rows: B pairs of `inputs [n]` and `targets [m]` ids.
    lengths: T and U; longer rows are trimmed (`check_truncation` counts them beforehand).
    placement: what stands around each input.
    prompt_ids: the prompt of each row, for a bank of prompts.
  """
  inputs = [trim(row[0], lengths["inputs"]) for row in rows]
  targets = _pad([row[1] for row in rows], lengths["targets"])
  batch = {
      "encoder_input_tokens": placement.rows(inputs, lengths["inputs"]),
      "decoder_target_tokens": targets,
      "decoder_input_tokens": shift_right(targets),
      "decoder_loss_weights": (targets != PAD_ID).astype(np.float32),
  }
  if prompt_ids is not None:
    batch["prompt_ids"] = np.asarray(prompt_ids, np.int32)
  return batch


def _pad(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
  result = np.full((len(rows), length), PAD_ID, np.int32)
  for out, ids in zip(result, rows, strict=True):
    trimmed = trim(ids, length)
    out[:len(trimmed)] = trimmed
  return result


def _share_above(count: int, rows: int) -> float:
  return float(np.ceil(1000 * count / rows) / 1000)
