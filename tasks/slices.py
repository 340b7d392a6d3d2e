"""Sources made of other sources: cut into splits, grouped by a column, put into another order.

Cuts are written as TFDS writes them: `train[:80%]`, `train[80%:]+validation[:100]`.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks.spec import Source

_PART = re.compile(r"(\w+)(?:\[(-?\d*%?):(-?\d*%?)\])?")


@dataclasses.dataclass(frozen=True)
class Cut:
  """A source whose splits are parts of another's.

  Attributes:
    source: of the rows.
    parts: split -> where its rows are, `split[from:to]` with numbers of rows or percentages, joined
      by `+`.
  """

  source: Source
  parts: Mapping[str, str]

  def __post_init__(self):
    for part in self.parts.values():
      for name, _, _ in _parse(part):
        if name not in self.source.splits:
          raise UserError(f"there is no split {name!r} to cut", found=part,
                          wanted=", ".join(self.source.splits),
                          fix=nearest(name, self.source.splits))

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.parts)

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    for name, start, stop in _parse(self.parts[split]):
      if not (start + stop).strip("0123456789"):
        yield from itertools.islice(self.source.rows(name), int(start or 0),
                                    int(stop) if stop else None)
        continue
      rows = list(self.source.rows(name))
      yield from rows[_bound(start, len(rows), 0):_bound(stop, len(rows), len(rows))]

  def fingerprint(self) -> str:
    return _hash(self.source.fingerprint(), repr(sorted(self.parts.items())))


def _parse(parts: str) -> list[tuple[str, str, str]]:
  found = [_PART.fullmatch(part.strip()) for part in str(parts).split("+")]
  if not all(found):
    raise UserError("a part of a split cannot be read", found=repr(parts),
                    wanted="split[from:to], such as train[:80%] or train[100:200]",
                    fix="join several parts by +")
  return [(match[1], match[2] or "", match[3] or "") for match in found if match]


def _bound(text: str, count: int, default: int) -> int:
  if not text:
    return default
  value = round(count * int(text[:-1]) / 100) if text.endswith("%") else int(text)
  return max(count + value, 0) if value < 0 else value


@dataclasses.dataclass(frozen=True)
class Grouped:
  """Rows with the same `key` as one, whose `references` are their different `text`s, in order."""

  source: Source
  key: str
  text: str

  @property
  def splits(self) -> tuple[str, ...]:
    return self.source.splits

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for row in self.source.rows(split):
      if "unusable" in row or self.key not in row:
        yield row
        continue
      group = groups.setdefault(row[self.key], {**row, "references": []})
      if row.get(self.text):
        group["references"].append(row[self.text])
    yield from groups.values()

  def fingerprint(self) -> str:
    return _hash(self.source.fingerprint(), self.key, self.text)


@dataclasses.dataclass(frozen=True)
class Reordered:
  """A source's rows in a random order that is the same everywhere: classes are mixed.

  Attributes:
    source: of the rows.
    seed: of the order.
    only: the splits that are put into it; the others keep theirs. None: all are.
  """

  source: Source
  seed: int = 0
  only: tuple[str, ...] | None = None

  @property
  def splits(self) -> tuple[str, ...]:
    return self.source.splits

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    if self.only is not None and split not in self.only:
      yield from self.source.rows(split)
      return
    rows = list(self.source.rows(split))
    yield from (rows[i] for i in order(len(rows), self.seed))

  def fingerprint(self) -> str:
    return _hash(self.source.fingerprint(), f"{self.seed} {self.only}")


def order(count: int, seed: int) -> list[int]:
  """A permutation of 0 ... count-1, the same on every machine and in every version."""
  return sorted(range(count), key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())


def _hash(*parts: str) -> str:
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
