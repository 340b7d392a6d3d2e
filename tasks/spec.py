"""What a task is: a row of a table, without seqio and TensorFlow, so that listing is instant.

  source    raw rows of each split, in a fixed order
  to_text   a raw row -> an example; {"targets"} alone where an objective makes the inputs
  labels    the only targets there are (classification), or None
  metrics   names of functions in `metrics.py`

An example is a dictionary: `inputs` and `targets`, the texts that the model is given and taught,
and whatever the metrics want to know besides (`EXTRAS`):

  references  list of texts: all the right answers of this row; without it, the target is the one
  group       rows of one group are judged together (a question of MultiRC, a query of ReCoRD)
  label       what the row is really labelled, where the target is not that (WSC)
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prompt_tuning.errors import UserError

EXTRAS = ("references", "group", "label")
# The target of a row whose label is not published, as T5 writes it.
UNLABELLED = "<unk>"
# A split of which more than this share cannot be used is refused.
MAX_UNUSABLE = 0.01

Row = Mapping[str, Any]
Example = dict[str, Any]


def label_texts(labels: Iterable[object]) -> tuple[str, ...]:
  """LABELS as targets have them: texts, without the space around them; `[0, 1]` is "0" and "1"."""
  return tuple(str(label).strip() for label in labels)


class Unusable(Exception):
  """Raised by `to_text` for a row that no example can be made of; its text is the reason."""


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
    source: the raw rows. A row may say in `where` which file and line it is from, and in `unusable`
      why it is no row.
    to_text: a row -> an example.
    labels: all the targets there are, or None.
    metrics: names of functions in `metrics.py`; `name:value` gives a metric its argument (the
      positive class of `f1_binary`).
    objective: a dataclass of `denoising.py` that turns targets into inputs and targets, or None.
    description: one line for the list.
    expand: training has an example for each of the references; evaluation one a row.
    in_training: which rows training uses, where it does not use all.
    prefix: what names the task at the start of every input; without it the task is "taskless".
    sizes: split -> its number of rows as published, for the list.
    variant: what tells this row from the table's one of the same name (`variants.py`).
  """

  name: str
  source: Source
  to_text: Callable[[Row], Example]
  labels: tuple[str, ...] | None
  metrics: tuple[str, ...]
  objective: Any = None
  description: str = ""
  expand: bool = False
  in_training: Callable[[Row], bool] | None = None
  prefix: str = ""
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  variant: str = ""

  def __post_init__(self):
    _check_name(self.name)
    if self.labels is not None:
      object.__setattr__(self, "labels", tuple(self.labels))
      if len(set(self.labels)) < max(2, len(self.labels)):
        raise UserError(f"the labels of task {self.name!r} do not name classes",
                        found=", ".join(map(repr, self.labels)) or "no label",
                        wanted="two or more different labels", fix="correct the list of labels")
    object.__setattr__(self, "metrics", tuple(self.metrics))

  def examples(self, split: str, unusable: list[str] | None = None) -> Iterator[Example]:
    """The examples of a split, in the order of its rows: what is trained on and evaluated.

    Args:
      split: of the source.
      unusable: gets a line for each row that was left out.

    Raises:
      UserError: a row lacks a column, or more than MAX_UNUSABLE of the rows cannot be used (which
        is known only at the end).
    """
    left_out = [] if unusable is None else unusable
    count = 0
    for count, row in enumerate(self.source.rows(split), start=1):
      if split == "train" and self.in_training is not None and not self.in_training(row):
        continue
      where = row.get("where") or f"row {count} of {split}"
      try:
        if "unusable" in row:
          raise Unusable(row["unusable"])
        example = self.to_text(row)
      except Unusable as reason:
        left_out.append(f"{where}: {reason}")
        continue
      except KeyError as error:
        raise UserError(f"{self.name}, {where}: there is no column {error.args[0]!r}",
                        found=", ".join(repr(name) for name in row if name != "where"),
                        wanted="the columns of the published data",
                        fix="check that the file is the published one") from error
      if split == "train" and self.expand:
        yield from ({**example, "targets": text} for text in example["references"])
      else:
        yield example
    if len(left_out) > MAX_UNUSABLE * count:
      raise UserError(f"{self.name}: too many rows of {split} cannot be used",
                      found=f"{len(left_out)} of {count}, the first is {left_out[0]}",
                      wanted=f"at most {MAX_UNUSABLE:.0%}",
                      fix="check that the file is the published one, and whole")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proportional:
  """A rate that follows the size of a task: min(examples, cap)^(1 / temperature).

  T5's mixing (Raffel et al. 2020, section 3.5.2): in proportion to the training examples, of which
  a large task counts no more than `cap`; a temperature above 1 brings the rates closer together.
  """

  cap: int | None = None
  temperature: float = 1.0

  def __post_init__(self):
    if self.cap is not None and self.cap < 1:
      raise UserError("the cap of a mixture is no number of examples", found=self.cap,
                      wanted="1 or more, or None", fix="T5 took 2**19 = 524288")
    if not self.temperature > 0:
      raise UserError("the temperature of a mixture is not positive", found=self.temperature,
                      wanted="1 (in proportion), or more (closer to equal)", fix="T5 took 2")

  def rate(self, examples: int) -> float:
    return min(examples, self.cap or examples) ** (1 / self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSpec:
  """Tasks drawn from at given rates.

  Attributes:
    name: of the mixture.
    rates: task name -> share of the examples (any positive numbers; only their ratio counts), or
      `Proportional` to the task's training examples.
    tasks: specs of tasks that belong to this mixture alone; others come from the table.
    variant: as a task's.
  """

  name: str
  rates: Mapping[str, float | Proportional]
  tasks: tuple[TaskSpec, ...] = ()
  description: str = ""
  variant: str = ""

  def __post_init__(self):
    _check_name(self.name)
    bad = {task: rate for task, rate in self.rates.items()
           if not isinstance(rate, Proportional) and not rate > 0}
    if bad or not self.rates:
      raise UserError(f"mixture {self.name!r} has a rate that is not positive",
                      found=bad or "no task", wanted="a number above 0 for each task",
                      fix="leave out the tasks that should not be drawn")


def _check_name(name: str) -> None:
  if not name or not all(c.isascii() and (c.isalnum() or c in "_.:") for c in name):
    raise UserError("a task needs a plain name", found=repr(name),
                    wanted="letters, digits and _ . :", fix="rename the task")
