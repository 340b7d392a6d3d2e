"""Files that a kill or a full disk leaves as they were, or new and whole."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from prompt_tuning.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file in one step."""
  write_bytes(path, text.encode("utf-8"))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file in one step."""
  partial = path.with_name(path.name + ".partial")
  partial.write_bytes(content)
  os.replace(partial, path)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to fill, which takes the place of `path` when the block ends without an error.

  An error leaves nothing behind. What a kill leaves is removed, or put back, the next time.
  """
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
  """Raises a UserError instead of the error of a full disk.

  Args:
    what: is being saved, e.g. "a checkpoint".
    path: where.
    fix: what to do once there is space.
  """
  try:
    yield
  except Exception as error:
    # Libraries wrap the system's error in their own types, with its text.
    if not (isinstance(error, OSError) and error.errno in _FULL
            or "No space left" in str(error)):
      raise
    raise UserError(f"No space is left while saving {what}", found=f"{path}: {first_line(error)}",
                    wanted="room for it; what was saved before is kept",
                    fix=f"free some space and {fix}") from error


def first_line(error: BaseException) -> str:
  """The start of a library's message, which may be pages long."""
  return (str(error) or type(error).__name__).splitlines()[0][:300]
