"""Long contexts of questions as windows, and one answer of several (Devlin et al. 2019).

A window is a row of its own with a part of the context. Training has the windows that hold an
answer, with the answers that they hold; evaluation has all of them as one `group`, whose answer is
the one that the model gives the highest score (`best`).
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.spec import Row, Source

_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True)
class Windows:
  """A source of questions whose contexts have at most `size` words.

  Attributes:
    source: rows with `question`, `context` and `answers`.
    size: words of a window.
    stride: words from one window's start to the next one's.
  """

  source: Source
  size: int
  stride: int

  def __post_init__(self):
    if self.stride > self.size:
      raise UserError("QA_STRIDE leaves gaps between windows", found=f"QA_STRIDE = {self.stride}",
                      wanted=f"at most QA_WINDOW = {self.size}", fix="lower QA_STRIDE")

  @property
  def splits(self) -> tuple[str, ...]:
    return self.source.splits

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(self.source.rows(split)):
      if "unusable" in row:
        yield row
        continue
      if not {"question", "context", "answers"} <= row.keys():
        raise UserError("QA_WINDOW is for questions on a context",
                        found=", ".join(name for name in row if name != "where"),
                        wanted="question, context, answers", fix="leave QA_WINDOW out")
      answers = _texts(row)
      for text in self._parts(row["context"]):
        held = [answer for answer in answers if answer in text]
        if held or split != "train":
          yield {**row, "context": text, "answers": held if split == "train" else answers,
                 "window_of": str(number)}

  def _parts(self, context: str) -> Iterator[str]:
    spans = [match.span() for match in _WORD.finditer(context)]
    for first in range(0, max(len(spans), 1), self.stride):
      part = spans[first:first + self.size]
      yield context[part[0][0]:part[-1][1]] if part else context
      if first + self.size >= len(spans):
        return

  def fingerprint(self) -> str:
    text = f"{self.source.fingerprint()} {self.size} {self.stride}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _texts(row: Row) -> list[str]:
  return list(row["answers"]["text"] if isinstance(row["answers"], Mapping) else row["answers"])


def of_windows(source: Any) -> bool:
  """Whether a source's rows are windows, whatever chooses or orders them."""
  while source is not None and not isinstance(source, Windows):
    source = getattr(source, "source", None)
  return source is not None


def firsts(groups: Sequence[str | None]) -> list[int]:
  """The first row of every group; a row without one by itself."""
  found: dict[Any, int] = {}
  for row, key in enumerate(_keys(groups)):
    found.setdefault(key, row)
  return list(found.values())


def _keys(groups: Sequence[str | None]) -> list[Any]:
  return [("row", row) if group is None else group for row, group in enumerate(groups)]


def best(groups: Sequence[str | None], scores: Sequence[float]) -> list[int]:
  """For each row the row of its group that has the highest score, the first of equal ones.

  Args:
    groups: of each row; None: a row by itself.
    scores: log-likelihood of the answer that the model gave in each.
  """
  chosen: dict[Any, int] = {}
  keys = _keys(groups)
  for row, key in enumerate(keys):
    if key not in chosen or scores[row] > scores[chosen[key]]:
      chosen[key] = row
  return [chosen[key] for key in keys]
