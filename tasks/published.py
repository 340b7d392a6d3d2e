"""Where the rows of a published data set come from: files under DATA_DIR, TFDS, Hugging Face.

Rows have one form, that of TFDS, for which T5's castings are written. Readers of files make it;
`adapt` makes it of rows of Hugging Face or TFDS where those differ. Which of the three is read is
said (`DATA_FROM`), never guessed: 'files' (the default), 'tfds' or 'huggingface'.
"""

import dataclasses
import functools
import hashlib
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import lines
from prompt_tuning.tasks.readers import Reader, Row

DATA_DIR = "DATA_DIR"
ORIGINS = ("files", "tfds", "huggingface")


class NoData(UserError):
  """The data of a split is not on this machine."""


def same(row: Row) -> Row:
  """The `adapt` of a data set whose rows are alike everywhere."""
  return row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """A task source: a data set as it is published.

  Attributes:
    files: split -> alternatives, the first of which that is there is read; each is the names of
      files under DATA_DIR (`*` stands for anything), joined by `+`. A file may also be gzipped
      (`.gz` is added), or lie in a zip archive in its folder or called as its folder.
    read: reads one of these files; a reader a split where they differ.
    download: what to fetch, and from where.
    tfds: name, configuration and version, such as `glue/cola:2.0.0`; None: TFDS has it not.
    huggingface: repository and configuration, such as `nyu-mll/glue cola`.
    their_splits: our split -> TFDS's and Hugging Face's, where the names differ.
    adapt: a row of TFDS or Hugging Face in our form.
    data_dir: the folder; None: the environment variable DATA_DIR.
    origin: DATA_FROM.
  """

  files: Mapping[str, tuple[str, ...]]
  read: Reader | Mapping[str, Reader]
  download: str
  tfds: str | None = None
  huggingface: str | None = None
  their_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  adapt: Callable[[Row], Row] = same
  data_dir: str | None = None
  origin: str = "files"

  def __post_init__(self):
    if self.origin not in ORIGINS:
      raise UserError("DATA_FROM is unknown", found=repr(self.origin),
                      wanted="one of " + ", ".join(ORIGINS), fix=nearest(self.origin, ORIGINS))

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.files)

  def rows(self, split: str) -> Iterator[Row]:
    """Raises `UserError`: the data is not there, or damaged."""
    if self.origin == "files":
      read = self.read[split] if isinstance(self.read, Mapping) else self.read
      for path in self.paths(split):
        yield from read(path)
      return
    theirs = self.their_splits.get(split, split)
    rows = _tfds_rows if self.origin == "tfds" else _huggingface_rows
    name = self.tfds if self.origin == "tfds" else self.huggingface
    if name is None:
      raise UserError(f"{self.origin} does not have this data",
                      found=f"DATA_FROM = {self.origin!r}", wanted="DATA_FROM = 'files'",
                      fix=self.download)
    for number, row in enumerate(rows(name, theirs), start=1):
      yield {**self.adapt(row), "where": f"{name}, {theirs} row {number}"}

  def paths(self, split: str) -> list[pathlib.Path]:
    """The files of a split.

    Raises:
      UserError: none of the alternatives is there; it says what to download and where it goes.
    """
    given = self.data_dir or os.environ.get(DATA_DIR)
    if not given:
      raise NoData("DATA_DIR is not set", found="neither the macro nor the variable",
                   wanted=f"the folder of {self.files[split][0]}",
                   fix=f"{self.download}; then set DATA_DIR{self._or_elsewhere()}")
    folder = pathlib.Path(given).expanduser()
    for alternative in self.files[split]:
      found = [_find(folder, name) for name in alternative.split("+")]
      if all(found):
        return [path for paths in found for path in paths]
    wanted = " or ".join(names.replace("+", " with ") for names in self.files[split])
    raise NoData(f"the data of split {split!r} is not in DATA_DIR", found=f"{folder} without it",
                 wanted=f"{wanted} there, or gzipped, or in a zip archive",
                 fix=self.download + self._or_elsewhere())

  def _or_elsewhere(self) -> str:
    elsewhere = [f"DATA_FROM='{origin}' ({name})" for origin, name in
                 (("tfds", self.tfds), ("huggingface", self.huggingface)) if name]
    return "; or set " + " or ".join(elsewhere) if elsewhere else ""

  def place(self) -> str:
    """Where the rows can come from, in a few words."""
    names = [self.tfds and f"tfds {self.tfds}", self.huggingface and f"hf {self.huggingface}"]
    return ", ".join(["DATA_DIR/" + next(iter(self.files.values()))[0].split("+")[0].rpartition(
      "/")[0], *filter(None, names)])

  def fingerprint(self) -> str:
    """Hash of the files' bytes (elsewhere: name and version) and of the code that casts them."""
    digest = hashlib.sha256(_own_source())
    if self.origin != "files":
      digest.update(f"{self.origin} {self.tfds} {self.huggingface}".encode())
      return digest.hexdigest()[:16]
    for split in self.splits:
      try:
        paths = self.paths(split)
      except NoData:  # a split that is not there has no rows; who reads it gets the error
        continue
      digest.update(split.encode())
      for path in paths:
        digest.update(_file_hash(lines.archive_of(path) or path))
    return digest.hexdigest()[:16]


def _find(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The file of that name, or the files that match it, sorted."""
  path = folder / name
  if "*" in name:
    return sorted(folder.glob(name)) or sorted(folder.glob(name + ".gz"))
  for candidate in (path, path.with_name(path.name + ".gz")):
    if candidate.is_file():
      return [candidate]
  archives = [path.parent.with_name(path.parent.name + ".zip"), *sorted(path.parent.glob("*.zip"))]
  for archive in filter(pathlib.Path.is_file, archives):
    for member in lines.members(archive):
      if pathlib.PurePosixPath(member).name in (path.name, path.name + ".gz"):
        return [archive / member]
  return []


def _file_hash(path: pathlib.Path) -> bytes:
  status = path.stat()
  return _hash_of(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _hash_of(path: pathlib.Path, modified: int, size: int) -> bytes:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").digest()


@functools.cache
def _own_source() -> bytes:
  """The castings are code: a token cache must not outlive a change of it."""
  here = pathlib.Path(__file__).parent
  sources = [here / "readers.py", *sorted((here / "datasets").glob("*.py"))]
  return b"".join(path.read_bytes() for path in sources)


def _tfds_rows(name: str, split: str) -> Iterator[Row]:
  tfds = _imported("tensorflow_datasets", "tensorflow-datasets", "tfds")
  # One file at a time: the order must be the same in every process. TFDS itself reads
  # TFDS_DATA_DIR, which may be a bucket (gs://).
  how = tfds.ReadConfig(interleave_cycle_length=1)
  try:
    found = tfds.load(name, split=split, shuffle_files=False, read_config=how)
  except ValueError as error:
    raise _refused("TFDS", name, split, error) from error
  for row in tfds.as_numpy(found):
    yield _plain(row)


def _huggingface_rows(name: str, split: str) -> Iterator[Row]:
  datasets = _imported("datasets", "datasets", "huggingface")
  repository, _, configuration = name.partition(" ")
  try:
    found = datasets.load_dataset(repository, configuration or None, split=split)
  except (ValueError, FileNotFoundError, ConnectionError) as error:
    raise _refused("Hugging Face", name, split, error) from error
  for row in found:
    yield _plain(row)


def _refused(origin: str, name: str, split: str, error: Exception) -> UserError:
  return UserError(f"{origin} does not give split {split!r} of {name}",
                   found=" ".join(str(error).split())[:300], wanted="a split that it has",
                   fix="choose another split, prepare the data set there, or use DATA_FROM = "
                   "'files'")


def _imported(module: str, package: str, origin: str) -> ModuleType:
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise UserError(f"DATA_FROM = {origin!r} needs the package {package}", found=str(error),
                    wanted=package, fix=f"pip install {package}, or use DATA_FROM = 'files'"
                    ) from error


def _plain(value: Any) -> Any:
  """Python's own types: bytes are UTF-8 text, arrays are lists."""
  if isinstance(value, dict):
    return {name: _plain(item) for name, item in value.items()}
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return value.decode("utf-8") if isinstance(value, bytes) else value
