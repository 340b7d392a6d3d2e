"""A finite task, tokenised once: ragged int32 rows in flat memory-mapped files.

Tokenising is the slow part of the input pipeline and gives the same rows every epoch, so it is done
once. With random access to any row, the batch of a step follows from the step's number alone.

A cache is one folder: `<feature>.int32` holds all ids end to end, `<feature>.offsets.npy` the
`rows + 1` borders, `<feature>_text.utf8` and `<feature>_text.offsets.npy` the text that was
tokenised, `extras_text` likewise what the metrics want besides, `meta.json` the counts. It is
written beside its final name and renamed into place, so a folder that exists under its final name
is complete, whoever was killed meanwhile.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import numpy as np

from prompt_tuning.errors import UserError

FORMAT_VERSION = 4
FEATURES = ("inputs", "targets")
TEXTS = ("inputs_text", "targets_text", "extras_text")
META = "meta.json"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows end to end: `values` int32 ids or utf-8 bytes, `lengths` of each row in that unit."""

  values: np.ndarray | bytes
  lengths: np.ndarray


class TokenCache:
  """The rows of one task and split; opening it reads the offsets, not the ids.

  Attributes:
    folder: where it lies.
    is_new: this process made it.
    texts: names of the texts that were kept, of TEXTS.
    lost: what the source's rows lost (`registry.lost`: `unusable` are not here); None: nobody
      counted.
  """

  def __init__(self, folder: str | os.PathLike, is_new: bool = False):
    """Raises `UserError` if `folder` isn't a whole cache of this format."""
    self.folder, self.is_new = pathlib.Path(folder), is_new
    try:
      meta = json.loads((self.folder / META).read_text(encoding="utf-8"))
      self._rows, self.texts = meta["rows"], tuple(meta["texts"])
      self.lost: dict[str, int] | None = meta["lost"]
      self._id_range = {name: tuple(meta["id_range"][name]) for name in FEATURES}
      names = [*FEATURES, *self.texts]
      self._offsets = {name: np.load(self.folder / f"{name}.offsets.npy") for name in names}
      self._values = {name: _open_values(self.folder, name) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise _broken(self.folder, f"{type(error).__name__}: {error}") from error
    for name in names:
      if len(self._offsets[name]) != self._rows + 1:
        raise _broken(self.folder, f"{len(self._offsets[name]) - 1} rows of {name}")
      if self._offsets[name][-1] != len(self._values[name]):
        raise _broken(self.folder, f"{len(self._values[name])} values of {name}")

  def __len__(self) -> int:
    return self._rows

  def remove(self) -> None:
    """Deletes the files; who has them open, this object too, goes on reading them."""
    gone = self.folder.with_name(f".{self.folder.name}-{os.getpid()}")
    # Under its name nothing is ever found but a whole cache.
    with contextlib.suppress(OSError):
      os.rename(self.folder, gone)
      shutil.rmtree(gone, ignore_errors=True)

  def __getitem__(self, row: int) -> dict[str, np.ndarray | str]:
    """One row: `inputs`, `targets` `[n]` int32, and TEXTS, "" where they were not kept."""
    result: dict[str, np.ndarray | str] = {name: self.ids(name, row) for name in FEATURES}
    return result | {name: self.text(name, row) for name in TEXTS}

  def ids(self, feature: str, row: int) -> np.ndarray:
    """`[n]` int32: the ids of one row, untrimmed."""
    if not 0 <= row < self._rows:
      raise IndexError(f"row {row} of {self._rows}")
    return np.array(self._slice(feature, row), np.int32)

  def lengths(self, feature: str) -> np.ndarray:
    """`[rows]` int64: how many ids each row of `feature` has."""
    return np.diff(self._offsets[feature])

  def last_ids(self, feature: str) -> np.ndarray:
    """`[rows]` int32: the last id of each row, 0 where a row is empty."""
    ends = self._offsets[feature][1:]
    last = np.zeros(self._rows, np.int32)
    filled = self.lengths(feature) > 0
    last[filled] = self._values[feature][ends[filled] - 1]
    return last

  def id_range(self, feature: str) -> tuple[int, int] | None:
    """The smallest and the largest id of `feature`; None when every row is empty."""
    return self._id_range[feature] or None

  def _slice(self, name: str, row: int) -> np.ndarray:
    start, end = self._offsets[name][row:row + 2]
    return self._values[name][start:end]

  def text(self, name: str, row: int) -> str:
    """One of TEXTS of a row; "" where it was not kept."""
    if name not in self.texts:
      return ""
    return self._slice(name, row).tobytes().decode("utf-8", errors="replace")


def write_cache(folder: str | os.PathLike, chunks: Iterable[dict[str, Ragged]],
                lost: Callable[[], dict[str, int] | None] = lambda: None) -> TokenCache:
  """Writes `chunks` of rows as the cache `folder`, or opens what another process finished first.

  Args:
    folder: the final place; nothing is there before everything is.
    chunks: each with `inputs` and `targets`, and the same ones of TEXTS in every chunk.
    lost: what the source's rows lost; asked when all chunks are made.

  Raises `UserError` when there are no rows or the disk refuses; what the source raises is its own.
  """
  folder = pathlib.Path(folder)
  with _writing(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
  try:
    rows = _write(partial, chunks, lost)
    if not rows:
      raise UserError("There are no examples to tokenise", found=f"0 rows for {folder.name}",
                      wanted="1 row or more", fix="check the task's source and its filters")
    with _writing(folder):
      is_new = _rename(partial, folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return TokenCache(folder, is_new)


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
  """Around what writes, and never around what reads the source."""
  try:
    yield
  except OSError as error:
    raise UserError("The token cache could not be written", found=str(error),
                    wanted=f"a folder with free space at {folder.parent}",
                    fix="free some space or choose another cache folder") from error


def _write(folder: pathlib.Path, chunks: Iterable[dict[str, Ragged]],
           lost: Callable[[], dict[str, int] | None]) -> int:
  lengths: dict[str, list[np.ndarray]] = {}
  lows: dict[str, list[int]] = {name: [] for name in FEATURES}
  highs: dict[str, list[int]] = {name: [] for name in FEATURES}
  files: dict[str, IO[bytes]] = {}
  try:
    for chunk in chunks:
      for name, ragged in chunk.items():
        lengths.setdefault(name, []).append(np.asarray(ragged.lengths, np.int64))
        if name in FEATURES and len(ragged.values):
          lows[name].append(int(ragged.values.min()))
          highs[name].append(int(ragged.values.max()))
        values = ragged.values
        with _writing(folder):
          if name not in files:
            files[name] = open(_values_path(folder, name), "wb")  # noqa: SIM115
          files[name].write(values if isinstance(values, bytes) else
                            np.ascontiguousarray(values, "<i4").data)
    with _writing(folder):
      for file in files.values():
        file.flush()
  finally:
    for file in files.values():
      with contextlib.suppress(OSError):  # what could not be written has been told
        file.close()
  rows = sum(map(len, lengths.get("inputs", ())))
  id_range = {name: [min(lows[name]), max(highs[name])] if lows[name] else [] for name in FEATURES}
  meta = {"format": FORMAT_VERSION, "rows": rows, "lost": lost(),
          "texts": [name for name in TEXTS if name in lengths], "id_range": id_range}
  with _writing(folder):
    for name, parts in lengths.items():
      borders = np.cumsum(np.concatenate([np.zeros(1, np.int64), *parts]), dtype=np.int64)
      np.save(folder / f"{name}.offsets.npy", borders)
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")
  return rows


def _rename(partial: pathlib.Path, folder: pathlib.Path) -> bool:
  """False: another process was quicker."""
  try:
    os.rename(partial, folder)
    return True
  except OSError:
    # Renaming onto a folder that isn't empty fails: another process finished the same cache.
    if not (folder / META).exists():
      raise
    log.info("another process wrote %s first", folder.name)
    return False


def _values_path(folder: pathlib.Path, name: str) -> pathlib.Path:
  return folder / (f"{name}.int32" if name in FEATURES else f"{name}.utf8")


def _open_values(folder: pathlib.Path, name: str) -> np.ndarray:
  path = _values_path(folder, name)
  dtype = np.dtype("<i4" if name in FEATURES else "u1")
  # An empty file can't be mapped.
  return np.asarray(np.memmap(path, dtype, mode="r")) if path.stat().st_size else np.zeros(0, dtype)


def _broken(folder: pathlib.Path, found: str) -> UserError:
  return UserError(f"The token cache {folder.name} is damaged", found=found,
                   wanted="the files that this program wrote there",
                   fix=f"delete {folder}: it is made again")
