"""Packing: several short examples in one row, told apart by segment ids.

Pre-training text is mostly shorter than a row; padding would waste most of the step. Examples are
placed in the order given into the first of a few open rows that has room for both their input and
their target, so the assignment follows from the lengths alone and any packed row can be rebuilt.

  encoder_input_tokens, encoder_segment_ids, encoder_positions          [B, P + T] int32
  decoder_target_tokens, decoder_input_tokens, decoder_segment_ids,
  decoder_positions                                                     [B, U] int32
  decoder_loss_weights                                                  [B, U] float32

Segment ids count from 1 in each row, 0 is padding; positions count from 0 in each segment. Every
segment starts with its own P virtual tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning.converter import Batch, Row, shift_right, trim
from prompt_tuning.interfaces import PAD_ID
from prompt_tuning.placement import PLAIN, Placement

OPEN_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Packing:
  """Which examples share a row: those of row r are `members[borders[r]:borders[r + 1]]`."""

  members: np.ndarray
  borders: np.ndarray

  def __len__(self) -> int:
    return len(self.borders) - 1

  def __getitem__(self, row: int) -> np.ndarray:
    return self.members[self.borders[row]:self.borders[row + 1]]


def pack(input_lengths: np.ndarray, target_lengths: np.ndarray, lengths: Mapping[str, int], *,
         placement: Placement = PLAIN) -> Packing:
  """First fit of examples, in order, into rows of P + T input and U target places.

  Args:
    input_lengths, target_lengths: `[M]` ids of each example; longer ones count as trimmed.
  """
  width, targets = placement.size + lengths["inputs"], lengths["targets"]
  needed = zip((placement.size + np.minimum(input_lengths, lengths["inputs"])).tolist(),
               np.minimum(target_lengths, targets).tolist(), strict=True)
  row_of = np.empty(len(input_lengths), np.int64)
  open_rows: list[list[int]] = []
  opened = 0
  for example, (need_inputs, need_targets) in enumerate(needed):
    for row in open_rows:
      if row[1] >= need_inputs and row[2] >= need_targets:
        break
    else:
      row = [opened, width, targets]
      opened += 1
      open_rows.append(row)
      if len(open_rows) > OPEN_ROWS:
        del open_rows[0]
    row[1] -= need_inputs
    row[2] -= need_targets
    row_of[example] = row[0]
  borders = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=opened))])
  return Packing(np.argsort(row_of, kind="stable"), borders)


def convert_packed(rows: Sequence[Sequence[Row]], lengths: Mapping[str, int], *,
                   placement: Placement = PLAIN) -> Batch:
  """Packed rows -> the arrays of the module docstring.

  Args:
    rows: B rows, each the `(inputs, targets)` ids of its segments.
  """
  width = placement.size + lengths["inputs"]
  inputs = [[placement.around(trim(row[0], lengths["inputs"])) for row in segments]
            for segments in rows]
  targets = [[trim(row[1], lengths["targets"]) for row in segments] for segments in rows]
  encoder_tokens, encoder_segments, encoder_positions = _lay_out(inputs, width)
  target_tokens, decoder_segments, decoder_positions = _lay_out(targets, lengths["targets"])
  return {
      "encoder_input_tokens": encoder_tokens,
      "encoder_segment_ids": encoder_segments,
      "encoder_positions": encoder_positions,
      "decoder_target_tokens": target_tokens,
      "decoder_input_tokens": shift_right(target_tokens, decoder_segments),
      "decoder_loss_weights": (target_tokens != PAD_ID).astype(np.float32),
      "decoder_segment_ids": decoder_segments,
      "decoder_positions": decoder_positions,
  }


def _lay_out(rows: Sequence[Sequence[np.ndarray]], width: int) -> tuple[np.ndarray, ...]:
  tokens, segments, positions = (np.zeros((len(rows), width), np.int32) for _ in range(3))
  for row, parts in enumerate(rows):
    start = 0
    for number, part in enumerate(parts, start=1):
      end = start + len(part)
      tokens[row, start:end] = part
      segments[row, start:end] = number
      positions[row, start:end] = np.arange(len(part))
      start = end
  return tokens, segments, positions
