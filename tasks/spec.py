"""What a task is: a row of a table, without seqio and TensorFlow, so that listing is instant.

  source    raw rows of each split, in a fixed order
  to_text   a raw row -> {"inputs", "targets"}; {"targets"} where an objective makes the inputs
  labels    the only targets there are (classification), or None
  metrics   names of functions in `metrics.py`
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from prompt_tuning.errors import UserError


class Source(Protocol):
  """Where a task's raw rows come from."""

  @property
  def splits(self) -> tuple[str, ...]: ...

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split; the same rows in the same order at each call."""
    ...

  def fingerprint(self) -> str:
    """A hash that changes whenever the rows do."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
  """A row of the task table.

  Attributes:
    name: the name that `MIXTURE_OR_TASK_NAME` takes.
    source: the raw rows.
    to_text: a row -> the texts of its features.
    labels: all the targets there are, or None.
    metrics: names of functions in `metrics.py`.
    objective: a dataclass of `denoising.py` that turns targets into inputs and targets, or None.
    description: one line for the list.
  """

  name: str
  source: Source
  to_text: Callable[[Mapping[str, Any]], dict[str, str]]
  labels: tuple[str, ...] | None
  metrics: tuple[str, ...]
  objective: Any = None
  description: str = ""

  def __post_init__(self):
    _check_name(self.name)
    if self.labels is not None:
      object.__setattr__(self, "labels", tuple(self.labels))
      if len(set(self.labels)) < max(2, len(self.labels)):
        raise UserError(f"the labels of task {self.name!r} do not name classes",
                        found=", ".join(map(repr, self.labels)) or "no label",
                        wanted="two or more different labels", fix="correct the list of labels")
    object.__setattr__(self, "metrics", tuple(self.metrics))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSpec:
  """Tasks drawn from at fixed rates.

  Attributes:
    name: of the mixture.
    rates: task name -> share of the examples (any positive numbers; only their ratio counts).
    tasks: specs of tasks that belong to this mixture alone; others come from the table.
  """

  name: str
  rates: Mapping[str, float]
  tasks: tuple[TaskSpec, ...] = ()
  description: str = ""

  def __post_init__(self):
    _check_name(self.name)
    bad = {task: rate for task, rate in self.rates.items() if not rate > 0}
    if bad or not self.rates:
      raise UserError(f"mixture {self.name!r} has a rate that is not positive",
                      found=bad or "no task", wanted="a number above 0 for each task",
                      fix="leave out the tasks that should not be drawn")


def _check_name(name: str) -> None:
  if not name or not all(c.isascii() and (c.isalnum() or c in "_.:") for c in name):
    raise UserError("a task needs a plain name", found=repr(name),
                    wanted="letters, digits and _ . :", fix="rename the task")
