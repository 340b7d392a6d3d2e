"""`prompt-tuning sweep`: runs the cells of a grid that are not done, then collects and draws.

  SWEEP_DIR/<run>/            the run, as `prompt-tuning train` or `eval` leaves it
  SWEEP_DIR/logs/<run>.log    what it printed
  SWEEP_DIR/records/          what came of it
  SWEEP_DIR/results.csv       SWEEP_DIR/curves.csv       SWEEP_DIR/figures/

A killed sweep is gone on with by the same command: finished runs are skipped, the one that was
killed resumes. A run that fails is noted, and the others go on; the next sweep tries it again.
"""

import contextlib
import dataclasses
import logging
import pathlib
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence

import jax

from prompt_tuning import config
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import plots, results, runner
from prompt_tuning.experiments.grid import Cell, Grid, chosen, command_line
from prompt_tuning.experiments.results import DONE, FAILED, Records
from prompt_tuning.experiments.status import Status, note_of
from prompt_tuning.hosts import STOPPED

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Part:
  """What of a grid is wanted.

  Attributes:
    only: patterns of names; () is all.
    shard: (i, n): part i of n.
  """

  only: Sequence[str] = ()
  shard: tuple[int, int] = (0, 1)


def listing(grid: Grid, part: Part) -> None:
  """Prints every run with its state and command."""
  records = Records(grid)
  for cell in _wanted(grid, part):
    print(f"{cell.name}  [{records.status(cell)}]")
    print(f"  prompt-tuning {shlex.join(command_line(grid, cell))}")


def sweep(grid: Grid, part: Part) -> int:
  """Runs what is wanted and not done.

  Returns: the exit code, 75 where it was told to stop, 1 where a run failed.

  Raises:
    UserError: a flag, file or macro of any wanted run is wrong, or there are several hosts;
      nothing has run then.
  """
  records, wanted = Records(grid), _wanted(grid, part)
  states = {cell.name: records.status(cell) for cell in wanted}
  todo = [cell for cell in wanted if states[cell.name] != DONE]
  check(grid, todo)
  if (hosts := jax.process_count()) > 1:
    raise UserError("A sweep runs on one host", found=f"{hosts} hosts of one machine",
                    wanted="one host with all the accelerators that a run needs",
                    fix="start the commands that `sweep --list` shows on all hosts, one after the "
                    "other (docs/sweeps.md)")
  failed, stopped = 0, False
  with Status(states, sys.stdout) as status:
    for cell in todo:
      status.started(cell.name)
      record, note = _run(grid, cell)
      if record is None:
        print("Stopped, and saved. The same command goes on.")
        stopped = True
        break
      records.write(cell, record)
      failed += record["status"] == FAILED
      status.ended(cell.name, record["status"], note)
      records.collect(grid.cells())
  collect(grid)
  return STOPPED if stopped else int(failed > 0)


def collect(grid: Grid) -> None:
  """Writes the CSV files and draws the figures from what is there."""
  rows, _ = Records(grid).collect(grid.cells())
  folder = pathlib.Path(grid.sweep_dir)
  drawn = plots.draw_all(folder / "results.csv", folder / "figures")
  counts = {state: sum(row["status"] == state for row in rows)
            for state in dict.fromkeys(row["status"] for row in rows)}
  print(f"{folder / 'results.csv'}: " + ", ".join(f"{n} rows {s}" for s, n in counts.items()))
  if drawn:
    print("figures: " + ", ".join(map(str, drawn)))


def check(grid: Grid, cells: Sequence[Cell]) -> None:
  """Builds every cell's configuration, and looks for the split that it is tested on.

  Raises:
    UserError: the first that is wrong, by name.
  """
  for cell in cells:
    try:
      runner.check_test_split(grid, runner.build(grid, cell))
    except UserError as error:
      raise UserError(f"Run {cell.name}: {error.what}", found=error.found, wanted=error.wanted,
                      fix=error.fix) from error
  config.clear()


def _wanted(grid: Grid, part: Part) -> list[Cell]:
  return grid.shard(chosen(grid.cells(), part.only), *part.shard)


def _run(grid: Grid, cell: Cell) -> tuple[dict | None, str]:
  """A cell's record (None: it was told to stop), and a line about it."""
  try:
    with _output_to(pathlib.Path(grid.sweep_dir) / "logs" / f"{cell.name}.log"):
      try:
        record = runner.run(grid, cell)
      except Exception:
        traceback.print_exc()
        raise
  except Exception as error:  # Whatever ends one run must not end the others.
    what = f"{error.what}: {error.found}" if isinstance(error, UserError) else repr(error)
    log.debug("run %s failed", cell.name, exc_info=True)
    return {"status": FAILED, "error": what[:2000], "commit": results.commit()}, what
  return record, "" if record is None else note_of(record["rows"], record)


@contextlib.contextmanager
def _output_to(path: pathlib.Path) -> Iterator[None]:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
      yield
