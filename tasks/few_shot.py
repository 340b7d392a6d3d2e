"""Solved examples ahead of a task's inputs, as a part of the task: the macro FEW_SHOT.

  sentence: dull and long negative sentence: a joy positive sentence: it moved me

`prompt-tuning design` compares ways to choose examples for a frozen model; it draws them, and
leaves out what does not fit, by the functions at the end of this file. Here one way is fixed, for
whatever is done with the task: evaluation without a prompt (Brown et al. 2020, arXiv 2005.14165,
section 2), or the training of a prompt that has them behind it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.files import Template
from prompt_tuning.tasks.spec import Example, Row, TaskSpec

CHOICES = ("random", "balanced")
# How many examples an input lacks, in what a task's `to_text` returns.
LEFT_OUT = "examples_left_out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
  """What an input may hold: `length` tokens of `vocabulary` (as `vocabularies.load` takes it)."""

  vocabulary: str
  length: int


class Solved(NamedTuple):
  """An example.

  Attributes:
    inputs: of its row.
    text: what stands ahead of other inputs.
    tokens: of the text; 0 where nothing counts them.
  """

  inputs: str
  text: str
  tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
  """A task's `to_text`, with solved examples of its training rows ahead of the inputs.

  The examples of all rows are the same, but that no row stands in its own: there the first training
  row (of its label, where they are balanced) that is no example takes its place. They are taken
  from the input outwards, each one that still fits; how many an input lacks is in
  `examples_left_out`. The input itself keeps all of its text.

  Attributes:
    task: whose training rows are drawn from, and whose `to_text` makes the texts.
    count: FEW_SHOT.  choice: FEW_SHOT_CHOICE, of CHOICES (`fixed`).  seed: FEW_SHOT_SEED.
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
    fields = Template("FEW_SHOT_TEMPLATE", self.template).fields
    if set(fields) != {"inputs", "targets"}:
      raise UserError("FEW_SHOT_TEMPLATE cannot be filled", found=repr(self.template),
                      wanted="{inputs} and {targets}", fix="leave it out, or correct it")

  def __call__(self, row: Row) -> Example:
    example = dict(self.task.to_text(row))
    inputs = example["inputs"]
    shown = [other if solved.inputs == inputs else solved for solved, other in self._drawn]
    texts = self._fitting([solved for solved in shown if solved is not None], inputs)
    return {**example, "inputs": "".join(texts) + inputs, LEFT_OUT: self.count - len(texts)}

  def _fitting(self, shown: Sequence[Solved], inputs: str) -> list[str]:
    """The texts of the examples that fit, in order."""
    if self.room is None:
      return [solved.text for solved in shown]
    room = self.room.length - self._tokens(inputs) - 1  # the end of the sequence
    kept = [shown[i].text for i in fitting([solved.tokens for solved in shown], room)]
    # Joined, pieces may meet in other ways.
    while kept and self._tokens("".join(kept) + inputs) + 1 > self.room.length:
      del kept[0]
    return kept

  @functools.cached_property
  def _drawn(self) -> list[tuple[Solved, Solved | None]]:
    """Each example, and what takes its place in its own context, if there is another row."""
    # Rows with the same inputs are one question.
    rows: dict[str, str] = {}
    for example in self.task.examples("train"):
      rows.setdefault(example["inputs"], example["targets"])
    solved = list(rows.items())
    labels = [targets if self.choice == "balanced" else "" for targets in rows.values()]
    chosen = fixed(self.choice, self.count, np.array(labels), self.seed).tolist()
    others: dict[str, Solved] = {}
    wanted = {labels[i] for i in chosen}
    for i in range(len(solved)):
      if labels[i] in wanted - others.keys() and i not in chosen:
        others[labels[i]] = self._solved(*solved[i])
    return [(self._solved(*solved[i]), others.get(labels[i])) for i in chosen]

  def _solved(self, inputs: str, targets: str) -> Solved:
    text = Template("FEW_SHOT_TEMPLATE", self.template).fill(
      {"inputs": inputs, "targets": targets}) + self.separator
    return Solved(inputs, text, 0 if self.room is None else self._tokens(text))

  def _tokens(self, text: str) -> int:
    assert self.room is not None
    return len(vocabularies.load_light(self.room.vocabulary).encode(text))


def fixed(choice: str, count: int, classes: np.ndarray, seed: int) -> np.ndarray:
  """`[K]` rows of a pool: `random`, or `balanced`, as many of each class.

  Of `balanced`, a rest goes to classes drawn at random.

  Args:
    count: K.
    classes: `[n]` of the pool.

  Raises:
    UserError: the pool has too few rows, of a class or altogether.
  """
  generator = np.random.default_rng(seed)
  order = generator.permutation(len(classes))
  if choice == "random":
    check_enough(len(order), count, "rows")
    return order[:count]
  names = np.unique(classes)
  extra = generator.permutation(names)[:count % len(names)]
  chosen = []
  for name in names:
    wanted = count // len(names) + int(name in extra)
    rows = order[classes[order] == name]
    check_enough(len(rows), wanted, f"rows of class {name}")
    chosen.append(rows[:wanted])
  return generator.permutation(np.concatenate(chosen)).astype(int)


def fitting(sizes: Sequence[int], room: int) -> list[int]:
  """Which examples fit, in order: taken from the last one on, each that still does.

  Args:
    sizes: tokens of each.  room: tokens for all.
  """
  kept: list[int] = []
  for i in reversed(range(len(sizes))):
    if sizes[i] <= room:
      kept.insert(0, i)
      room -= sizes[i]
  return kept


def check_enough(found: int, wanted: int, what: str) -> None:
  """Raises `UserError`: fewer than `wanted` rows to draw examples from."""
  if found < wanted:
    raise UserError("There are too few training rows for the examples", found=f"{found} {what}",
                    wanted=f"{wanted} or more",
                    fix="ask for fewer examples (SHOTS, FEW_SHOT), or give more rows to draw from "
                        "(POOL_ROWS, K_SHOT)")
