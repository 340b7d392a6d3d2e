"""Files that a kill or a full disk leaves as they were, or new and whole."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from prompt_tuning.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file in one step."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)


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
