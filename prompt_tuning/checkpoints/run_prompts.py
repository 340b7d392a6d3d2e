"""Which prompt the MODEL_DIR of a run holds, and which run a prompt's file is of.

A run is a folder with `settings.json`, which it writes first. Its best prompt is `prompt.npy`, or
`prompt.safetensors` of a method that is more than a table; those of many prompts at once are
`members/<i>/prompt.npy` (`run_dir.py`).
"""

import json
import pathlib
from typing import Any

from prompt_tuning.checkpoints import method_files
from prompt_tuning.errors import UserError

SETTINGS, SUMMARY, MEMBERS = "settings.json", "summary.json", "members"
TABLE = "prompt.npy"


def is_run(folder: str | pathlib.Path) -> bool:
  """Whether the folder is a MODEL_DIR."""
  return (pathlib.Path(folder) / SETTINGS).is_file()


def prompt_of(folder: str | pathlib.Path) -> pathlib.Path | None:
  """The prompt's file in a MODEL_DIR, or in the folder of a member; None: there is none."""
  files = [pathlib.Path(folder) / name for name in (TABLE, method_files.NAME)]
  return next((file for file in files if file.is_file()), None)


def table_of(folder: str | pathlib.Path, setting: str) -> pathlib.Path:
  """The table of a run's best prompt.

  Args:
    setting: what the run was given as, for the message.

  Raises:
    UserError: the run has none.
  """
  found = prompt_of(folder)
  if found is None or found.name != TABLE:
    task = summary_of(folder).get("task")
    raise UserError(f"The run in {setting} has no {TABLE}",
                    found=f"{folder}" + (f" (task {task})" if task else "")
                    + (f", with {found.name}" if found else ", without a prompt"),
                    wanted="a run of soft prompts, or of a method that is served as one",
                    fix="let that run reach its first evaluation" if found is None else
                    "give another run: this one's method is more than a table of vectors")
  return found


def members_of(folder: str | pathlib.Path) -> list[pathlib.Path]:
  """The prompts of a run with N_PROMPTS, in order; [] of any other."""
  folders = [path for path in (pathlib.Path(folder) / MEMBERS).glob("*") if path.name.isdigit()]
  found = [prompt_of(path) for path in sorted(folders, key=lambda path: int(path.name))]
  return [file for file in found if file is not None]


def run_of(path: str | pathlib.Path) -> pathlib.Path | None:
  """The MODEL_DIR that a path is, or in which it lies: a prompt's file, a member's, `members`."""
  file = pathlib.Path(path)
  if is_run(file):
    return file
  if file.name == MEMBERS:
    return file.parent if is_run(file.parent) else None
  if file.stem != pathlib.Path(TABLE).stem:
    return None
  folder = file.parent
  if folder.parent.name == MEMBERS:
    folder = folder.parent.parent
  return folder if is_run(folder) else None


def summary_of(folder: str | pathlib.Path) -> dict[str, Any]:
  """What summary.json of a run says; {} before it is written."""
  summary = pathlib.Path(folder) / SUMMARY
  found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8")) if (
    summary.is_file()) else {}
  return found
