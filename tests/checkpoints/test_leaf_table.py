"""What becomes of every leaf, and what is refused."""

import numpy as np
import pytest

from prompt_tuning.checkpoints.leaf_table import check, compare
from prompt_tuning.checkpoints.leaves import DTYPES, Leaf
from prompt_tuning.errors import UserError

F32, BF16 = np.dtype(np.float32), DTYPES["bfloat16"]
GIVEN = {"a": Leaf((2, 3), F32), "b": Leaf((2,), F32), "c": Leaf((4,), F32), "x/y": Leaf((1,), F32)}
WANTED = {"a": Leaf((2, 3), F32), "b": Leaf((2,), BF16), "c": Leaf((5,), F32), "d": Leaf((), F32)}


def test_every_status():
  rows = {row.name: row.status for row in compare(GIVEN, WANTED)}
  assert rows == {"a": "mapped", "b": "cast", "c": "misshapen", "d": "missing", "x/y": "unused"}
  assert {row.name: row.status for row in compare(GIVEN, WANTED, ["x/.*"])}["x/y"] == "dropped"


def test_nothing_is_lost_or_made_up():
  with pytest.raises(UserError, match=r"missing \['d'\] \(1\), unused \['x/y'\] \(1\)"):
    check(compare(GIVEN, WANTED))
  with pytest.raises(UserError, match=r"missing \[\] \(0\), unused \['x/y'\](.*\n)*.*--drop"):
    check(compare({"a": GIVEN["a"], "x/y": GIVEN["x/y"]}, {"a": WANTED["a"]}))
  with pytest.raises(UserError, match=r"c: \(4,\)"):
    check(compare({"c": GIVEN["c"]}, {"c": WANTED["c"]}))
  check(compare({"a": GIVEN["a"], "b": GIVEN["b"]}, {"a": WANTED["a"], "b": WANTED["b"]}))
  check(compare({"a": GIVEN["a"], "x/y": GIVEN["x/y"]}, {"a": WANTED["a"]}, ["x/y"]))


@pytest.mark.parametrize("pattern, why", [
  ("[", "not a regular expression"), ("z.*", "matches no leaf that is unused"),
  ("a", "matches no leaf that is unused"), ("x", "matches no leaf that is unused")])
def test_patterns_that_drop_nothing(pattern, why):
  with pytest.raises(UserError, match=why):
    compare(GIVEN, WANTED, [pattern])


def test_sizes_are_exact_however_large():
  leaf = Leaf((2**40, 2**40), F32)
  assert leaf.size == 2**80 and leaf.nbytes == 2**82
