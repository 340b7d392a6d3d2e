"""Folders of small files, on a disk or in a bucket (`gs://...`), through tensorstore's key-value
stores; also those that Orbax packs into one database (OCDBT).

What a checkpoint says about itself is not trusted: a key never leads out of the folder, and a link
out of it is refused.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorstore as ts

from prompt_tuning.checkpoints.leaves import damaged, inside
from prompt_tuning.disk import first_line
from prompt_tuning.errors import UserError

BUCKET = "gs://"
_GCS = re.compile(r"gs://([^/]+)/?(.*)", re.DOTALL)
_ANSWER_SECONDS = 60
# A minute in all, where tensorstore's own 32 attempts take a quarter of an hour.
_RETRIES = {"max_retries": 8, "initial_delay": "0.5s", "max_delay": "10s"}


class Store:
  """A folder of files by their names relative to it.

  Attributes:
    path: of the folder, as the user wrote it.
    spec: tensorstore's, to open arrays in it.
  """

  def __init__(self, path: str, *, packed: bool = False):
    """Args:
      packed: the folder is an OCDBT database, and the names are those of its keys.

    Raises:
      UserError: the bucket or the database cannot be opened; a link leads out of the folder.
    """
    self.path = path
    if not path.startswith(BUCKET):
      _refuse_links_out(pathlib.Path(path))
    self.spec: dict[str, Any] = {"driver": "ocdbt", "base": _spec(path)} if packed else _spec(path)
    try:
      self._store = ts.KvStore.open(self.spec).result()
    except (ValueError, OSError) as error:
      raise damaged(path, first_line(error)) from error

  def read(self, name: str) -> bytes | None:
    """A file's content; None: there is no such file.

    Raises:
      UserError: it cannot be read, or the name leads out of the folder.
    """
    self.check_name(name)
    try:
      result = self._store.read(name).result()
    except (ValueError, OSError) as error:
      raise damaged(f"{self.path}, {name}", first_line(error)) from error
    return bytes(result.value) if result.state == "value" else None

  def write(self, name: str, content: bytes | None) -> None:
    """Writes a file in one step; None takes it away."""
    self._store.write(name, content).result()

  def names(self) -> list[str]:
    """Every file, sorted.

    Raises:
      UserError: they cannot be listed.
    """
    try:
      return sorted(key.decode() for key in self._store.list().result())
    except (ValueError, OSError) as error:
      raise damaged(self.path, first_line(error)) from error

  def check_name(self, name: str) -> None:
    """Raises a UserError where a name leads out of the folder."""
    if not self.path.startswith(BUCKET):
      inside(self.path, name)
    elif not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
      raise damaged(self.path, f"it names the file {name!r}, which is not in it",
                    wanted="names of files in the checkpoint's own folder",
                    fix="do not use this checkpoint")


def exists(path: str) -> bool:
  """Whether there is such a file, on the disk or in a bucket.

  Raises:
    UserError: the bucket does not answer.
  """
  if not path.startswith(BUCKET):
    return os.path.isfile(path)
  folder, _, name = path.rpartition("/")
  if _GCS.fullmatch(folder) is None:
    return False
  try:
    found = ts.KvStore.open(_spec(folder)).result().read(name).result(timeout=_ANSWER_SECONDS)
    return found.state == "value"
  except TimeoutError:
    why = f"no answer in {_ANSWER_SECONDS} seconds"
  except (ValueError, OSError) as error:
    why = first_line(error)
  raise UserError("The bucket cannot be read", found=f"{path}: {why}",
                  wanted="a bucket that this machine reaches and may read",
                  fix="correct the address, see to the network or the credentials (`gcloud auth "
                  "application-default login`), or copy the checkpoint here")


def join(folder: str, name: str) -> str:
  return folder.rstrip("/") + "/" + name


def _spec(folder: str) -> dict[str, Any]:
  if folder.startswith(BUCKET):
    found = _GCS.fullmatch(folder)
    if found is None:
      raise UserError("This is not the address of a checkpoint in a bucket", found=folder,
                      wanted="gs://BUCKET/FOLDER", fix="correct the address")
    return {"driver": "gcs", "bucket": found[1], "path": (found[2].rstrip("/") + "/").lstrip("/"),
            "context": {"gcs_request_retries": _RETRIES}}
  return {"driver": "file", "path": os.path.abspath(folder) + "/"}


def _refuse_links_out(folder: pathlib.Path) -> None:
  root = folder.resolve()
  for path in _links(root):
    if not path.resolve().is_relative_to(root):
      raise damaged(folder, f"{path.relative_to(root)} is a link to {path.resolve()}",
                    wanted="files of the checkpoint's own folder",
                    fix="do not use this checkpoint, or copy the files that it links to into it")


def _links(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for folder, folders, files in os.walk(root):
    for name in (*folders, *files):
      if os.path.islink(os.path.join(folder, name)):
        yield pathlib.Path(folder, name)
