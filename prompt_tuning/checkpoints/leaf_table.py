"""What becomes of every leaf when a checkpoint fills a model: the table that `convert` prints, and
the check that `INITIAL_CHECKPOINT_PATH` has to pass before a weight is read.

  mapped     read as it is             missing    the model has it, the checkpoint does not
  cast       read into another dtype   unused     the checkpoint has it, the model does not
  misshapen  the shapes differ         dropped    unused, and the user said so
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.checkpoints.leaves import Leaf, Reader
from prompt_tuning.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Row:
  """One leaf.

  Attributes:
    name: ours.
    status: of the list above.
    given, wanted: what the checkpoint has, and what the model does.
  """

  name: str
  status: str
  given: Leaf | None
  wanted: Leaf | None


def compare(given: Mapping[str, Leaf], wanted: Mapping[str, Leaf],
            drop: Sequence[str] = ()) -> list[Row]:
  """One row a leaf, sorted by name.

  Args:
    drop: regular expressions on whole names that may be unused.

  Raises:
    UserError: a pattern is no regular expression, or matches no unused leaf.
  """
  droppable = _droppable(sorted(given.keys() - wanted.keys()), drop)
  rows = []
  for name in sorted(given.keys() | wanted.keys()):
    theirs, ours = given.get(name), wanted.get(name)
    if theirs is None:
      status = "missing"
    elif ours is None:
      status = "dropped" if name in droppable else "unused"
    elif theirs.shape != ours.shape:
      status = "misshapen"
    else:
      status = "mapped" if theirs.dtype == ours.dtype else "cast"
    rows.append(Row(name, status, theirs, ours))
  return rows


def check(rows: Iterable[Row]) -> None:
  """Raises a UserError unless every leaf of the model is filled and none is lost."""
  by_status: dict[str, list[Row]] = {}
  for row in rows:
    by_status.setdefault(row.status, []).append(row)
  missing, unused = ([row.name for row in by_status.get(status, [])]
                     for status in ("missing", "unused"))
  if missing or unused:
    wanted = sum(len(v) for k, v in by_status.items() if k not in ("unused", "dropped"))
    fix = "use the models/*.gin file of the checkpoint"
    if unused and not missing:
      fix += "; `prompt-tuning convert --drop PATTERN` leaves leaves out"
    raise UserError("The checkpoint's parameters are not the model's",
                    found=f"missing {missing[:4]} ({len(missing)}), unused {unused[:4]} "
                    f"({len(unused)})", wanted=f"the model's {wanted} parameters", fix=fix)
  if misshapen := by_status.get("misshapen"):
    row = misshapen[0]
    more = f" (and {len(misshapen) - 1} others)" if len(misshapen) > 1 else ""
    assert row.given and row.wanted
    raise UserError("A parameter of the checkpoint has another shape",
                    found=f"{row.name}: {row.given.shape}{more}", wanted=str(row.wanted.shape),
                    fix="use the models/*.gin file of the checkpoint")


def of_tree(flat: Mapping[str, Any]) -> dict[str, Leaf]:
  """Leaves of a flat tree of arrays or shapes."""
  return {name: Leaf(tuple(x.shape), np.dtype(x.dtype)) for name, x in flat.items()}


def in_dtype(source: Reader, wanted: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """`wanted` in the dtypes that the checkpoint has, so that nothing is cast."""
  return {name: Leaf(leaf.shape, source.leaves[name].dtype if name in source.leaves
                     else leaf.dtype) for name, leaf in wanted.items()}


def _droppable(unused: Sequence[str], patterns: Sequence[str]) -> set[str]:
  found: set[str] = set()
  for pattern in patterns:
    try:
      matches = {name for name in unused if re.fullmatch(pattern, name)}
    except re.error as error:
      raise UserError("A --drop pattern is not a regular expression",
                      found=f"{pattern!r}: {error}", wanted="e.g. 'encoder/prompt/.*'",
                      fix="correct the pattern") from error
    if not matches:
      raise UserError("A --drop pattern matches no leaf that is unused", found=repr(pattern),
                      wanted="a regular expression that matches whole names",
                      fix=nearest(pattern, unused) if unused else "leave it out: all leaves are "
                      "used")
    found |= matches
  return found
