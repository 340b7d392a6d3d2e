"""What every checkpoint format speaks: named leaves that are read in parts.

A `Reader` looks at a checkpoint without reading a weight, and shows its backbone under our names
(`t5.py`): unstacked (`encoder/layers_0/attention/query/kernel [D, H*K]`) or stacked
(`encoder/layers/attention/query/kernel [L, D, H*K]`), whichever is nearer to the file. A part of a
leaf is read when it is asked for, in the dtype that the file has. A `Writer` takes a `Reader`, so
that no format needs more than one leaf in memory. `stacking.py` turns one layout into the other;
`formats.py` lists the formats.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from prompt_tuning import hosts
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config

Index = tuple[slice, ...]
"""A part of a leaf: one slice an axis, without steps; `slice(None)` is the whole axis."""

DTYPES: dict[str, np.dtype] = {
  "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype(np.float16)}
"""What weights are stored in. Readers give bfloat16 as ml_dtypes has it."""

_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Shape and dtype of one array, known before it is read."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def size(self) -> int:
    """How many numbers; exact, however large a hostile shape is."""
    size = 1
    for extent in self.shape:
      size *= extent
    return size

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize


class Reader(Protocol):
  """An open checkpoint.

  Attributes:
    format: name of the format, as in `formats.py`.
    path: what the user named.
    leaves: the backbone, by our names.
    ignored: what else the file holds (optimizer state, step), by the file's own names; never read.
    config: the architecture, as far as the file says or its shapes imply; None: they do not.
    metadata: what else is known; keys of ours: `vocabulary` (fingerprint), `step`, `from`.
  """

  @property
  def format(self) -> str: ...

  @property
  def path(self) -> str: ...

  @property
  def leaves(self) -> Mapping[str, Leaf]: ...

  @property
  def ignored(self) -> Mapping[str, Leaf]: ...

  @property
  def config(self) -> T5Config | None: ...

  @property
  def metadata(self) -> Mapping[str, Any]: ...

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    """The leaf, or a part of it: an array of its own dtype that the caller may keep.

    Raises:
      UserError: the file is damaged.
    """
    ...


class Writer(Protocol):
  def __call__(self, path: str, source: Reader, *, config: T5Config, metadata: Mapping[str, Any],
               dtype: str | None = None) -> None:
    """Writes `source.leaves` (in a layout that the format takes) as one checkpoint.

    What stood at `path` is whole until the new one is; a kill leaves the one or the other.

    Args:
      config: the architecture.
      metadata: as of `Reader`.
      dtype: of `DTYPES`, of every leaf written; None: as `source` has them.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Format:
  """One format; a module has it as its constant `FORMAT`.

  Attributes:
    name: as in `convert --to`.
    title: for people.
    matches: whether a path holds this format, by the names of its files alone; never raises.
    open: path -> Reader; raises UserError.
    write: None: it is only read.
    stacked: the layout that `write` takes: True, False, or None for either.
    full_config: a reader's `config` is what the file says, not what its shapes imply.
    files: a regular expression of the names that a folder of the format may hold at its top; None:
      any.
    index: the file that makes a folder of a bucket a checkpoint; None: buckets are not written.
  """

  name: str
  title: str
  matches: Callable[[str], bool]
  open: Callable[[str], Reader]
  write: Writer | None = None
  stacked: bool | None = None
  full_config: bool = False
  files: str | None = None
  index: str | None = None


class MemoryReader:
  """Arrays in memory, as a Reader."""

  format = "memory"
  path = "memory"

  def __init__(self, flat: Mapping[str, Any], config: T5Config | None = None,
               metadata: Mapping[str, Any] | None = None):
    self._flat = flat
    self.leaves = {name: Leaf(tuple(x.shape), np.dtype(x.dtype)) for name, x in flat.items()}
    self.ignored: dict[str, Leaf] = {}
    self.config = config
    self.metadata = dict(metadata or {})

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    leaf, shape = self._flat[name], self.leaves[name].shape
    # A slice of a device array is a copy on the device.
    is_whole = all(span == (0, n) for span, n in zip(bounds(index, shape), shape, strict=True))
    return np.asarray(hosts.fetch(leaf if is_whole else leaf[index]))


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """`numpy.empty`, aligned so that jax takes the array over as a buffer of the CPU, uncopied."""
  leaf = Leaf(tuple(shape), np.dtype(dtype))
  memory = np.empty(leaf.nbytes + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start:start + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)


def bounds(index: Index | None, shape: tuple[int, ...]) -> list[tuple[int, int]]:
  """(start, stop) on each axis."""
  if index is None:
    return [(0, extent) for extent in shape]
  found = [part.indices(extent) for part, extent in zip(index, shape, strict=True)]
  assert all(step == 1 for _, _, step in found), f"a part of a leaf has no steps: {index}"
  return [(start, max(start, stop)) for start, stop, _ in found]


def cast_reader(read: Callable[[str], np.ndarray], dtype: np.dtype | None
                ) -> Callable[[str], np.ndarray]:
  """`read`, with its arrays in `dtype`; None leaves them."""
  return lambda name: read(name) if dtype is None else read(name).astype(dtype, copy=False)


def dtype_of(name: str | None, setting: str = "--dtype") -> np.dtype | None:
  """The dtype that weights are stored in; None: their own.

  Args:
    setting: that named it, as it is written on a command line.

  Raises:
    UserError: weights are not stored in it.
  """
  if name is None or name in DTYPES:
    return None if name is None else DTYPES[name]
  raise UserError("Weights are not stored in this dtype", found=f"{setting}={name}",
                  wanted="one of " + ", ".join(DTYPES), fix=f"{setting}=bfloat16")


def damaged(path: object, why: object, *, wanted: str = "a whole checkpoint",
            fix: str = "copy the checkpoint again; it may be truncated") -> UserError:
  """The error of a file that is truncated, garbled or made to harm."""
  return UserError("The checkpoint's weights cannot be read", found=f"{path}: {why}",
                   wanted=wanted, fix=fix)


def inside(folder: str | os.PathLike, name: str) -> pathlib.Path:
  """`folder / name`, where a name that the checkpoint itself gives must not lead out of it.

  Links are followed only as far as they stay in the folder.

  Raises:
    UserError: it leads out.
  """
  root = pathlib.Path(os.path.realpath(folder))
  path = root / name
  # Not Path.resolve, which raises errors of its own for links in a circle.
  if "\0" in name or not name or pathlib.PurePosixPath(name).is_absolute() or (
      root not in pathlib.Path(os.path.realpath(path)).parents):
    raise damaged(folder, f"it names the file {name!r}, which is not in it",
                  wanted="names of files in the checkpoint's own folder",
                  fix="do not use this checkpoint, or copy the files that it links to into it")
  return path


def read_small(path: pathlib.Path, limit: int) -> bytes:
  """A metadata file's bytes, where it has at most `limit` of them.

  Raises:
    UserError: it is larger, or cannot be read.
  """
  try:
    with open(path, "rb") as file:
      # A buffer of what is asked for is allocated first.
      content = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
  except OSError as error:
    raise damaged(path, error.strerror or error) from error
  if len(content) > limit:
    raise damaged(path, f"more than {limit:,} bytes", wanted="metadata, which is smaller",
                  fix="do not use this checkpoint")
  return content
