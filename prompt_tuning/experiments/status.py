"""What a person sees of a sweep: a live table on a terminal, a line a run elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from prompt_tuning.experiments.results import DONE, FAILED, NOT_RUN

RUNNING = "running"
_SHOWN = 16


class Status:
  """Use as a context manager around the runs.

  Args:
    states: run -> `done`, `failed` or `not run`, in the order of running.
    stream: the terminal or file, which stays the same while a run's own output goes to its log.
  """

  def __init__(self, states: Mapping[str, str], stream: TextIO):
    self._states = dict(states)
    self._notes: dict[str, str] = {}
    self._console = Console(file=stream)
    self._live: Live | None = None
    self._began = self._run_began = time.monotonic()
    self._ended = 0

  def __enter__(self) -> "Status":
    if self._console.is_terminal:
      self._live = Live(get_renderable=self.table, console=self._console, refresh_per_second=1,
                        redirect_stdout=False, redirect_stderr=False)
      self._live.start()
    return self

  def __exit__(self, *unused: Any) -> None:
    if self._live is not None:
      self._live.stop()

  def started(self, name: str) -> None:
    self._states[name] = RUNNING
    self._run_began = time.monotonic()

  def ended(self, name: str, state: str, note: str) -> None:
    """Args: note: its numbers, or what went wrong."""
    self._states[name], self._notes[name] = state, note
    self._ended += 1
    if self._live is None:
      self._console.print(f"[{self._count(DONE)}/{len(self._states)}] {name}: {state}  {note}",
                          highlight=False, soft_wrap=True, markup=False)

  def table(self) -> Table:
    """The runs around the running one, and the counts."""
    names = list(self._states)
    at = next((i for i, name in enumerate(names) if self._states[name] == RUNNING), 0)
    first = max(0, min(at - _SHOWN // 2, len(names) - _SHOWN))
    table = Table(title=self.counts(), caption=self._remaining())
    for column in ("run", "state", ""):
      table.add_column(column, overflow="fold")
    for name in names[first:first + _SHOWN]:
      state = self._states[name]
      note = f"{time.monotonic() - self._run_began:.0f} s" if state == RUNNING else (
        self._notes.get(name, ""))
      table.add_row(name, state, note)
    return table

  def counts(self) -> str:
    parts = [f"{self._count(state)} {state}" for state in (DONE, RUNNING, FAILED, NOT_RUN)
             if self._count(state)]
    return f"{len(self._states)} runs: " + ", ".join(parts)

  def _count(self, state: str) -> int:
    return sum(found == state for found in self._states.values())

  def _remaining(self) -> str:
    if not self._ended:
      return ""
    each = (self._run_began - self._began) / self._ended
    return f"about {each * (self._count(NOT_RUN) + self._count(RUNNING)) / 60:.0f} minutes left"


def note_of(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
  """`accuracy 0.41, 0.39 on test, 87 s`."""
  split = "test" if any(row.get("test") is not None for row in rows) else "validation"
  own = [row for row in rows if not row.get("evaluated_on")] or rows  # or a mixture's parts
  values = [f"{row[split]:.4g}" for row in own
            if row.get(split) is not None and not row.get("ensemble")]
  return f"{rows[0]['metric']} {', '.join(values)} on {split}, {record['seconds']:.0f} s"
