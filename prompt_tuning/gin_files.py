"""Where gin files are found, which one outranks which, and how their settings are merged.

Knows nothing of gin itself: `config.py` parses the files into `Source`s and builds the objects.
The rank of a shipped file is its top folder; any other file is a user file. `commands/` holds what
a command loads itself; "the run" is the config.gin that a command takes from a MODEL_DIR. Merging
does not depend on the order in which the files are named.
"""

import dataclasses
import importlib.resources
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError, nearest

# What T5X's users look for -> what it is here.
T5X_NAMES = {
  **dict.fromkeys(("PjitPartitioner", "num_partitions", "NUM_PARTITIONS",
                   "ACTIVATION_PARTITIONING_DIMS", "PARAMETER_PARTITIONING_DIMS"),
                  "--gin.LAYOUT=... says how a model is split (docs/scale.md)"),
  "EVAL_STEPS": "--gin.evaluate.EvalSettings.max_examples=N limits an evaluation, in rows",
  "ACTIVATION_DTYPE": "the macro is DTYPE",
  "LOSS_NORMALIZING_FACTOR": "leave it out: the loss is a mean over the target tokens",
  "EVAL_OUTPUT_DIR": "the macro is OUTPUT_DIR",
  "INFER_OUTPUT_DIR": "the macro is OUTPUT_FILE",
  "CHECKPOINT_PATH": "a backbone is INITIAL_CHECKPOINT_PATH, a run MODEL_DIR, a prompt PROMPT_FILE",
}
RANKS = ("commands", "the run", "models", "prompts", "inits", "controls", "runs", "papers",
         "user files", "overrides")
RUN_RANK, USER_RANK, OVERRIDE_RANK = 1, len(RANKS) - 2, len(RANKS) - 1


@dataclasses.dataclass(frozen=True)
class Macro:
  """`%name` in a value; its repr is gin text."""

  name: str

  def __repr__(self) -> str:
    return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@scope/selector()` in a value (without `()` where not `evaluate`); its repr is gin text."""

  scope: str
  selector: str
  evaluate: bool

  def __repr__(self) -> str:
    return f"@{join(self.scope, self.selector)}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class Setting:
  """One `scope/selector.parameter = value`; a macro has no parameter.

  Attributes:
    source: where it stands.  line: in that source; 0 for an override.
  """

  scope: str
  selector: str
  parameter: str
  value: Any
  source: "Source"
  line: int

  @property
  def key(self) -> str:
    """The left-hand side as gin text: two settings of one key set the same thing."""
    name = f"{self.selector}.{self.parameter}" if self.parameter else self.selector
    return join(self.scope, name)

  @property
  def where(self) -> str:
    return f"{self.source.label} line {self.line}" if self.line else self.source.label

  def __str__(self) -> str:
    return f"{self.key} = {self.value!r} ({self.where})"


@dataclasses.dataclass(frozen=True)
class Import:
  """One import: `text` runs `module`, and binds `symbol` to the module `target`."""

  text: str
  symbol: str
  module: str
  target: str
  line: int


@dataclasses.dataclass(eq=False)
class Source:
  """A parsed gin file, or the overrides of the command line.

  Attributes:
    label: its name in messages.  rank: index in `RANKS`.
    imports, settings: in the order of the file.
    includes: (name, line) of each `include`.
    included: every source that this one includes, directly or not.
  """

  label: str
  rank: int
  imports: list[Import] = dataclasses.field(default_factory=list)
  settings: list[Setting] = dataclasses.field(default_factory=list)
  includes: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  included: set["Source"] = dataclasses.field(default_factory=set)


def join(scope: str, name: str) -> str:
  return f"{scope}/{name}" if scope else name


def references(value: Any) -> Iterator[Macro | Reference]:
  """Every macro and reference in a value, containers included."""
  if isinstance(value, Macro | Reference):
    yield value
  elif isinstance(value, Mapping):
    for pair in value.items():
      yield from references(pair)
  elif isinstance(value, tuple | list):
    for item in value:
      yield from references(item)


def shipped_folder() -> Path:
  """The installed package `prompt_tuning.gin_configs`."""
  return Path(str(importlib.resources.files("prompt_tuning.gin_configs")))


def shipped_paths() -> list[Path]:
  return sorted(shipped_folder().rglob("*.gin"))


def shipped_names() -> list[str]:
  """The shipped files as `--gin_file` takes them, e.g. `prompts/soft.gin`."""
  return [path.relative_to(shipped_folder()).as_posix() for path in shipped_paths()]


def rank_and_label(path: Path) -> tuple[int, str]:
  """The rank of a file, and its name in messages."""
  root = shipped_folder().resolve()
  if path.resolve().is_relative_to(root):
    name = path.resolve().relative_to(root).as_posix()
    folder = name.split("/")[0]
    return (RANKS.index(folder) if folder in RANKS[:USER_RANK] else USER_RANK), name
  return USER_RANK, str(path)


def find(name: str, folders: Sequence[str | Path] = ()) -> Path:
  """The file that `--gin_file=name` means: under the working folder, `folders`, or shipped.

  Raises:
    UserError: there is none, or the name means two different files.
  """
  is_explicit = Path(name).is_absolute() or name.startswith(("./", "../"))
  places = [Path()] if is_explicit else [Path(), *map(Path, folders), shipped_folder()]
  found = {(place / name).resolve(): place / name for place in places if (place / name).is_file()}
  if not found:
    raise UserError(f"There is no gin file {name!r}",
                    found="nothing of that name in " + ", ".join(str(p.resolve()) for p in places),
                    wanted="a shipped file, or a path on disk", fix=nearest(name, shipped_names()))
  if len(found) > 1:
    raise UserError(f"The gin file {name!r} means more than one file",
                    found=", ".join(map(str, found)), wanted="one file",
                    fix="give a path that starts with ./ or /, or rename yours")
  return next(iter(found.values()))


def merge(sources: Sequence[Source]) -> dict[str, Setting]:
  """The setting that wins for each key; the settings' selectors are already canonical.

  Raises:
    UserError: two settings of one rank differ, and neither file includes the other.
  """
  by_key: dict[str, list[Setting]] = {}
  for source in sources:
    for setting in source.settings:
      by_key.setdefault(setting.key, []).append(setting)
  return {key: _winner(key, settings) for key, settings in sorted(by_key.items())}


def _winner(key: str, settings: list[Setting]) -> Setting:
  winner = settings[0]
  for rank in sorted({setting.source.rank for setting in settings}):
    rivals = [s for s in settings if s.source.rank == rank]
    if rank == OVERRIDE_RANK:
      return rivals[-1]
    rivals = [s for s in rivals if not any(s.source in other.source.included for other in rivals)]
    winner = rivals[0]
    for other in rivals[1:]:
      if repr(other.value) != repr(winner.value):
        raise UserError(f"{key} is set twice at the same rank ({RANKS[rank]})",
                        found=f"{winner} and {other}", wanted="one value",
                        fix="name only one of the two files, or make them agree")
  return winner


def check_used(merged: Mapping[str, Setting], shipped: Callable[[], Sequence[Source]]) -> None:
  """Refuses what a user set and nothing can read: a misspelt macro or scope, a missing file.

  A shipped file may set more than one combination needs.

  Args:
    merged: what `merge` returned.
    shipped: returns every shipped file, to name the one that would read the macro.
  """
  used = [ref for setting in merged.values() for ref in references(setting.value)]
  macros = {ref.name for ref in used if isinstance(ref, Macro)}
  # gin evaluates a macro in a scope of the macro's own name.
  scopes = {prefix for ref in used for prefix in _prefixes(
      ref.name if isinstance(ref, Macro) else ref.scope)}
  for setting in merged.values():
    if setting.source.rank < USER_RANK:
      continue
    if not setting.parameter and setting.key not in macros:
      raise UserError(f"Nothing reads the macro {setting.key}", found=setting,
                      wanted="a macro that one of the gin files reads as %NAME",
                      fix=_how_to_use(setting.key, macros, shipped()))
    if setting.parameter and setting.scope and setting.scope not in scopes:
      raise UserError(f"No reference uses the scope {setting.scope!r}", found=setting,
                      wanted="a scope of a reference such as @scope/module.Class()",
                      fix=nearest(setting.scope, scopes))


def _prefixes(scope: str) -> list[str]:
  parts = scope.split("/") if scope else []
  return ["/".join(parts[:n + 1]) for n in range(len(parts))]


def _how_to_use(macro: str, macros: Collection[str], shipped: Sequence[Source]) -> str:
  if macro in T5X_NAMES:
    return T5X_NAMES[macro]
  readers = [source.label for source in shipped
             if any(ref == Macro(macro) for s in source.settings for ref in references(s.value))]
  files = [label for label in readers if not label.startswith(("commands/", "t5x/"))]
  if files:
    return f"{_one_of(files)}, which reads {macro}"
  if readers:
    commands = ", ".join(label.removeprefix("commands/").removesuffix(".gin") for label in readers)
    return f"leave {macro} out: this command does not use it (used by: {commands})"
  return nearest(macro, macros)


def how_to_set(name: str, shipped: Sequence[Source], known: Sequence[str]) -> str:
  """What to do about a macro or `module.Class.field` without a value."""
  tail = name.split(".")[-2:]
  # The others are loaded by the commands themselves.
  files = [source for source in shipped if not source.label.startswith(("commands/", "t5x/"))]
  setters = [source.label for source in files
             if any([*s.selector.split("."), s.parameter or ""][-2:] == tail if len(tail) == 2
                    else s.key == name and s.value != Macro("gin.REQUIRED")
                    for s in source.settings)]
  flag = f"give --gin.{name}=..."
  if setters:
    return f"{flag}, or {_one_of(setters)}"
  hint = nearest(name, known)
  return f"{flag} ({hint})" if hint.startswith("did you mean") else flag


def _one_of(names: Sequence[str]) -> str:
  flags = ", ".join(f"--gin_file={name}" for name in names[:6])
  return f"add {'one of ' if len(names) > 1 else ''}{flags}{', ...' if len(names) > 6 else ''}"
