"""Files as they are published: plain, gzipped (`.gz`), or a member of a zip archive.

A member's path is the archive's with the name inside it: `e2e-dataset.zip/e2e-dataset/devset.csv`.
"""

import contextlib
import gzip
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from prompt_tuning.errors import UserError


def members(archive: pathlib.Path) -> list[str]:
  """Names of the files in a zip archive.

  Raises:
    UserError: it is none.
  """
  try:
    with zipfile.ZipFile(archive) as opened:
      return [name for name in opened.namelist() if not name.endswith("/")]
  except (zipfile.BadZipFile, OSError) as error:
    raise UserError(f"{archive} cannot be read", found=str(error), wanted="a whole zip archive",
                    fix="fetch the archive again") from error


def archive_of(path: pathlib.Path) -> pathlib.Path | None:
  """The zip archive that a path leads into, or None."""
  return next((parent for parent in path.parents
               if parent.suffix == ".zip" and parent.is_file()), None)


@contextlib.contextmanager
def opened(path: pathlib.Path, where: Callable[[], str] = str) -> Iterator[IO[bytes]]:
  """The bytes of a file, unpacked.

  Args:
    where: how far reading has come, for the message.

  Raises:
    UserError: the file is missing, or its archive is damaged.
  """
  archive = archive_of(path)
  try:
    with contextlib.ExitStack() as stack:
      if archive is not None:
        inside = stack.enter_context(zipfile.ZipFile(archive))
        file: IO[bytes] = stack.enter_context(inside.open(path.relative_to(archive).as_posix()))
        if path.suffix == ".gz":
          file = stack.enter_context(gzip.open(file))
      else:
        file = stack.enter_context(gzip.open(path) if path.suffix == ".gz" else open(path, "rb"))
      yield file
  except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: damaged {'zip' if archive else 'gzip'} data{where()}",
                    found=str(error), wanted="a whole file",
                    fix="fetch or compress the file again") from error
  except OSError as error:
    raise UserError(f"{path} cannot be read", found=error.strerror or str(error),
                    wanted="a readable file", fix="check the path and its permissions") from error


def lines(path: pathlib.Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
  """(line number from 1, line without its end). A byte order mark is dropped.

  Raises:
    UserError: as `opened`, and where a line is not in the encoding.
  """
  number = 0
  with opened(path, lambda: f" after line {number}") as file:
    for number, raw in enumerate(file, start=1):
      if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
      try:
        yield number, raw.decode(encoding).rstrip("\r\n")
      except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not {encoding.upper()} text",
                        found=f"byte 0x{raw[error.start]:02x} at column {error.start + 1}",
                        wanted=encoding.upper(), fix=f"convert it: iconv -f LATIN1 -t UTF-8 {path}"
                        ) from error


def text(path: pathlib.Path) -> str:
  """A whole UTF-8 file; raises `UserError` as `lines`."""
  return "\n".join(line for _, line in lines(path))
