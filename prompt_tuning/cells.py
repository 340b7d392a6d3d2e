"""A grid of measurements in a MODEL_DIR: each cell is saved when it is done; a repeat goes on.

  cells.json     the rows of every cell that is done      results.csv   the same as a table
  and what every run leaves (`run_dir.py`): settings.json, config.gin, metrics.csv, summary.json
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.disk import write_text
from prompt_tuning.run_dir import RunDir, environment

Row = dict[str, Any]


class Cells:
  """The cells of one run.

  Attributes:
    run: its folder.
  """

  def __init__(self, model_dir: str, settings: Mapping[str, Any], config_text: str, corpus: str):
    """Claims the folder.

    Raises:
      UserError: it holds another run, or one of other data.
    """
    # A cell is measured once, whatever it takes: TRAIN_STEPS are part of what it measured.
    self.run = RunDir(model_dir, fixed=("train_steps",))
    self.run.claim(settings, corpus)
    self.run.write_config(config_text)
    self._path = self.run.path / "cells.json"
    self._cells: dict[str, list[Row]] = (
      json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {})
    # A kill between the two files leaves metrics of a cell that is computed again.
    self.run.forget_after(len(self._cells) - 1, len(self._cells) - 1)

  def __contains__(self, name: str) -> bool:
    return name in self._cells

  @property
  def rows(self) -> list[Row]:
    return [row for rows in self._cells.values() for row in rows]

  def add(self, name: str, rows: Sequence[Row], metrics: Mapping[str, float], split: str) -> None:
    """Saves a cell: its rows, and its metrics under its number."""
    self.run.log(len(self._cells), split, metrics)
    self._cells[name] = list(rows)
    write_text(self._path, json.dumps(self._cells, indent=1) + "\n")
    self.write("results.csv", self.rows)

  def write(self, name: str, rows: Sequence[Row]) -> None:
    """A table; its columns are those of its first row."""
    self.run.write_table(name, list(rows[0]), rows)

  def finish(self, summary: Mapping[str, Any], seed: int) -> None:
    self.run.write_summary({**summary, **environment(seed)})
    self.run.close()
