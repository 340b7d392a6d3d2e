"""The table of tasks: the rows that come with the package, and those a user adds."""

import itertools
from typing import Any

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import docstring_tasks, mixtures
from prompt_tuning.tasks.datasets import (
  classification,
  cloze,
  data_to_text,
  glue,
  question_answering,
  summarization,
  super_glue,
  web_text,
)
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec

_rows: dict[str, TaskSpec | MixtureSpec] = {
  row.name: row for module in (docstring_tasks, glue, super_glue, question_answering, data_to_text,
                               summarization, classification, web_text, mixtures)
  for row in module.ROWS}
# Rows of an argument: `lama_trex:P19`.
_families = {cloze.NAME: cloze.spec}


def names() -> tuple[str, ...]:
  """Names of all tasks and mixtures, in the order they were added."""
  return tuple(_rows)


def has(name: str) -> bool:
  """Whether a row has this name, or a family of rows its start."""
  return name in _rows or name.partition(":")[0] in _families


def spec(name: str) -> TaskSpec | MixtureSpec:
  """The row of that name.

  Raises:
    UserError: there is none; near misses are named.
  """
  family = name.partition(":")[0]
  if name not in _rows and family in _families:
    return _families[family](name)
  if name not in _rows:
    raise UserError(f"there is no task {name!r}", found=name,
                    wanted="a name that `prompt-tuning tasks` lists",
                    fix=nearest(name, [*_rows, *_families]))
  return _rows[name]


def add(row: TaskSpec | MixtureSpec) -> None:
  """Adds a row; adding an equal one again changes nothing.

  Raises:
    UserError: another row has this name.
  """
  if _rows.setdefault(row.name, row) != row:
    raise UserError(f"two different tasks are called {row.name!r}",
                    found="another row with this name", wanted="one task a name",
                    fix="rename yours")


def describe() -> list[dict[str, Any]]:
  """One dictionary a row: name, kind, splits, sizes, labels, metrics, description, source.

  Reads no data: sizes are those of the published data, and source is where it can come from.
  """
  rows = [_described(row) for row in _rows.values()]
  for name, family in _families.items():
    example = _described(family(f"{name}:{cloze.RELATIONS[0]}"))
    rows.append({**example, "name": f"{name}:{cloze.RELATIONS[0]} ...", "description":
                 f"facts as clozes, a task for each of {len(cloze.RELATIONS)} relations"})
  return rows


def _described(row: TaskSpec | MixtureSpec) -> dict[str, Any]:
  if isinstance(row, MixtureSpec):
    return {"name": row.name, "kind": "mixture", "splits": (), "labels": None, "metrics": (),
            "sizes": {}, "source": "", "description": row.description or ", ".join(row.rates)}
  kind = ("denoising" if row.objective is not None
          else "classification" if row.labels else "text to text")
  return {"name": row.name, "kind": kind, "splits": tuple(row.source.splits),
          "sizes": dict(row.sizes), "labels": row.labels, "metrics": row.metrics,
          "description": row.description, "source": _place(row.source)}


def _place(source: Any) -> str:
  """Of a source, or of the one that it is made of."""
  if hasattr(source, "place"):
    return source.place()
  return _place(source.source) if hasattr(source, "source") else ""


def num_rows(name: str) -> dict[str, int]:
  """Split -> number of raw rows of a task, by reading them all."""
  row = _task(name)
  return {split: sum(1 for _ in row.source.rows(split)) for split in row.source.splits}


def examples(name: str, split: str = "train", count: int = 3) -> list[dict[str, Any]]:
  """The first texts of a split as the model gets them before tokenisation.

  Rows of a denoising task have only `targets`.

  Raises:
    UserError: no such task or split.
  """
  row = _task(name)
  if split not in row.source.splits:
    raise UserError(f"task {name!r} has no split {split!r}", found=split,
                    wanted=", ".join(row.source.splits), fix=nearest(split, row.source.splits))
  return list(itertools.islice(row.examples(split), count))


def _task(name: str) -> TaskSpec:
  row = spec(name)
  if isinstance(row, MixtureSpec):
    raise UserError(f"{name!r} is a mixture", found="a mixture has no rows of its own",
                    wanted="a task", fix="choose one of: " + ", ".join(row.rates))
  return row
