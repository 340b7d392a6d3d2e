"""What `eval`, `infer` and `merge` take from the run that they are given: its own config.gin.

It is read where no gin file says the model (BACKBONE). Every file on the command line outranks it.
Of several `--prompt NAME=SOURCE`s the first run's settings hold, but for what is of each run:

  LABELS                of `infer`: {name: labels}, those of each run that has any
  TASK_FEATURE_LENGTHS  the longest of all: padding changes no answer, and no run's input is cut
  LEADING_SENTINEL      one for all; runs that differ do not share a command
"""

import ast
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning import config
from prompt_tuning.checkpoints import run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.gin_files import Source

FILE = "config.gin"
COMMANDS = ("eval", "eval_prompts", "infer", "merge")


@dataclasses.dataclass(frozen=True)
class Run:
  """Attributes:
    name, source: of `--prompt`.
    file: its config.gin.
    macros: in it.
  """

  name: str
  source: str
  file: pathlib.Path
  macros: Mapping[str, Any]

  @classmethod
  def read(cls, name: str, source: str, file: pathlib.Path) -> "Run":
    settings = config.read_run(file).settings
    return cls(name, source, file.absolute(),
               {setting.key: setting.value for setting in settings if not setting.parameter})


def find(command: str, files: Sequence[Source], bindings: Sequence[str],
         prompts: Sequence[tuple[str, str]]) -> Source | None:
  """The settings of the run in MODEL_DIR, or of the first run that a `--prompt` names.

  Args:
    command: of `COMMANDS`.
    files: on the command line, lowest rank first.
    bindings: gin text, `NAME = value` each.
    prompts: (name, source) pairs.

  Returns:
    None: there is no run, or the files say the model.

  Raises:
    UserError: MODEL_DIR holds no run; the runs of several prompts do not go together.
  """
  if _sets("BACKBONE", files):
    return None
  runs = [Run.read(name, source, folder / FILE) for name, source in prompts
          if (folder := _folder_of(source)) is not None]
  if runs:
    instead = _of_all(runs)
    if command == "infer" and not _sets("LABELS", files, bindings):
      instead.append(f"LABELS = {_labels(runs, len(dict(prompts)))!r}")
    return config.read_run(runs[0].file, instead)
  folder = _model_dir(files, bindings)
  if folder is None:
    return None
  if not (folder / FILE).is_file():
    found = f"a folder without {FILE}" if folder.is_dir() else "no such folder"
    raise UserError("MODEL_DIR holds no run", found=f"{folder} ({found})",
                    wanted="the MODEL_DIR of a `prompt-tuning train` command",
                    fix="correct the path, or give the gin files of the model")
  return config.read_run((folder / FILE).absolute())


def meant_elsewhere(run: Source, message: str) -> str:
  """What to say of a message about paths that exist only from where the run was started; or ""."""
  folder = pathlib.Path(run.label).parent
  start = run_prompts.summary_of(folder).get("started_in")
  texts = set(re.findall(r"'([^'\n]+)'", pathlib.Path(run.label).read_text(encoding="utf-8")))
  if start and any(text in message and not os.path.exists(text)
                   and os.path.exists(os.path.join(start, text)) for text in texts):
    return f"the run in {folder} was started in {start}: its relative paths begin there"
  return ""


def _sets(macro: str, files: Sequence[Source], bindings: Sequence[str] = ()) -> bool:
  return any(setting.key == macro for source in files for setting in source.settings) or any(
    binding.partition(" = ")[0] == macro for binding in bindings)


def _folder_of(source: str) -> pathlib.Path | None:
  """The run that the source of a prompt is, or lies in."""
  path = pathlib.Path(source)
  return next((folder for folder in (path, *path.parents[:3]) if (folder / FILE).is_file()), None)


def _of_all(runs: Sequence[Run]) -> list[str]:
  """The settings of several runs, as gin text."""
  lengths: dict[str, int] = {}
  for run in runs:
    sentinel = run.macros.get("LEADING_SENTINEL", False)
    if sentinel != runs[0].macros.get("LEADING_SENTINEL", False):
      raise UserError("These runs do not go together",
                      found=f"{run.source}: LEADING_SENTINEL = {sentinel}",
                      wanted=f"that of {runs[0].source}", fix="serve them one by one")
    for feature, length in run.macros.get("TASK_FEATURE_LENGTHS", {}).items():
      lengths[feature] = max(length, lengths.get(feature, 0))
  # A run's own settings name its MODEL_DIR.
  return ["MODEL_DIR = None", *([f"TASK_FEATURE_LENGTHS = {lengths!r}"] if lengths else [])]


def _labels(runs: Sequence[Run], num_tasks: int) -> Any:
  """What LABELS is of that many tasks."""
  labels: dict[str, Any] = {}
  for run in runs:
    own = run.macros.get("LABELS")
    if labels.setdefault(run.name, own) != own:
      raise UserError(f"The prompts of {run.name!r} choose among different labels",
                      found=f"{run.source}: LABELS = {own!r}",
                      wanted=f"{labels[run.name]!r}, as the others of that name",
                      fix="give them names of their own, or all of them one --gin.LABELS")
  if num_tasks == 1:
    # They are its files' own too (runs/your_data.gin), which take a list.
    return labels[runs[0].name]
  return {name: own for name, own in labels.items() if own is not None} or None


def _model_dir(files: Sequence[Source], bindings: Sequence[str]) -> pathlib.Path | None:
  """MODEL_DIR, where it is a text."""
  values = [setting.value for source in files for setting in source.settings
            if setting.key == "MODEL_DIR"]
  for binding in bindings:
    name, _, text = binding.partition(" = ")
    if name == "MODEL_DIR":
      try:
        values.append(ast.literal_eval(text))
      except (ValueError, SyntaxError):
        values.append(None)
  return pathlib.Path(values[-1]) if values and isinstance(values[-1], str) else None
