"""Solved examples ahead of a task's inputs, as a part of the task: the macro FEW_SHOT.

  sentence: dull and long negative sentence: a joy positive sentence: it moved me

`prompt-tuning design` compares ways to choose examples for a frozen model. Here one way is fixed,
for whatever is done with the task: evaluation without a prompt (Brown et al. 2020, arXiv
2005.14165, section 2), or the training of a prompt that has them behind it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.files import Template
from prompt_tuning.tasks.slices import order
from prompt_tuning.tasks.spec import Example, Row, TaskSpec, Unusable

CHOICES = ("random", "balanced")
# Of an example that did not fit, in what a task's `to_text` returns.
LEFT_OUT = "examples_left_out"

Solved = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
  """What an input may hold: `length` tokens of `vocabulary` (as `vocabularies.load` takes it)."""

  vocabulary: str
  length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
  """A task's `to_text`, with solved examples of its training rows ahead of the inputs.

  The examples of all rows are the same, but that no row stands in its own: the next one drawn takes
  its place. They are taken from the input outwards, each one that still fits; how many did not is
  in `examples_left_out`. The input itself keeps all of its text.

  Attributes:
    task: whose training rows are drawn from, and whose `to_text` makes the texts.
    count: FEW_SHOT.  seed: FEW_SHOT_SEED.
    choice: FEW_SHOT_CHOICE, `random`, or `balanced` (as many of each label, a rest of the first).
    template: FEW_SHOT_TEMPLATE, of an example, with `{inputs}` and `{targets}`.
    separator: FEW_SHOT_SEPARATOR, behind each example.
    room: what an input may hold; None: everything.
  """

  task: TaskSpec
  count: int
  seed: int = 0
  choice: str = CHOICES[0]
  template: str = "{inputs} {targets}"
  separator: str = " "
  room: Room | None = None

  def __post_init__(self):
    name = self.task.name
    if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
      raise UserError("FEW_SHOT is not a count", found=repr(self.count),
                      wanted="a whole number, 1 or more", fix="--gin.FEW_SHOT=4")
    if self.choice not in CHOICES:
      raise UserError("FEW_SHOT_CHOICE is unknown", found=repr(self.choice),
                      wanted="one of " + ", ".join(CHOICES), fix=nearest(self.choice, CHOICES))
    if self.choice == "balanced" and not self.task.labels:
      raise UserError(f"The examples of {name!r} cannot be balanced", found="a task without labels",
                      wanted="labels", fix="set FEW_SHOT_CHOICE = 'random'")
    if self.task.objective is not None:
      raise UserError(f"{name!r} has no inputs that examples could stand ahead of",
                      found="a denoising objective", wanted="a task of inputs and targets",
                      fix="leave FEW_SHOT out")
    if "train" not in self.task.source.splits:
      raise UserError(f"{name!r} has no rows that examples could be drawn from",
                      found="splits " + ", ".join(self.task.source.splits), wanted="train",
                      fix="make one with TASK_SPLITS, or leave FEW_SHOT out")
    self.pattern  # noqa: B018  (says what is wrong with the template)

  def __call__(self, row: Row) -> Example:
    example = dict(self.task.to_text(row))
    shown = self.fitting(self.examples(example["inputs"]), example["inputs"])
    example[LEFT_OUT] = self.count - len(shown)
    example["inputs"] = "".join(shown) + example["inputs"]
    return example

  def examples(self, inputs: str) -> list[str]:
    """The examples of an input, in order, whether they fit or not."""
    left = {label: iter(pool) for label, pool in self._pools.items()}
    drawn = [(label, next(left[label])) for label in self._slots]
    chosen = [solved if solved[0] != inputs else next(left[label], None) for label, solved in drawn]
    return [self._text(solved) for solved in chosen if solved is not None]

  def fitting(self, examples: list[str], inputs: str) -> list[str]:
    """Those that fit, in order."""
    if self.room is None:
      return examples
    kept: list[str] = []
    room = self.room.length - self._tokens(inputs) - 1  # the end of the sequence
    for text in reversed(examples):
      if self._tokens(text) <= room:
        kept.insert(0, text)
        room -= self._tokens(text)
    # Joined, pieces may meet in other ways.
    while kept and self._encoded("".join(kept) + inputs) + 1 > self.room.length:
      del kept[0]
    return kept

  @functools.cached_property
  def pattern(self) -> Template:
    pattern = Template("FEW_SHOT_TEMPLATE", self.template)
    try:
      filled = pattern.fill({"inputs": "\0", "targets": "\1"})
    except KeyError as error:
      raise self._bad_template(f"{{{error.args[0]}}}") from error
    if not {"\0", "\1"} <= set(filled):
      raise self._bad_template(repr(self.template))
    return pattern

  def _bad_template(self, found: str) -> UserError:
    return UserError("FEW_SHOT_TEMPLATE cannot be filled", found=found,
                     wanted="{inputs} and {targets}", fix="leave it out, or correct it")

  def _text(self, solved: Solved) -> str:
    return self.pattern.fill({"inputs": solved[0], "targets": solved[1]}) + self.separator

  @functools.cached_property
  def _slots(self) -> list[str]:
    """The label of each example, in order; of tasks that are not balanced ""."""
    labels = self.task.labels if self.choice == "balanced" and self.task.labels else ("",)
    slots = list(itertools.islice(itertools.cycle(labels), self.count))
    return [slots[i] for i in order(self.count, self.seed)]

  @functools.cached_property
  def _pools(self) -> dict[str, list[Solved]]:
    """label -> its examples as drawn, inputs all different, one more than are shown if there is."""
    wanted = {label: self._slots.count(label) + 1 for label in dict.fromkeys(self._slots)}
    pools: dict[str, list[Solved]] = {label: [] for label in wanted}
    seen: set[str] = set()
    for inputs, targets in self._drawn():
      label = targets if self.choice == "balanced" else ""
      if inputs not in seen and len(pools.get(label, ())) < wanted.get(label, 0):
        seen.add(inputs)
        pools[label].append((inputs, targets))
      if all(len(pools[label]) == wanted[label] for label in wanted):
        break
    short = {label: len(pool) for label, pool in pools.items() if len(pool) < wanted[label] - 1}
    if short:
      raise UserError(f"{self.task.name} has too few training rows for FEW_SHOT = {self.count}",
                      found=", ".join(f"{n} of {label or 'all'!r}" for label, n in short.items()),
                      wanted=", ".join(f"{wanted[label] - 1}" for label in short),
                      fix="lower FEW_SHOT, or raise K_SHOT")
    return pools

  def _drawn(self) -> Iterator[Solved]:
    """Inputs and targets of the training rows, in the seed's order."""
    rows = list(self.task.source.rows("train"))
    for i in order(len(rows), self.seed):
      if "unusable" in rows[i] or (
          self.task.in_training is not None and not self.task.in_training(rows[i])):
        continue
      try:
        example = self.task.to_text(rows[i])
      except Unusable:
        continue
      yield example["inputs"], example["targets"]

  def _tokens(self, text: str) -> int:
    found = self._counted.get(text)
    return self._encoded(text) if found is None else found

  @functools.cached_property
  def _counted(self) -> dict[str, int]:
    return {text: self._encoded(text) for pool in self._pools.values()
            for text in map(self._text, pool)}

  def _encoded(self, text: str) -> int:
    assert self.room is not None
    return len(vocabularies.load_light(self.room.vocabulary).encode(text))
