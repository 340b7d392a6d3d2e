"""Variants of the table's tasks, as arguments: each field is a macro of `commands/task.gin`.

  --gin.TASKLESS=True --gin.K_SHOT=16
  --gin.TASK_SPLITS="{'train': 'train[:90%]', 'validation': 'train[90%:]'}"

A variant keeps the name of its task; what tells it apart is in `TaskSpec.variant`, and so in the
names of seqio's tasks and of token caches. Of a mixture, every task is varied.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks.few_shot import FewShot, Room
from prompt_tuning.tasks.files import Template
from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.slices import Cut, Reordered, order
from prompt_tuning.tasks.spec import Example, MixtureSpec, Row, Source, TaskSpec, Unusable
from prompt_tuning.tasks.windows import Windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """What differs from the table's row; the defaults change nothing.

  Attributes:
    data_dir: DATA_DIR, the folder of the published files; None: the environment variable.
    data_from: DATA_FROM, `files`, `tfds` or `huggingface`.
    taskless: TASKLESS, inputs without the task's name in front.
    splits: TASK_SPLITS, split -> parts of the data's own splits, as TFDS writes them
      (`train[:80%]`, `train[90%:]+validation[:100]`); splits it does not name stay.
    k_shot: K_SHOT, so many training rows of each label (without labels: in all).
    k_shot_seed: K_SHOT_SEED, which ones.
    order_seed: ROW_ORDER_SEED, a random order of the training rows instead of the data's own (they
      are shuffled again each epoch unless SHUFFLE = False).
    template: TASK_TEMPLATE, inputs with `{column}`s of the data, or `{inputs}` as they would be.
    labels: TASK_LABELS, label -> the word for it; labels it does not name stay.
    few_shot: FEW_SHOT, so many solved examples ahead of every input (`few_shot.py`, which has the
      rest too): few_shot_choice, few_shot_seed, few_shot_template, few_shot_separator.
    window, stride: QA_WINDOW, QA_STRIDE, in words: long contexts of questions are cut into windows
      (`windows.py`).
  """

  data_dir: str | None = None
  data_from: str = "files"
  taskless: bool = False
  splits: Mapping[str, str] | None = None
  k_shot: int | None = None
  k_shot_seed: int = 0
  order_seed: int | None = None
  template: str | None = None
  labels: Mapping[str, str] | None = None
  few_shot: int | None = None
  few_shot_choice: str = "random"
  few_shot_seed: int = 0
  few_shot_template: str = "{inputs} {targets}"
  few_shot_separator: str = " "
  window: int | None = None
  stride: int | None = None

  def __post_init__(self):
    for name, value in (("K_SHOT", self.k_shot), ("FEW_SHOT", self.few_shot),
                        ("QA_WINDOW", self.window), ("QA_STRIDE", self.stride)):
      if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{name} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more", fix=f"--gin.{name}=16")
    for name, value in (("TASK_SPLITS", self.splits), ("TASK_LABELS", self.labels)):
      if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{name} is not a dictionary", found=repr(value), wanted="{'from': 'to'}",
                        fix=f"--gin.{name}=\"{{'...': '...'}}\"")
    shown = [f"{name.upper()} = {value!r}" for name, value in self.changed.items()
             if name.startswith("few_shot_")]
    if shown and self.few_shot is None:
      raise UserError("Settings of FEW_SHOT need FEW_SHOT", found=", ".join(shown),
                      wanted="a number of examples", fix="--gin.FEW_SHOT=4")
    if self.stride is not None and self.window is None:
      raise UserError("QA_STRIDE needs QA_WINDOW", found=f"QA_STRIDE = {self.stride} alone",
                      wanted="both", fix="set QA_WINDOW, the words of a window")

  def tag(self, room: Room | None = None) -> str:
    """A few letters for what differs but the place of the files; "" where nothing does."""
    changed: dict[str, Any] = {name: value for name, value in self.changed.items()
                               if name != "data_dir"}
    if self.few_shot is not None and room is not None:
      changed["room"] = room.length
    return hashlib.sha256(repr(sorted(changed.items())).encode()).hexdigest()[:8] if changed else ""

  @property
  def changed(self) -> dict[str, Any]:
    """The settings that are not their defaults."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default}

  def apply(self, row: TaskSpec | MixtureSpec,
            parts: Mapping[str, TaskSpec] | None = None,
            room: Room | None = None) -> TaskSpec | MixtureSpec:
    """The row, varied.

    Args:
      parts: the tasks of a mixture by name.
      room: what an input may hold, for FEW_SHOT; None: everything.

    Raises:
      UserError: a setting does not fit the task.
    """
    if not self.changed:
      return row
    if isinstance(row, MixtureSpec):
      tasks = tuple(self._task(task, room) for task in (parts or {}).values())
      return dataclasses.replace(row, tasks=tasks, variant=self.tag(room))
    return self._task(row, room)

  def _task(self, row: TaskSpec, room: Room | None) -> TaskSpec:
    source = _placed(row.source, self.data_dir, self.data_from)
    if self.splits is not None:
      self._check_splits(row)
      kept = dict(source.parts) if isinstance(source, Cut) else {s: s for s in source.splits}
      source = Cut(source.source if isinstance(source, Cut) else source, kept | dict(self.splits))
    if self.window is not None:
      source = Windows(source, self.window, self.stride or max(self.window // 2, 1))
    if self.order_seed is not None:
      source = Reordered(source, self.order_seed, ("train",))
    if self.k_shot is not None:
      source = Shots(source, row, self.k_shot, self.k_shot_seed)
    words = self._words(row)
    to_text = Casting(row.to_text, prefix=row.prefix if self.taskless else "", words=words,
                      template=None if self.template is None else
                      Template("TASK_TEMPLATE", self.template))
    varied = dataclasses.replace(
      row, source=source, to_text=to_text, variant=self.tag(room),
      labels=row.labels and tuple(words.get(label, label) for label in row.labels),
      metrics=tuple(_renamed(metric, words) for metric in row.metrics))
    if self.few_shot is None:
      return varied
    return dataclasses.replace(varied, to_text=FewShot(
      task=varied, count=self.few_shot, choice=self.few_shot_choice, seed=self.few_shot_seed,
      template=self.few_shot_template, separator=self.few_shot_separator, room=room))

  def _check_splits(self, row: TaskSpec) -> None:
    """Refuses an evaluation on rows that are trained on."""
    assert self.splits is not None
    for name, text in self.splits.items():
      if name != "train" and "train" not in self.splits and re.search(r"\btrain\b", text):
        raise UserError(f"TASK_SPLITS cuts {name!r} from 'train', which stays whole",
                        found=f"{row.name}: {dict(self.splits)!r}",
                        wanted="a 'train' without the rows that are evaluated",
                        fix="add 'train', such as {'train': 'train[:90%]', 'validation': "
                        "'train[90%:]'}")

  def _words(self, row: TaskSpec) -> dict[str, str]:
    unknown = set(self.labels or ()) - set(row.labels or ())
    if unknown:
      raise UserError(f"TASK_LABELS names no label of {row.name!r}",
                      found=", ".join(sorted(unknown)),
                      wanted=", ".join(row.labels or ()) or "a task with labels",
                      fix=nearest(sorted(unknown)[0], row.labels or ()))
    return dict(self.labels or {})


@dataclasses.dataclass(frozen=True)
class Casting:
  """A task's `to_text`, varied.

  Attributes:
    to_text: the task's own.
    prefix: what is taken off the start of the inputs.
    words: label -> the word for it.
    template: what the inputs are put into, or None.
  """

  to_text: Any
  prefix: str = ""
  words: Mapping[str, str] = dataclasses.field(default_factory=dict)
  template: Template | None = None

  def __call__(self, row: Row) -> Example:
    example = dict(self.to_text(row))
    if "inputs" in example:
      example["inputs"] = example["inputs"].removeprefix(self.prefix)
    if self.template is not None:
      columns = {name: value for name, value in row.items() if isinstance(value, str | int | float)}
      example["inputs"] = self.template.fill(
        {**{name: str(value) for name, value in columns.items()}, "inputs": example["inputs"]})
    example["targets"] = self.words.get(example["targets"], example["targets"])
    return example


@dataclasses.dataclass(frozen=True)
class Shots:
  """A source whose training rows are a few: `count` of each label, drawn by `seed`.

  Of a row with several references, which training has an example for each of (`TaskSpec.expand`),
  one reference is drawn: K_SHOT counts examples.
  """

  source: Source
  row: TaskSpec
  count: int
  seed: int

  @property
  def splits(self) -> tuple[str, ...]:
    return self.source.splits

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    if split != "train":
      yield from self.source.rows(split)
      return
    rows = list(self.source.rows(split))
    labels = self.row.labels or ("",)
    left = dict.fromkeys(labels, self.count)
    for i in order(len(rows), self.seed):
      label = self._label(rows[i])
      if left.get(label, 0):
        left[label] -= 1
        yield self._one_example(rows[i], i)
    if any(left.values()):
      raise UserError(f"{self.row.name} has too few rows for K_SHOT = {self.count}",
                      found=", ".join(f"{self.count - n} of {label or 'all'!r}"
                                      for label, n in left.items()),
                      wanted=f"{self.count} of each", fix="lower K_SHOT")

  def _one_example(self, row: dict[str, Any], number: int) -> dict[str, Any]:
    if not self.row.expand or "references" not in row:
      return row
    references = list(row["references"])
    chosen = next(iter(order(len(references), self.seed + number)), 0)
    return {**row, "references": references[chosen:chosen + 1]}

  def _label(self, row: Row) -> str | None:
    if "unusable" in row or (self.row.in_training is not None and not self.row.in_training(row)):
      return None
    try:
      return self.row.to_text(row)["targets"] if self.row.labels else ""
    except Unusable:
      return None

  def fingerprint(self) -> str:
    text = f"{self.source.fingerprint()} {self.count} {self.seed}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_place(row: TaskSpec | MixtureSpec) -> TaskSpec | MixtureSpec:
  """A row as it would be wherever its files are."""
  if isinstance(row, MixtureSpec):
    return dataclasses.replace(row, tasks=tuple(map(without_place, row.tasks)))
  to_text = row.to_text
  if isinstance(to_text, FewShot):
    to_text = dataclasses.replace(to_text, task=without_place(to_text.task))
  return dataclasses.replace(row, source=_placed(row.source, None, None), to_text=to_text)


def _placed(source: Source, data_dir: str | None, origin: str | None) -> Source:
  """The source, read from another place (and origin); only published data has one."""
  if isinstance(source, Published):
    return dataclasses.replace(source, data_dir=data_dir, origin=origin or source.origin)
  inner = getattr(source, "source", None)
  return source if inner is None else dataclasses.replace(
    source, source=_placed(inner, data_dir, origin))


def _renamed(metric: str, words: Mapping[str, str]) -> str:
  """`f1_binary:equivalent`, with the word of that label."""
  name, colon, label = metric.partition(":")
  return name + colon + words.get(label, label)
