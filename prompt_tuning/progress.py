"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from prompt_tuning import hosts

_LINE_SECONDS = 10.0


class Progress:
  """Use as a context manager around the steps.

  Args:
    total: steps of the run.  done: those of before a resume.
  """

  def __init__(self, total: int, done: int = 0):
    self._total, self._done = total, done
    self._console = Console(file=sys.stderr, quiet=not hosts.is_first())
    self._bar: Any = None
    if self._console.is_terminal and hosts.is_first():
      self._bar = Bar(TextColumn("train"), BarColumn(), MofNCompleteColumn(),
                      TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                      console=self._console)
      self._row = self._bar.add_task("train", total=total, completed=done, note="")
    self._last_line = 0.0

  def __enter__(self) -> "Progress":
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *unused: Any) -> None:
    if self._bar is not None:
      self._bar.stop()

  def advance(self) -> None:
    self._done += 1
    if self._bar is not None:
      self._bar.update(self._row, completed=self._done)

  def show(self, step: int, metrics: Mapping[str, float]) -> None:
    """Training metrics since the last time."""
    note = f"loss {metrics['loss']:.3f}  {metrics['steps_per_second']:.1f} steps/s"
    if self._bar is not None:
      self._bar.update(self._row, note=note)
    elif time.time() - self._last_line > _LINE_SECONDS or step == self._total:
      self._last_line = time.time()
      self._print(f"step {step}/{self._total}  {note}")

  def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
    shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    self._print(f"step {step}/{self._total}  validation: {shown}")

  def _print(self, line: str) -> None:
    self._console.print(line, highlight=False, soft_wrap=True, markup=False)
