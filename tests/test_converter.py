"""Trimming, padding, shifting, virtual tokens and the length report, against the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning import converter
from prompt_tuning.errors import UserError
from prompt_tuning.placement import Placement
from prompt_tuning.token_cache import Ragged, write_cache

LENGTHS = {"inputs": 4, "targets": 3}


def cache_of(folder, rows):
  chunk = {}
  for index, name in enumerate(("inputs", "targets")):
    ids = [row[index] for row in rows]
    chunk[name] = Ragged(np.array(sum(ids, []), np.int32), np.array([len(i) for i in ids]))
  return write_cache(folder / "task", [chunk])


def array(*ids):
  return np.array(ids, np.int32)


def test_a_batch_by_hand():
  batch = converter.convert(
      [(array(5, 6, 1), array(8, 1)), (array(2, 3, 4, 5, 6, 1), array(9, 9, 9))], LENGTHS,
      placement=Placement.front(2), prompt_ids=[3, 0])
  expected = {
      "encoder_input_tokens": [[-1, -2, 5, 6, 1, 0], [-1, -2, 2, 3, 4, 1]],
      "decoder_target_tokens": [[8, 1, 0], [9, 9, 9]],
      "decoder_input_tokens": [[0, 8, 1], [0, 9, 9]],
      "decoder_loss_weights": [[1, 1, 0], [1, 1, 1]],
      "prompt_ids": [3, 0],
  }
  assert {name: value.tolist() for name, value in batch.items()} == expected
  assert batch["decoder_loss_weights"].dtype == np.float32
  assert all(batch[name].dtype == np.int32 for name in expected if "weights" not in name)


@given(ids=st.lists(st.integers(1, 9), max_size=9), length=st.integers(1, 9))
def test_trimmed_rows_keep_their_start_and_their_end_of_sequence(ids, length):
  got = converter.trim(np.array(ids, np.int32), length).tolist()
  assert len(got) == min(len(ids), length)
  if len(ids) > length and ids[-1] == 1:
    assert got == ids[:length - 1] + [1]
  else:
    assert got == ids[:length]


@pytest.mark.parametrize("lengths,message", [
    ({"inputs": 4}, "has no length for 'targets'"),
    ({"inputs": 4, "targets": 0}, "'targets'.*is not a length"),
    ({"inputs": 4.5, "targets": 2}, "'inputs'.*is not a length"),
    ({"inputs": 4, "targets": 2, "target": 3}, "(?s)unknown feature.*did you mean 'targets'"),
])
def test_lengths_are_checked(lengths, message):
  with pytest.raises(UserError, match=message):
    converter.check_feature_lengths(lengths)


def test_the_report_counts_long_rows_and_shows_percentiles(tmp_path):
  rows = [([2] * n, [3] * (n % 4 + 1)) for n in range(1, 11)]
  report = converter.LengthReport.of([cache_of(tmp_path, rows)], LENGTHS)
  assert (report.rows, report.long_inputs, report.long_targets) == (10, 6, 2)
  # The smallest length that covers the share of the 9 steps between the 10 sorted lengths.
  assert report.percentiles["inputs"] == {50: 6, 90: 10, 95: 10, 99: 10, 100: 10}
  assert "6 of 10 inputs are too long" in str(report) and "2 of 10 targets" in str(report)


def test_too_many_trimmed_rows_are_an_error_with_the_length_to_set(tmp_path):
  cache = cache_of(tmp_path, [([2] * n, [3]) for n in range(1, 11)])
  with pytest.raises(UserError) as error:
    converter.check_truncation("toy", cache, LENGTHS, max_truncated_inputs=0.5)
  text = str(error.value)
  for part in ("inputs of 'toy'", "length of 4", "6 of 10", "100%: 10", "at most 50.00%",
               '--gin.TASK_FEATURE_LENGTHS="{\'inputs\': 8, \'targets\': 3}"',
               "--gin.MAX_TRUNCATED_INPUTS=0.6"):
    assert part in text
  assert converter.check_truncation("toy", cache, LENGTHS, max_truncated_inputs=0.6)
  assert converter.check_truncation("toy", cache, {"inputs": 8, "targets": 3})


def test_a_single_trimmed_target_is_an_error_unless_allowed(tmp_path):
  cache = cache_of(tmp_path, [([2], [3] * 3)] * 9 + [([2], [3] * 4)])
  with pytest.raises(UserError, match="(?s)Too many targets of 'toy'.*1 of 10.*at most 0.00%"):
    converter.check_truncation("toy", cache, LENGTHS)
  report = converter.check_truncation("toy", cache, LENGTHS, max_truncated_targets=0.1)
  assert report.long_targets == 1


@pytest.mark.parametrize("targets,message", [
    ([9], "(?s)targets of 'toy' don't fit the model's vocabulary.*id 9.*below 9"),
    ([0, 2], "(?s)targets of 'toy' hold a reserved id.*0"),
    ([-1], "(?s)targets of 'toy' hold a reserved id.*-1"),
])
def test_ids_outside_the_vocabulary_are_errors(tmp_path, targets, message):
  with pytest.raises(UserError, match=message):
    converter.check_ids("toy", cache_of(tmp_path, [([8], targets)]), 9)


def test_ids_inside_the_vocabulary_pass(tmp_path):
  converter.check_ids("toy", cache_of(tmp_path, [([8], []), ([1], [])]), 9)
