"""safetensors files read and written in parts, by plain reads: mapped pages count as memory.

The file is 8 bytes of header length, a JSON header `{name: {dtype, shape, data_offsets}}`, and the
tensors' bytes in C order. (https://github.com/huggingface/safetensors, "Format".) Nothing in the
header is trusted: offsets must fit shapes, lie in the file and not overlap.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prompt_tuning.checkpoints.leaves import DTYPES, Index, Leaf, bounds, damaged, empty

_CODES = {"F32": np.dtype(np.float32), "F16": DTYPES["float16"], "BF16": DTYPES["bfloat16"],
          "F64": np.dtype(np.float64), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
          "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8),
          "BOOL": np.dtype(np.bool_)}
_NAMES = {dtype: code for code, dtype in _CODES.items()}
_MAX_HEADER = 100_000_000
_BLOCK = 16 * 2**20


class SafetensorsFile:
  """One file.

  Attributes:
    leaves: by the file's own names.
    metadata: the header's `__metadata__`.

  Raises:
    UserError: it is not a whole safetensors file.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.leaves: dict[str, Leaf] = {}
    self.metadata: dict[str, str] = {}
    self._offsets: dict[str, int] = {}
    try:
      with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
          raise ValueError(f"{size:,} bytes, and a header of {length:,}")
        header = json.loads(file.read(length))
      self._parse(header, 8 + length, size)
    except OSError as error:
      raise damaged(path, error.strerror or error) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
      raise damaged(path, error, wanted="a whole safetensors file") from error

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    """As `leaves.Reader.read`, by the file's own name."""
    leaf = self.leaves[name]
    spans = bounds(index, leaf.shape) or [(0, 1)]
    shape = leaf.shape or (1,)
    (start, stop), rest = spans[0], tuple(slice(*span) for span in spans[1:])
    part = empty([end - begin for begin, end in spans], leaf.dtype)
    row = Leaf(shape[1:], leaf.dtype)
    whole_rows = part.shape[1:] == row.shape
    # Part of the columns: some rows at a time, so that the others' bytes are not all in memory.
    step = max(1, stop - start if whole_rows else _BLOCK // max(row.nbytes, 1))
    try:
      with open(self.path, "rb", buffering=0) as file:
        for first in range(start, stop, step):
          count = min(step, stop - first)
          file.seek(self._offsets[name] + first * row.nbytes)
          if whole_rows:
            _fill(file, part)
          else:
            block = np.empty((count, *row.shape), leaf.dtype)
            _fill(file, block)
            part[first - start:first - start + count] = block[(slice(None), *rest)]
    except (OSError, EOFError, MemoryError) as error:
      raise damaged(self.path, error) from error
    return part.reshape(part.shape if leaf.shape else ())

  def _parse(self, header: Mapping[str, Any], begin: int, size: int) -> None:
    taken = []
    self.metadata = dict(header.get("__metadata__") or {})
    for name, entry in header.items():
      if name == "__metadata__":
        continue
      shape, (start, stop) = entry["shape"], entry["data_offsets"]
      if entry["dtype"] not in _CODES:
        raise ValueError(f"{name} has the unsupported type {entry['dtype']}")
      if not all(type(x) is int and x >= 0 for x in (*shape, start, stop)):
        raise ValueError(f"{name} has a negative or fractional shape or offset")
      leaf = Leaf(tuple(shape), _CODES[entry["dtype"]])
      if leaf.nbytes != stop - start or begin + stop > size:
        raise ValueError(f"{name} {shape} does not fit bytes {start:,} to {stop:,} of "
                         f"{size - begin:,}")
      self.leaves[name] = leaf
      self._offsets[name] = begin + start
      taken.append((start, stop, name))
    taken.sort()
    for (_, stop, name), (start, _, other) in zip(taken, taken[1:], strict=False):
      if start < stop:
        raise ValueError(f"{name} and {other} overlap")


def write(path: pathlib.Path, leaves: Mapping[str, Leaf], read: Callable[[str], np.ndarray],
          metadata: Mapping[str, str] | None = None) -> None:
  """Writes `leaves` in their order, one at a time; `read` gives each in its leaf's dtype."""
  header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
  position = 0
  for name, leaf in leaves.items():
    header[name] = {"dtype": _NAMES[leaf.dtype], "shape": list(leaf.shape),
                    "data_offsets": [position, position + leaf.nbytes]}
    position += leaf.nbytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb", buffering=0) as file:
    _write_all(file, len(text).to_bytes(8, "little") + text)
    for name, leaf in leaves.items():
      array = np.asarray(read(name), order="C")
      assert array.shape == leaf.shape and array.dtype == leaf.dtype, name
      _write_all(file, array.reshape(-1).view(np.uint8).data if array.size else b"")
    os.fsync(file.fileno())


def _fill(file: Any, array: np.ndarray) -> None:
  view = memoryview(array.reshape(-1).view(np.uint8).data if array.size else b"")
  while len(view):
    count = file.readinto(view)
    if not count:
      raise EOFError("it ends before its last tensor")
    view = view[count:]


def _write_all(file: Any, content: bytes | memoryview) -> None:
  view = memoryview(content)
  while len(view):
    view = view[file.write(view):]
