"""T5X's own checkpoints, versions 2 and 3: every released T5 1.1, LM-adapted and mT5 is one.

`checkpoint_<step>/checkpoint` is Flax's msgpack of `{version, optimizer: {target, state}}`. A leaf
is an array inside it, or a tensorstore specification that names a zarr array beside it
(`target.encoder.layers_0.mlp.wo.kernel/`). Version 2 stored bfloat16 as uint16. T5X's first Orbax
checkpoints have the same index, with `PLACEHOLDER://NAME` for an array.
"""

import pathlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from prompt_tuning import trees
from prompt_tuning.checkpoints import storage, zarr_arrays
from prompt_tuning.checkpoints.leaves import (
  Format,
  Index,
  Leaf,
  Reader,
  cast_reader,
  damaged,
  dtype_of,
)
from prompt_tuning.checkpoints.stacking import is_stacked
from prompt_tuning.checkpoints.t5x_names import Array, Scanned, T5XReader
from prompt_tuning.disk import first_line, new_folder, report_full
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config

INDEX = "checkpoint"
_VERSION = 3
_PLACEHOLDER = "PLACEHOLDER://"
_DTYPES = ("float16", "float32", "float64", "bfloat16", "uint16", "int32", "int64", "uint8",
           "int8", "bool")


def folder_of(path: str) -> str | None:
  """The folder of one step that a path (the folder, or the index in it) names, or None."""
  for folder in (path.rstrip("/"), path.removesuffix("/" + INDEX)):
    if folder and storage.exists(storage.join(folder, INDEX)):
      return folder
  return None


def matches(path: str) -> bool:
  """An index that starts like a msgpack map: TensorFlow has a text file of the same name."""
  folder = folder_of(path)
  if folder is None:
    return False
  if folder.startswith(storage.BUCKET):
    return True
  try:
    with open(storage.join(folder, INDEX), "rb") as file:
      first = file.read(1)
  except OSError:
    return False
  return bool(first) and (0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF))


def open_checkpoint(path: str) -> T5XReader:
  """Reads the index; arrays beside it are opened when they are read.

  Raises:
    UserError: the index is damaged, of another version, or names files elsewhere.
  """
  folder = folder_of(path) or path
  store = storage.Store(folder)
  place = storage.join(folder, INDEX)
  state, version = _train_state(place, store.read(INDEX) or b"")
  arrays: dict[str, Any] = {}
  others: dict[str, Any] = {}
  metadata: dict[str, Any] = {"from": path}
  for name, value in _flatten(place, state):
    array = _open(store, place, name, value, version)
    if name.startswith("target/") and array is not None:
      arrays[name.removeprefix("target/")] = array
    elif array is not None:
      others[name] = array
    if name == "state/step" and isinstance(array, _Inline):
      metadata["step"] = int(array.read())
  return T5XReader(FORMAT.name, path, arrays, others, metadata)


def write(path: str, source: Reader, *, config: T5Config, metadata: Mapping[str, Any],
          dtype: str | None = None, state: Mapping[str, Array] | None = None) -> None:
  """As `leaves.Writer`. Stacked leaves become T5X's scanned layout.

  In a bucket, the index comes last: without it there is no checkpoint.

  Args:
    state: what else of a train state is written (`T5XReader.state`); None: the step alone.
  """
  arrays: Any = Scanned(source, config) if is_stacked(source.leaves) else source
  read = cast_reader(arrays.read, dtype_of(dtype))
  with _target(path) as (spec, finish):
    entries: dict[str, Any] = {}
    for name in sorted(arrays.leaves):
      entries["target/" + name] = _store(spec, "target/" + name, read(name))
    for name, array in (state or {}).items():
      entries[name] = _store(spec, name, array.read())
    entries["state/step"] = _pack_step(metadata.get("step", 0))
    finish(msgpack.packb({"version": _VERSION, "optimizer": trees.unflatten(entries)}))


class _Inline:
  """An array that stands in the index itself."""

  def __init__(self, shape: Any, dtype: str, content: bytes):
    if dtype not in _DTYPES or not all(type(x) is int and x >= 0 for x in shape):
      raise ValueError(f"an array of {dtype} {shape}")
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    self.leaf = Leaf(tuple(shape), kind)
    if self.leaf.nbytes != len(content):
      raise ValueError(f"an array of {dtype} {shape} with {len(content):,} bytes")
    self._array = np.frombuffer(content, kind).reshape(self.leaf.shape)

  def read(self, index: Index | None = None) -> np.ndarray:
    return (self._array if index is None else self._array[index]).copy()


class _Beside:
  """A zarr array that is opened, and compared with what the index says, when it is read."""

  def __init__(self, store: storage.Store, name: str, leaf: Leaf | None):
    self._store, self._name = store, name.rstrip("/")
    store.check_name(self._name)
    self.leaf = self._open().leaf if leaf is None else leaf

  def read(self, index: Index | None = None) -> np.ndarray:
    array = self._open()
    if array.leaf != self.leaf:
      raise damaged(f"{self._store.path}, {self._name}",
                    f"{array.leaf.dtype} {list(array.leaf.shape)}",
                    wanted=f"{self.leaf.dtype} {list(self.leaf.shape)}, as the index says")
    return array.read(index)

  def _open(self) -> zarr_arrays.ZarrArray:
    return zarr_arrays.ZarrArray(self._store, self._name)


class _Bfloat16:
  """An array of version 2, whose uint16 are the bits of bfloat16."""

  def __init__(self, array: Any):
    self._array = array
    self.leaf = Leaf(array.leaf.shape, np.dtype(ml_dtypes.bfloat16))

  def read(self, index: Index | None = None) -> np.ndarray:
    return self._array.read(index).view(ml_dtypes.bfloat16)


def _train_state(place: str, content: bytes) -> tuple[dict[str, Any], int]:
  try:
    tree = msgpack.unpackb(content, ext_hook=_extension, strict_map_key=True, raw=False)
    version = tree.get("version", _VERSION)
    state = tree.get("optimizer", tree.get("_optimizer", tree))
    if not isinstance(state, dict) or not isinstance(version, int):
      raise ValueError("it holds no train state")
  except (ValueError, TypeError, AttributeError, RecursionError, msgpack.UnpackException) as error:
    raise damaged(place, first_line(error), wanted="T5X's msgpack index") from error
  if version not in (2, _VERSION):
    raise UserError("This version of T5X's checkpoints is not known", found=f"{place}: {version}",
                    wanted=f"2 or {_VERSION}", fix="write it anew with a T5X of 2021 or later")
  return state, version


def _extension(code: int, content: bytes) -> Any:
  """Flax's extension types: 1 is an array, 3 a number of numpy's."""
  if code not in (1, 3):
    raise ValueError(f"an unknown extension type {code}")
  shape, dtype, values = msgpack.unpackb(content)
  return _Inline(shape, dtype, values)


def _flatten(place: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """(path, value) of every leaf. Explicit stack: nesting is the file's."""
  waiting = [("", tree)]
  while waiting:
    prefix, node = waiting.pop()
    for key, value in node.items():
      name = f"{prefix}{key}"
      if "/" in key or key in ("", "..") or key.startswith("__msgpack"):
        raise damaged(place, f"the name {name!r}", wanted="names of T5X's parameters")
      if isinstance(value, dict) and not {"driver", "kvstore"} <= value.keys():
        waiting.append((name + "/", value))
      else:
        yield name, value


def _open(store: storage.Store, place: str, name: str, value: Any, version: int) -> Any:
  """The array behind an entry of the index, or None for an empty one."""
  try:
    if isinstance(value, dict):
      details = value["metadata"]
      dtype = value.get("dtype") or np.dtype(details["dtype"]).name
      shape = details["shape"]
      if dtype not in _DTYPES or not all(type(x) is int and x >= 0 for x in shape):
        raise ValueError(f"an array of {dtype} {shape}")
      kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
      found: Any = _Beside(store, value["kvstore"].get("path", value.get("path")),
                           Leaf(tuple(shape), kind))
    elif isinstance(value, str) and value.startswith(_PLACEHOLDER):
      found = _Beside(store, value.removeprefix(_PLACEHOLDER), None)
    elif isinstance(value, int):
      found = _Inline((), "int64", np.int64(value).tobytes())
    else:
      found = value if isinstance(value, _Inline) else None
  except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
    if isinstance(error, UserError):
      raise
    raise damaged(place, f"{name}: {first_line(error)}", wanted="T5X's msgpack index") from error
  is_old = version == 2 and found is not None and found.leaf.dtype == np.uint16
  return _Bfloat16(found) if is_old else found


def _store(spec: Mapping[str, Any], name: str, array: np.ndarray) -> dict[str, Any]:
  """Writes an array beside the index; its entry there."""
  file = name.replace("/", ".")
  details = zarr_arrays.write(spec, file, array, zarr_arrays.GZIP)
  kvstore = {"driver": "gcs", "bucket": "t5x-dummy-bucket"} if spec["driver"] == "gcs" else {
    "driver": "file"}
  return {"driver": "zarr", "dtype": array.dtype.name, "metadata": details,
          "kvstore": kvstore | {"path": file + "/"}}


def _pack_step(step: int) -> msgpack.ExtType:
  # As Flax packs a number of numpy's: shape, dtype, bytes.
  return msgpack.ExtType(3, msgpack.packb(((), "int32", np.int32(step).tobytes())))


@contextmanager
def _target(path: str) -> Iterator[tuple[dict[str, Any], Any]]:
  """tensorstore's specification of the new folder, and what writes its index."""
  with report_full("a checkpoint", pathlib.Path(path), "run the same command again"):
    if path.startswith(storage.BUCKET):
      store = storage.Store(path)
      yield store.spec, lambda content: store.write(INDEX, content)
    else:
      with new_folder(pathlib.Path(path)) as partial:
        yield ({"driver": "file", "path": f"{partial.absolute()}/"},
               (partial / INDEX).write_bytes)


FORMAT = Format("t5x", "T5X (msgpack and zarr)", matches, open_checkpoint, write, index=INDEX)
