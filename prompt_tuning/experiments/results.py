"""What a sweep leaves of its runs: a record each, and two tidy CSV files made of the records.

  records/<run>.json   what was run, and what came of it; a run with a `done` one is not repeated
  results.csv          a row a run (a row a prompt where a run trains several, and one an ensemble);
                       a cell that was not run has a row that says so
  curves.csv           run, step, split, metric, value: every evaluation of every run

  column               meaning
  run, status          name; `done`, `failed` or `not run`
  <axis>               the choice of each axis; `seed` is the prompt's own where there are several
  evaluated_on         empty, or the other task that `test` is of, or the task of the mixture
  ensemble             empty, or how the prompts of a run were put together
  metric               the number that `validation` (at the best step) and `test` are
  majority             of always predicting the most frequent label, on the test rows
  backbone_parameters, trained_parameters
  steps, best_step, device, versions, commit, command
  seconds, cpu_seconds of the run, its evaluations included; of a run that was stopped, all its
                       steps' seconds at least, and the cpu_seconds of what came after
"""

import csv
import json
import pathlib
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.disk import write_table, write_text
from prompt_tuning.errors import UserError
from prompt_tuning.experiments.grid import Cell, Grid, command_line

DONE, FAILED, NOT_RUN = "done", "failed", "not run"
NUMBERS = ("validation", "test", "majority", "backbone_parameters", "trained_parameters", "steps",
           "best_step", "seconds", "cpu_seconds", "step", "value")
_AFTER = ("evaluated_on", "ensemble", "metric", "validation", "test", "majority",
          "backbone_parameters", "trained_parameters", "steps", "best_step", "seconds",
          "cpu_seconds", "device", "versions", "commit", "command")
_CURVES = ("run", "step", "split", "metric", "value")

Row = dict[str, Any]


class Records:
  """The records below SWEEP_DIR."""

  def __init__(self, grid: Grid):
    self._grid = grid
    self.folder = pathlib.Path(grid.sweep_dir) / "records"

  def find(self, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell, or None.

    Raises:
      UserError: it is of other settings.
    """
    path = self.folder / f"{cell.name}.json"
    if not path.is_file():
      return None
    record = json.loads(path.read_text(encoding="utf-8"))
    command = _command(self._grid, cell)
    same = _without_root(record["command"], cell) == _without_root(command, cell)
    if record["status"] == DONE and not same:
      raise UserError(f"The finished run {cell.name} had other settings",
                      found=record["command"], wanted=command,
                      fix=f"give another --gin.SWEEP_DIR, or remove {path} and the run's folder")
    return record

  def write(self, cell: Cell, record: Mapping[str, Any]) -> None:
    self.folder.mkdir(parents=True, exist_ok=True)
    record = {**record, "choices": dict(cell.choices), "command": _command(self._grid, cell)}
    write_text(self.folder / f"{cell.name}.json", json.dumps(record, indent=2) + "\n")

  def status(self, cell: Cell) -> str:
    record = self.find(cell)
    return NOT_RUN if record is None else record["status"]

  def collect(self, cells: Sequence[Cell]) -> tuple[list[Row], list[Row]]:
    """The rows of results.csv and of curves.csv; both files are written."""
    rows: list[Row] = []
    curves: list[Row] = []
    for cell in cells:
      record = self.find(cell)
      about = {"run": cell.name, **cell.choices, "command": _command(self._grid, cell)}
      if record is not None:
        about["command"] = record["command"]
      if record is None or record["status"] != DONE:
        rows.append({**about, "status": NOT_RUN if record is None else record["status"]})
        continue
      shared = {name: record[name] for name in _AFTER if name in record and name != "command"}
      rows += [{**about, "status": DONE, **shared, **row} for row in record["rows"]]
      curves += [{"run": cell.name, **point} for point in record["curve"]]
    folder = self.folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("run", "status", *self._grid.axes, *(("seed",) * ("seed" not in self._grid.axes)),
               *_AFTER)
    write_table(folder / "results.csv", columns, rows)
    write_table(folder / "curves.csv", _CURVES, curves)
    return rows, curves


def read_table(path: pathlib.Path) -> list[Row]:
  """Rows of a CSV file of a sweep: numbers as floats, None where empty.

  Raises:
    UserError: there is no such file, or it is of something else.
  """
  try:
    with path.open(encoding="utf-8", newline="") as file:
      rows: list[Row] = [dict(row) for row in csv.DictReader(file)]
  except FileNotFoundError:
    raise UserError("There is no such table", found=str(path), wanted="the results.csv of a sweep",
                    fix="run `prompt-tuning sweep` first, or correct the path") from None
  try:
    for row in rows:
      if None in row or "run" not in row:
        raise ValueError("columns " + ", ".join(map(str, row)))
      for name in NUMBERS:
        if name in row:
          row[name] = float(row[name]) if row[name] else None
  except ValueError as error:
    raise UserError("This is no table of a sweep", found=f"{path}: {error}",
                    wanted="a column `run`, and numbers where a sweep writes them",
                    fix="give the results.csv of a sweep") from error
  return rows


def commit() -> str:
  """The commit of this code, with `+` where files differ from it; empty outside of a checkout."""
  folder = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True,
                          check=True).stdout.strip()

  try:
    # An installed copy may lie inside somebody else's repository.
    if not git("ls-files", "results.py"):
      return ""
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno"))
  except (OSError, subprocess.CalledProcessError):
    return ""


def _without_root(command: str, cell: Cell) -> str:
  """A run's command without its SWEEP_DIR, which may have been another machine's."""
  words = shlex.split(command)
  root = words[-1].partition("=")[2].strip('"').removesuffix(cell.name)
  return shlex.join(word.replace(root, "") for word in words) if root else command


def _command(grid: Grid, cell: Cell) -> str:
  return shlex.join(["prompt-tuning", *command_line(grid, cell)])
