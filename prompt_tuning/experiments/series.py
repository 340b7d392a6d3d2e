"""From the rows of results.csv to what a figure shows: means, spreads, and what was not run.

A row of a grid has the choices of its axes. `size`, `task`, `method` and `seed` have their usual
meaning; any other axis is a setting that was varied, and rows with one belong to its ablation, not
to the curve over sizes.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prompt_tuning.experiments.grid import RESERVED
from prompt_tuning.experiments.results import DONE, NUMBERS

Row = Mapping[str, Any]
USUAL = ("size", "task", "method", "seed")
OWN = (*RESERVED, *NUMBERS)


@dataclasses.dataclass(frozen=True)
class Point:
  """Several runs that differ in the seed alone.

  Attributes:
    x: what they are placed at.
    mean, deviation: of their scores; a deviation of 0.0 with `count` 1 is no spread.
    count: how many.
  """

  x: float
  mean: float
  deviation: float
  count: int


@dataclasses.dataclass(frozen=True)
class Line:
  """Attributes:
    name: of the choice that its runs share.
    points: by x.
    missing, wanted: how many of the cells were not run (or failed), and how many there are.
  """

  name: str
  points: tuple[Point, ...]
  missing: int
  wanted: int

  @property
  def label(self) -> str:
    name = self.name.replace("_", " ")
    return name if not self.missing else f"{name} ({self.missing} of {self.wanted} not run)"


def settings_of(rows: Sequence[Row]) -> list[str]:
  """The axes that are varied beside the usual ones, in the order of the table."""
  return [name for name in (rows[0] if rows else ()) if name not in USUAL and name not in OWN]


def plain(rows: Sequence[Row]) -> list[Row]:
  """Rows of single runs on their own task: no ensembles, no other task's rows.

  A run over several tasks has a row for each of them, and its method the name of the mixture.
  """
  mixtures = mixture_runs(rows)
  return [row if row["run"] not in mixtures else
          {**row, "task": row["evaluated_on"], "method": f"{row['method']} ({row['task']})"}
          for row in rows
          if not row.get("ensemble") and (not row.get("evaluated_on") or row["run"] in mixtures)]


def mixture_runs(rows: Sequence[Row]) -> set[str]:
  """Names of the runs that were evaluated only on other tasks than their own: on its parts."""
  whole = {row["run"] for row in rows if not row.get("evaluated_on")}
  return {row["run"] for row in rows} - whole


def unvaried(rows: Sequence[Row]) -> list[Row]:
  """Rows in which no other setting is varied."""
  varied = settings_of(rows)
  return [row for row in rows if not any(row[name] for name in varied)]


def score(row: Row) -> float | None:
  """The number of a row: on test rows, or on validation rows where the grid has no test."""
  return row.get("test") if row.get("test") is not None else row.get("validation")


def lines(rows: Sequence[Row], by: str, x: str = "backbone_parameters") -> list[Line]:
  """A line a choice of the axis `by`: mean and standard deviation at each x."""
  found = []
  for name in distinct(rows, by):
    own = [row for row in rows if row[by] == name]
    done = [row for row in own if row["status"] == DONE and score(row) is not None]
    places: dict[float, list[float]] = {}
    for row in done:
      places.setdefault(row[x], []).append(score(row))  # type: ignore[arg-type]
    points = tuple(summary(place, values) for place, values in sorted(places.items()))
    missing = sum(row["status"] != DONE for row in own)
    found.append(Line(name, points, missing, len({row["run"] for row in own})))
  return found


def summary(x: float, values: Sequence[float]) -> Point:
  spread = statistics.stdev(values) if len(values) > 1 else 0.0
  return Point(x, statistics.fmean(values), spread, len(values))


def majority(rows: Iterable[Row]) -> float | None:
  """What always predicting the most frequent label reaches on the rows' task."""
  return next((row["majority"] for row in rows if row.get("majority") is not None), None)


def distinct(rows: Iterable[Row], name: str) -> list[str]:
  """The values of a column, in order, without empty ones."""
  return list(dict.fromkeys(row[name] for row in rows if row.get(name)))


def metric_of(rows: Iterable[Row]) -> str:
  """The metrics of the rows, for an axis' label."""
  return " or ".join(distinct(rows, "metric")) or "score"


def over_tasks(rows: Sequence[Row]) -> list[Row]:
  """A row a (size, method, seed) that was run on every task: the mean of its scores.

  Nothing where a task is measured by its loss, or there is only one.
  """
  tasks = distinct(rows, "task")
  if len(tasks) < 2 or "loss" in distinct(rows, "metric"):
    return []
  groups: dict[tuple[Any, ...], list[Row]] = {}
  for row in rows:
    if row["status"] == DONE and score(row) is not None:
      groups.setdefault((row["size"], row["method"], row.get("seed")), []).append(row)
  return [{**group[0], "task": "mean of the tasks", "majority": None,
           "test": statistics.fmean(score(row) for row in group)}  # type: ignore[misc]
          for group in groups.values() if {row["task"] for row in group} == set(tasks)]
