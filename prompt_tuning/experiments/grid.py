"""A grid of runs: axes of choices, and the cells that are wanted of their product.

  AXES = {'size': {'small': ['--gin_file=models/t5_1_1_small.gin', ...], 'base': [...]},
          'method': {'frozen': ['eval', '--gin_file=prompts/none.gin'], 'prompt': [...]},
          'seed': {'0': ['--gin.RANDOM_SEED=0'], '1': ['--gin.RANDOM_SEED=1']}}
  BLOCKS = [{'size': 'all', 'method': ['prompt'], 'seed': 'all'},
            {'size': 'all', 'method': ['frozen'], 'seed': ['0']}]

A choice is a list of flags as a user types them after `prompt-tuning train`; one that starts with
the word `eval` is only evaluated, one with `autoprompt` searches for a trigger, one with `recover`
for the vectors of sentences. `${axis}` stands for the name of the cell's choice, `${root}` for
SWEEP_DIR, `${place}` for an entry of PLACES. A cell's name is its choices', joined by `-`: it stays
the same when the grid grows, and is the name of the run's folder.
"""

import dataclasses
import fnmatch
import itertools
import pathlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.disk import check_local
from prompt_tuning.errors import UserError, nearest

ALL = "all"
COMMANDS = ("train", "eval", "autoprompt", "recover")
_NAME = re.compile(r"[A-Za-z0-9_.]+")
_PLACE = re.compile(r"\$\{(\w+)\}")
# Columns of the CSV that no axis may be called by.
RESERVED = ("run", "status", "evaluated_on", "ensemble", "metric", "validation", "test", "majority",
            "backbone_parameters", "trained_parameters", "steps", "best_step", "seconds",
            "cpu_seconds", "device", "versions", "commit", "command", "root")


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run.

  Attributes:
    name: of its folder below SWEEP_DIR.
    choices: axis -> choice.
    command: of COMMANDS.
    flags: of that command, without MODEL_DIR or OUTPUT_DIR.
  """

  name: str
  choices: Mapping[str, str]
  command: str
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """Which runs there are.

  Attributes:
    sweep_dir: SWEEP_DIR: runs, records, CSV files and figures.
    axes: axis -> choice -> flags; cells are named and ordered by the axes' order.
    blocks: {axis: choices, or 'all'} each; the grid is the union of these products. An axis that a
      block leaves out adds nothing to its cells.
    flags: of every run.  train_flags, eval_flags: of those that train, of every evaluation.
    test_split: evaluated after training with the best step, by `eval` cells, and with the best
      trigger; None: nothing is. Of a mixture, each of its tasks is.
    also_on: other tasks that every run of a task is evaluated on (domain shift): names, or name ->
      flags of that evaluation (TASK_LABELS, where two data sets name their classes differently).
    metrics: task (the choice's name, or an entry of `also_on`) -> the metric of the CSV; without
      one it is accuracy where there is one, else the loss. `validation` is empty where training
      was judged by another one.
    stages: an axis whose choices follow upon each other (a stage may start from the one before it):
      a shard takes all stages of a cell. None: runs do not depend on each other.
    places: name -> text, in which `${axis}` and `${root}` may stand.
  """

  sweep_dir: str
  axes: Mapping[str, Mapping[str, Sequence[str]]]
  blocks: Sequence[Mapping[str, Any]]
  flags: Sequence[str] = ()
  train_flags: Sequence[str] = ()
  eval_flags: Sequence[str] = ()
  test_split: str | None = "test"
  also_on: Sequence[str] | Mapping[str, Sequence[str]] = ()
  metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
  stages: str | None = None
  places: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check_local(self.sweep_dir, "SWEEP_DIR")
    if not self.axes or not self.blocks:
      raise UserError("A grid needs axes and blocks", found=f"{len(self.axes)} axes and "
                      f"{len(self.blocks)} blocks", wanted="one of each or more",
                      fix="set AXES and BLOCKS, as the files in papers/ do")
    for axis, choices in self.axes.items():
      self._check_axis(axis, choices)
    for owner in ("flags", "train_flags", "eval_flags"):
      _check_flags(owner.upper(), getattr(self, owner))
    for block in self.blocks:
      for axis, chosen in block.items():
        self._check_block(axis, chosen)
    if self.also_on and self.test_split is None:
      raise UserError("Other tasks are evaluated on no split", found=f"ALSO_ON = {self.also_on}",
                      wanted="a TEST_SPLIT", fix="set TEST_SPLIT = 'test', or leave ALSO_ON out")
    if self.stages is not None:
      self._check_axis_name("STAGES", self.stages)
    if isinstance(self.also_on, Mapping):
      for task, flags in self.also_on.items():
        _check_flags(f"ALSO_ON: {task}", flags)

  def flags_on(self, task: str, choices: Mapping[str, str]) -> tuple[str, ...]:
    """Flags of an evaluation on a task of `also_on`, for a cell of these choices."""
    flags = self.also_on[task] if isinstance(self.also_on, Mapping) else ()
    return self.filled(flags, choices)

  def filled(self, flags: Sequence[str], choices: Mapping[str, str]) -> tuple[str, ...]:
    """Flags with the names that stand in them replaced, for a cell of these choices.

    Raises:
      UserError: a `${name}` is not known.
    """
    own = {**choices, "root": self.sweep_dir}
    places = {name: text for name, text in self.places.items() if name not in own}
    # A place may name choices in its turn.
    return tuple(_filled(_PLACE.sub(lambda found: places.get(found[1], found[0]), flag),
                         {**places, **own}) for flag in flags)

  def cells(self) -> list[Cell]:
    """Every cell once, in the order of the blocks.

    Raises:
      UserError: two different cells have one name, or a `${name}` is not known.
    """
    found: dict[str, Cell] = {}
    for block in self.blocks:
      axes = [axis for axis in self.axes if axis in block]
      lists = [list(self.axes[axis]) if block[axis] == ALL else block[axis] for axis in axes]
      for combination in itertools.product(*lists):
        cell = self._cell(dict(zip(axes, combination, strict=True)))
        other = found.setdefault(cell.name, cell)
        if other != cell:
          raise UserError(f"Two cells are called {cell.name}",
                          found=f"{dict(other.choices)} and {dict(cell.choices)}",
                          wanted="choices whose names tell the cells apart",
                          fix="rename a choice")
    return list(found.values())

  def shard(self, cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """Part `index` of `count`, counted from 0; all stages of a cell are in one part."""
    if not 0 <= index < count:
      raise UserError("There is no such shard", found=f"{index}/{count}",
                      wanted="i/n with i from 0 to n-1", fix=f"--shard 0/{max(count, 1)}")
    groups: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
      key = tuple((axis, choice) for axis, choice in cell.choices.items() if axis != self.stages)
      groups.setdefault(key, []).append(cell)
    return list(itertools.chain(*list(groups.values())[index::count]))

  def _cell(self, choices: Mapping[str, str]) -> Cell:
    command, flags = COMMANDS[0], list(self.flags)
    for axis, choice in choices.items():
      own = list(self.axes[axis][choice])
      if own and own[0] in COMMANDS:
        command = own.pop(0)
      flags += own
    flags += {"train": self.train_flags, "eval": self.eval_flags}.get(command, ())
    return Cell("-".join(choices.values()), choices, command, self.filled(flags, choices))

  def _check_axis(self, axis: str, choices: Mapping[str, Sequence[str]]) -> None:
    if not _NAME.fullmatch(axis) or axis in RESERVED:
      raise UserError("An axis cannot be called that", found=repr(axis),
                      wanted="letters, digits and _ . and none of " + ", ".join(RESERVED),
                      fix="rename it")
    if not isinstance(choices, Mapping) or not choices:
      raise UserError(f"Axis {axis!r} has no choices", found=repr(choices),
                      wanted="{'name': [flags], ...}", fix="correct AXES")
    for choice, flags in choices.items():
      if not isinstance(choice, str) or not _NAME.fullmatch(choice):
        raise UserError(f"A choice of axis {axis!r} cannot be called that", found=repr(choice),
                        wanted="letters, digits and _ .", fix="rename it")
      _check_flags(f"{axis}: {choice}", flags, COMMANDS)

  def _check_block(self, axis: str, chosen: Any) -> None:
    self._check_axis_name("BLOCKS", axis)
    if chosen == ALL:
      return
    if isinstance(chosen, str):
      raise UserError(f"A block's choices of {axis!r} are one text", found=repr(chosen),
                      wanted="a list of choices, or 'all'", fix=f"write [{chosen!r}]")
    for choice in chosen:
      if choice not in self.axes[axis]:
        raise UserError(f"Axis {axis!r} has no choice {choice!r}", found=repr(choice),
                        wanted="one of " + ", ".join(self.axes[axis]),
                        fix=nearest(choice, self.axes[axis]))

  def _check_axis_name(self, where: str, axis: str) -> None:
    if axis not in self.axes:
      raise UserError(f"{where} names an axis that is not there", found=repr(axis),
                      wanted="one of " + ", ".join(self.axes), fix=nearest(axis, self.axes))


def chosen(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
  """The cells whose name one of the patterns (`*`, `?`) matches, or is a part of.

  Raises:
    UserError: a pattern matches none.
  """
  kept: set[str] = set()
  for pattern in patterns:
    found = {cell.name for cell in cells if fnmatch.fnmatchcase(cell.name, f"*{pattern}*")}
    if not found:
      raise UserError("--only matches no run", found=pattern, wanted="a part of a run's name",
                      fix=nearest(pattern, [cell.name for cell in cells]))
    kept |= found
  return [cell for cell in cells if not patterns or cell.name in kept]


def folder_of(grid: Grid, cell: Cell) -> pathlib.Path:
  return pathlib.Path(grid.sweep_dir) / cell.name


def command_line(grid: Grid, cell: Cell) -> list[str]:
  """The arguments of `prompt-tuning` that do what the sweep does for this cell."""
  split = {"train": [], "eval": [f"--gin.SPLIT={grid.test_split}"],
           "autoprompt": [f"--gin.TEST_SPLIT={grid.test_split}"], "recover": []}[cell.command]
  place = "OUTPUT_DIR" if cell.command == "eval" else "MODEL_DIR"
  # Double quotes, which a shell's single ones take in.
  return [cell.command, *cell.flags, *split, f'--gin.{place}="{folder_of(grid, cell)}"']


def _filled(flag: str, known: Mapping[str, str]) -> str:
  try:
    return string.Template(flag).substitute(known)
  except (KeyError, ValueError) as error:
    raise UserError("A flag of the grid names something unknown", found=f"{flag} ({error})",
                    wanted="${name} of " + ", ".join(known), fix="correct it, or add it to PLACES"
                    ) from None


def _check_flags(owner: str, flags: Any, words: Sequence[str] = ()) -> None:
  listed = [] if isinstance(flags, str) else list(flags)
  rest = listed[1:] if listed and listed[0] in words else listed
  bad = [flag for flag in rest if not _is_flag(flag)]
  if isinstance(flags, str) or bad:
    raise UserError(f"{owner} is not a list of flags", found=repr(flags if not bad else bad[0]),
                    wanted="a list of '--gin_file=...' and '--gin.NAME=...'",
                    fix="write them as on the command line")


def _is_flag(flag: Any) -> bool:
  return isinstance(flag, str) and flag.startswith(("--gin_file=", "--gin."))


def files_and_bindings(flags: Sequence[str]) -> Iterator[list[str]]:
  """Files, then `--gin.` flags."""
  yield [flag.partition("=")[2] for flag in flags if flag.startswith("--gin_file=")]
  yield [flag for flag in flags if flag.startswith("--gin.")]
