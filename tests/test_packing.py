"""Packing: unpacked rows are the examples; segments, positions and shifts are the definitions'."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import packing
from prompt_tuning.converter import trim
from prompt_tuning.placement import Placement

LENGTHS = {"inputs": 7, "targets": 5}
IDS = st.lists(st.integers(1, 50), max_size=9)
EXAMPLES = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=30)


def as_arrays(examples):
  return [tuple(np.array(ids, np.int32) for ids in example) for example in examples]


def pack_all(examples, prompt_length):
  found = [np.array([len(example[i]) for example in examples]) for i in (0, 1)]
  packed = packing.pack(*found, LENGTHS, placement=Placement.front(prompt_length))
  rows = [[examples[member] for member in packed[row]] for row in range(len(packed))]
  return packed, packing.convert_packed(rows, LENGTHS, placement=Placement.front(prompt_length))


@settings(deadline=None)
@given(examples=EXAMPLES, prompt_length=st.integers(0, 3))
def test_unpacking_gives_back_every_example_once(examples, prompt_length):
  examples = as_arrays(examples)
  packed, batch = pack_all(examples, prompt_length)
  assert sorted(packed.members.tolist()) == list(range(len(examples)))
  virtual = [-1 - p for p in range(prompt_length)]
  for row in range(len(packed)):
    for number, member in enumerate(packed[row], start=1):
      inputs, targets = examples[member]
      part = batch["encoder_segment_ids"][row] == number
      wanted = virtual + trim(inputs, LENGTHS["inputs"]).tolist()
      assert batch["encoder_input_tokens"][row][part].tolist() == wanted
      assert batch["encoder_positions"][row][part].tolist() == list(range(len(wanted)))
      part = batch["decoder_segment_ids"][row] == number
      wanted = trim(targets, LENGTHS["targets"]).tolist()
      assert batch["decoder_target_tokens"][row][part].tolist() == wanted
      assert batch["decoder_input_tokens"][row][part].tolist() == ([0] + wanted)[:len(wanted)]
      assert batch["decoder_positions"][row][part].tolist() == list(range(len(wanted)))
  for side in ("encoder", "decoder"):
    empty = batch[f"{side}_segment_ids"] == 0
    tokens = "encoder_input_tokens" if side == "encoder" else "decoder_target_tokens"
    assert not batch[tokens][empty].any() and batch[tokens][~empty].all()
  np.testing.assert_array_equal(batch["decoder_loss_weights"], batch["decoder_segment_ids"] > 0)


@settings(deadline=None)
@given(examples=EXAMPLES)
def test_rows_are_those_of_plain_first_fit(examples):
  """With no more rows than may be open, the result is textbook first fit."""
  examples = examples[:packing.OPEN_ROWS]
  bins = []
  for number, (inputs, targets) in enumerate(examples):
    size = np.array([min(len(inputs), 7) + 2, min(len(targets), 5)])
    for members, used in bins:
      if (used + size <= [9, 5]).all():
        members.append(number)
        used += size
        break
    else:
      bins.append(([number], size))
  packed, _ = pack_all(as_arrays(examples), prompt_length=2)
  assert [packed[row].tolist() for row in range(len(packed))] == [members for members, _ in bins]


def test_short_examples_fill_the_rows():
  lengths = np.full(600, 2)
  packed = packing.pack(lengths, lengths, {"inputs": 12, "targets": 12})
  assert len(packed) == 100
  assert {len(packed[row]) for row in range(len(packed))} == {6}
