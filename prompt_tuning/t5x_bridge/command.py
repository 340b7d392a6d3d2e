"""`prompt-tuning t5x train|eval|infer ...`: T5X's own command, with our gin files and checks.

It becomes `python -m t5x.train` (or eval, infer): from there on everything is T5X's. Before that:

  search paths   of our gin files are set; T5X adds its own
  order          T5X's gin lets the last file win, so the files are put in the order of their ranks
  macros         one that no file reads is an error, which gin accepts in silence
  values         `--gin.MODEL_DIR=/a/b` needs no second pair of quotes; relative paths are made
                 absolute, since Orbax takes no others

Flags that are not ours (`--tfds_data_dir=...`, `--multiprocess_gpu`) go through to T5X.
"""

import argparse
import ast
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence

from prompt_tuning import config, gin_files
from prompt_tuning.errors import UserError, nearest

JOBS = ("train", "eval", "infer")
_RANKS = ("models", "prompts", "inits", "t5x/models", "t5x/runs", "t5x/optimizers")
_FOR_T5X = "t5x/runs/"
# Macros that name what is written, and what is read.
_OUTPUTS = ("MODEL_DIR", "EVAL_OUTPUT_DIR", "INFER_OUTPUT_DIR")
_INPUTS = ("INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH")


def run(job: str, flags: Sequence[str]) -> int:
  """Becomes T5X; does not come back.

  Raises:
    UserError: T5X is not there, or the command line has a mistake.
  """
  command = arguments(job, flags, t5x_folder())
  sys.stdout.flush()
  os.execv(command[0], command)
  return 0


def t5x_folder() -> pathlib.Path:
  """The folder of the package `t5x`, which is not imported."""
  found = importlib.util.find_spec("t5x")
  if found is None or not found.submodule_search_locations:
    raise UserError("T5X is not installed", found="no module t5x on Python's path",
                    wanted="T5X's sources and what they import",
                    fix="docs/t5x.md says how to install it")
  return pathlib.Path(next(iter(found.submodule_search_locations)))


def arguments(job: str, flags: Sequence[str], t5x: pathlib.Path) -> list[str]:
  """The command line that is executed.

  Args:
    flags: what the user gave after the job.
    t5x: the folder of the package `t5x`.

  Raises:
    UserError: no such job or file, a macro that nothing reads, or a gin value that is none.
  """
  if job not in JOBS:
    raise UserError("T5X has no such command", found=job, wanted="one of " + ", ".join(JOBS),
                    fix=nearest(job, JOBS))
  bindings, rest = config.split_gin_flags([flag for flag in flags if flag != "--debug"])
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--gin_file", action="append", default=[])
  parser.add_argument("--gin_search_paths", default="")
  options, others = parser.parse_known_args(rest)
  files = in_order(options.gin_file)
  _check_files(job, files)
  own = [part for part in options.gin_search_paths.split(",") if part]
  # T5X's includes say t5x/configs/..., ours t5x/models/...: one folder each.
  search = [*own, str(gin_files.shipped_folder()), str(t5x.parent)]
  _check_macros(files, bindings, search, t5x)
  return [sys.executable, "-m", f"t5x.{job}", f"--gin_search_paths={','.join(search)}",
          *(f"--gin_file={name}" for name in files),
          *(f"--gin.{_absolute(binding).replace(' = ', '=', 1)}" for binding in bindings), *others]


def in_order(files: Sequence[str]) -> list[str]:
  """Files by rank, the user's last; those of one rank stay as they were given."""
  def rank(name: str) -> int:
    folder = name.rpartition("/")[0]
    shipped = name in gin_files.shipped_names()
    return _RANKS.index(folder) if shipped and folder in _RANKS else len(_RANKS)
  return sorted(files, key=rank)


def _check_files(job: str, files: Sequence[str]) -> None:
  """Refuses run files of the native commands, which mean nothing to T5X."""
  wanted = f"{_FOR_T5X}{'prompt_tune' if job == 'train' else job}.gin"
  for name in files:
    if name.startswith(("runs/", "commands/")) and name in gin_files.shipped_names():
      raise UserError("This gin file is for the native commands", found=name,
                      wanted=wanted, fix=f"--gin_file={wanted}")
  if not files:
    raise UserError("No gin file is named", found="no --gin_file", wanted=f"a model and {wanted}",
                    fix=f"--gin_file=models/tiny.gin --gin_file=prompts/soft.gin "
                    f"--gin_file={wanted}")


def _check_macros(files: Sequence[str], bindings: Sequence[str], search: Sequence[str],
                  t5x: pathlib.Path) -> None:
  """Refuses what the user sets, on the command line or in a file of theirs, and nothing reads."""
  known = config.macros_of(files, search)
  given = [(binding.split(" = ")[0], binding) for binding in bindings]
  given = [(name, binding) for name, binding in given if "." not in name and "/" not in name]
  # Files of T5X and of others, which theirs include, set more than they read.
  named = {gin_files.find(name, search).resolve() for name in files}
  own = [source for source in config.read_files(files, search)
         if source.rank == gin_files.USER_RANK and (path := pathlib.Path(source.label)) in named
         and not path.is_relative_to(t5x.resolve())]
  given += [(setting.key, str(setting)) for source in own for setting in source.settings
            if not setting.parameter]
  for name, found in given:
    if name not in known:
      raise UserError(f"Nothing reads the macro {name}", found=found,
                      wanted="a macro that one of the gin files reads as %NAME",
                      fix=nearest(name, sorted(known)))


def _absolute(binding: str) -> str:
  """The binding, with a local path in full."""
  name, _, text = binding.partition(" = ")
  try:
    path = ast.literal_eval(text) if name in _OUTPUTS + _INPUTS else None
  except (ValueError, SyntaxError):
    path = None
  if not isinstance(path, str) or "://" in path or not (
      name in _OUTPUTS or pathlib.Path(path).exists()):
    return binding
  return f"{name} = {str(pathlib.Path(path).absolute())!r}"
