"""Files that a kill or a full disk leaves as they were, or new and whole."""

import contextlib
import csv
import errno
import io
import os
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# As a path has it too, which takes one of the two slashes away.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_local(path: str | pathlib.Path, setting: str) -> None:
  """Checks that something can be written under a path: it is no bucket's address.

  Args:
    setting: that named it.

  Raises:
    UserError: it is one. A folder called `gs:` would be made beside the program.
  """
  if _ADDRESS.match(str(path)):
    raise UserError(f"{setting} is an address, not a folder of this machine", found=str(path),
                    wanted="a path; a bucket's is where it is mounted",
                    fix="mount the bucket (gcsfuse, as tpu_scripts/setup.sh --bucket does) and "
                    "give a path in it, or write to a disk and copy")


def check_writable(folder: str | pathlib.Path, setting: str) -> None:
  """Makes a folder, and tries to write a file in it, before what is written has cost anything.

  Args:
    setting: that named it.

  Raises:
    UserError: it cannot be made or written to.
  """
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise UserError(f"{setting} cannot be written to", found=f"{folder}: {first_line(error)}",
                    wanted="a folder with room in it, that this user may write to",
                    fix=f"give another --gin.{setting}, or correct the folder") from error


def cache_home() -> pathlib.Path:
  """Where what can be made again is kept: `$PROMPT_TUNING_CACHE`, else ~/.cache/prompt_tuning."""
  return pathlib.Path(os.environ.get("PROMPT_TUNING_CACHE")
                      or pathlib.Path.home() / ".cache/prompt_tuning")


def write_table(path: pathlib.Path, columns: Sequence[str],
                rows: Iterable[Mapping[str, Any]]) -> None:
  """Replaces a CSV file in one step; None and what a row lacks are empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file in one step."""
  write_bytes(path, text.encode("utf-8"))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file in one step; of several writers at once one is the last."""
  check_local(path, "The file")
  with replacing(path) as partial:
    partial.write_bytes(content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new name beside a file, which it replaces when the block ends without an error."""
  partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
  try:
    yield partial
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to fill, which takes the place of `path` when the block ends without an error.

  An error leaves nothing behind. What a kill leaves is removed, or put back, the next time.
  """
  check_local(path, "The destination")
  partial, old = (path.with_name(path.name + suffix) for suffix in (".partial", ".old"))
  if old.exists() and not path.exists():
    os.rename(old, path)
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    os.rename(path, old)
  os.rename(partial, path)
  shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def report_full(what: str, path: pathlib.Path, fix: str) -> Iterator[None]:
  """Raises a UserError instead of the error of a full disk, or of a place that takes no files.

  Args:
    what: is being saved, e.g. "a checkpoint".
    path: where.
    fix: what to do once there is space.
  """
  try:
    yield
  except Exception as error:
    # Libraries wrap the system's error in their own types, with its text.
    full = (isinstance(error, OSError) and error.errno in _FULL
            or "No space left" in str(error))
    if not full and not isinstance(error, OSError):
      raise
    if not full:
      raise UserError(f"The disk does not take {what}",
                      found=f"{path}: {first_line(error)}",
                      wanted="a place that this user may write to; what was saved before is kept",
                      fix=f"give another place, or correct this one and {fix}") from error
    raise UserError(f"No space is left while saving {what}", found=f"{path}: {first_line(error)}",
                    wanted="room for it; what was saved before is kept",
                    fix=f"free some space and {fix}") from error


def first_line(error: BaseException) -> str:
  """The start of a library's message, which may be pages long."""
  return (str(error) or type(error).__name__).splitlines()[0][:300]
