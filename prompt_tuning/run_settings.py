"""What `eval`, `infer` and `merge` take from the run that they are given: its own config.gin.

It is read where no gin file says the model (BACKBONE). Every file on the command line outranks it.
"""

import ast
import pathlib
from collections.abc import Sequence

from prompt_tuning import config
from prompt_tuning.errors import UserError
from prompt_tuning.gin_files import Source

FILE = "config.gin"
COMMANDS = ("eval", "eval_prompts", "infer", "merge")


def find(files: Sequence[Source], bindings: Sequence[str],
         prompts: Sequence[tuple[str, str]]) -> Source | None:
  """The settings of the run in MODEL_DIR, or of the first run that a `--prompt` names.

  Args:
    files: on the command line, lowest rank first.
    bindings: gin text, `NAME = value` each.
    prompts: (name, source) pairs.

  Returns:
    None: there is no run, or the files say the model.

  Raises:
    UserError: MODEL_DIR holds no run.
  """
  if any(setting.key == "BACKBONE" for source in files for setting in source.settings):
    return None
  for _, source in prompts:
    folder = _folder_of(source)
    if folder is not None:
      # A run's own settings name its MODEL_DIR.
      return config.read_run((folder / FILE).absolute(), ["MODEL_DIR = None"])
  folder = _model_dir(files, bindings)
  if folder is None or prompts:
    return None
  if not (folder / FILE).is_file():
    found = f"a folder without {FILE}" if folder.is_dir() else "no such folder"
    raise UserError("MODEL_DIR holds no run", found=f"{folder} ({found})",
                    wanted="the MODEL_DIR of a `prompt-tuning train` command",
                    fix="correct the path, or give the gin files of the model")
  return config.read_run((folder / FILE).absolute())


def _folder_of(source: str) -> pathlib.Path | None:
  """The run that the source of a prompt is, or lies in."""
  path = pathlib.Path(source)
  return next((folder for folder in (path, *path.parents[:3]) if (folder / FILE).is_file()), None)


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
