"""Templates: where the rows of a prompt and anchor words stand around an input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning import placement
from prompt_tuning.errors import UserError
from prompt_tuning.placement import Placement


def encode(text):
  return [100 + len(word) for word in text.split()]


def placed(template, length, ids):
  return placement.parse(template, length, encode).around(np.array(ids, np.int32)).tolist()


@pytest.mark.parametrize("template,wanted", [
  ("{prompt}{inputs}", [-1, -2, -3, -4, 7, 8, 1]),
  ("{inputs}{prompt}", [7, 8, -1, -2, -3, -4, 1]),
  ("{prompt:3}{inputs}{prompt:1}", [-1, -2, -3, 7, 8, -4, 1]),
  ("{prompt:3}{inputs}{prompt}", [-1, -2, -3, 7, 8, -4, 1]),
  ("{prompt:1} a {inputs} ? {prompt:1} bbb cc {prompt}",
   [-1, 101, 7, 8, 101, -2, 103, 102, -3, -4, 1])])
def test_groups_and_anchors_stand_where_the_template_says(template, wanted):
  assert placed(template, 4, [7, 8, 1]) == wanted


def test_an_input_without_an_end_and_an_empty_one():
  assert placed("{prompt:1}{inputs}{prompt:1}", 2, [7, 8]) == [-1, 7, 8, -2]
  assert placed("{prompt:1}{inputs}{prompt:1}", 2, []) == [-1, -2]


@given(rows=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=4),
       before=st.integers(0, 3), after=st.integers(0, 3))
def test_rows_are_padded_and_give_their_input_back(rows, before, after):
  made = Placement(tuple(-1 - p for p in range(before)), tuple(-1 - p for p in range(after)))
  found = made.rows([np.array(row, np.int32) for row in rows], 4)
  assert found.shape == (len(rows), before + after + 4) and found.dtype == np.int32
  assert [[i for i in row if i > 0] for row in found.tolist()] == rows
  for row, ids in zip(found.tolist(), rows, strict=True):
    assert not any(row[before + after + len(ids):])


def test_only_the_plain_prompt_ahead_is_in_front():
  assert Placement.front(3).is_in_front and Placement().is_in_front
  for template in ("{inputs}{prompt}", "{prompt:1}{inputs}{prompt:1}", "a{prompt}{inputs}"):
    assert not placement.parse(template, 2, encode).is_in_front


@pytest.mark.parametrize("template,length,what", [
  ("{prompt}", 2, "PROMPT_TEMPLATE is not a template"),
  ("{inputs}{inputs}{prompt}", 2, "PROMPT_TEMPLATE is not a template"),
  ("{prompt}{inputs}{label}", 2, "PROMPT_TEMPLATE is not a template"),
  ("{prompt:x}{inputs}", 2, "PROMPT_TEMPLATE is not a template"),
  ("{prompt}{inputs} {", 2, "PROMPT_TEMPLATE is not a template"),
  ("{prompt:1}{inputs}", 2, "The groups of PROMPT_TEMPLATE do not add up to the prompt"),
  ("{prompt:3}{inputs}", 2, "The groups of PROMPT_TEMPLATE do not add up to the prompt"),
  ("{prompt}{inputs}{prompt}", 2, "The groups of PROMPT_TEMPLATE do not add up to the prompt"),
  ("{inputs}", 2, "The groups of PROMPT_TEMPLATE do not add up to the prompt")])
def test_a_wrong_template_is_an_error(template, length, what):
  with pytest.raises(UserError) as error:
    placement.parse(template, length, encode)
  assert error.value.what == what and template in error.value.found
