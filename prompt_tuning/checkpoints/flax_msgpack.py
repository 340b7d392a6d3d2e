"""Hugging Face's `flax_model.msgpack`, shown by PyTorch's names and layout, read in parts.

flax.serialization writes nested maps with string keys; an array is an extension of type 1 that
holds `[shape, dtype name, bytes]`. Arrays above 1 GiB are a map with `__msgpack_chunked_array__`,
their shape and flat pieces. Only places are noted here; no array is read before it is asked for,
and no length that the file declares is believed beyond the file's end.

Kernels are (in, out) here and (out, in) in PyTorch; `.../kernel`, `.../embedding` and the norms'
`weight` are all called `weight` there.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from prompt_tuning.checkpoints.leaves import DTYPES, Index, Leaf, bounds, damaged

_ARRAY, _CHUNKED = 1, "__msgpack_chunked_array__"
_MAX_DEPTH, _MAX_KEY, _MAX_ENTRIES = 32, 1000, 1_000_000
_BLOCK = 16 * 2**20


def torch_name(name: str) -> str:
  """`encoder/block/0/layer/0/SelfAttention/q/kernel` -> `encoder.block...q.weight`."""
  *path, last = name.split("/")
  return ".".join([*path, "weight" if last in ("kernel", "embedding") else last])


class FlaxFile:
  """One file, as `hf_files.Tensors`.

  Raises:
    UserError: it is damaged, or holds other things than named arrays.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.leaves: dict[str, Leaf] = {}
    # By the name in PyTorch: shape and dtype in the file, (place, bytes) of each piece, transposed.
    self._places: dict[str, tuple[Leaf, list[tuple[int, int]], bool]] = {}
    try:
      with open(path, "rb") as file:
        tree = _Parser(file, os.fstat(file.fileno()).st_size).value(0)
        if not isinstance(tree, dict):
          raise ValueError("it is not a map of names")
      for name, leaf, pieces in _arrays(tree, ""):
        is_kernel = name.endswith("/kernel") and len(leaf.shape) == 2
        ours = torch_name(name)
        if ours in self.leaves:
          raise ValueError(f"{name} is there twice")
        self._places[ours] = (leaf, pieces, is_kernel)
        self.leaves[ours] = Leaf(leaf.shape[::-1], leaf.dtype) if is_kernel else leaf
    except OSError as error:
      raise damaged(path, error.strerror or error) from error
    except (ValueError, TypeError, RecursionError) as error:
      raise damaged(path, error, wanted="a whole flax_model.msgpack") from error

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    """As `leaves.Reader.read`, by PyTorch's name."""
    leaf, pieces, is_kernel = self._places[name]
    spans = bounds(index, self.leaves[name].shape)
    if is_kernel:
      spans = spans[::-1]
    (start, stop), rest = (spans[0], spans[1:]) if spans else ((0, 1), [])
    row = Leaf(leaf.shape[1:], leaf.dtype)
    part = np.empty([end - begin for begin, end in spans], leaf.dtype)
    # Some rows at a time: of those columns may be left out.
    step = max(1, _BLOCK // max(row.nbytes, 1))
    with open(self._path, "rb", buffering=0) as file:
      for first in range(start, stop, step):
        last = min(first + step, stop)
        content = _read_span(self._path, file, pieces, first * row.nbytes, last * row.nbytes)
        rows = np.frombuffer(content, leaf.dtype).reshape(last - first, *row.shape)
        columns = (slice(None), *(slice(*span) for span in rest))
        part.reshape(-1, *part.shape[1:])[first - start:last - start] = rows[columns]
    return part.T if is_kernel else part


def _arrays(tree: Any, prefix: str) -> Iterator[tuple[str, Leaf, list[tuple[int, int]]]]:
  """(name, leaf, pieces) of each array of a parsed file."""
  if isinstance(tree, _Piece):
    yield prefix, tree.leaf, [tree.place]
  elif isinstance(tree, dict) and _CHUNKED in tree:
    shape = tuple(_ordered(tree.get("shape")))
    pieces = _ordered(tree.get("chunks"))
    if not pieces or not all(isinstance(x, _Piece) for x in pieces):
      raise ValueError(f"{prefix} has no chunks")
    leaf = Leaf(_check_shape(shape), pieces[0].leaf.dtype)
    if leaf.nbytes != sum(x.leaf.nbytes for x in pieces):
      raise ValueError(f"{prefix} {shape} is not as large as its chunks")
    yield prefix, leaf, [x.place for x in pieces]
  elif isinstance(tree, dict):
    for key, value in tree.items():
      yield from _arrays(value, f"{prefix}/{key}" if prefix else key)
  else:
    raise ValueError(f"{prefix} is {type(tree).__name__}, not an array")


def _ordered(tree: Any) -> list[Any]:
  """A tuple, which flax writes as a map from "0", "1", ..."""
  if not isinstance(tree, dict) or list(tree) != [str(i) for i in range(len(tree))]:
    raise ValueError("a chunked array lacks its shape or chunks")
  return list(tree.values())


def _check_shape(shape: Any) -> tuple[int, ...]:
  if not isinstance(shape, list | tuple) or not all(type(x) is int and x >= 0 for x in shape):
    raise ValueError(f"{shape!r} is not a shape")
  return tuple(shape)


def _read_span(path: pathlib.Path, file: BinaryIO, pieces: list[tuple[int, int]], start: int,
               stop: int) -> bytes:
  """Bytes `start` to `stop` of an array whose bytes are the pieces', one after the other."""
  parts, position = [], 0
  for place, size in pieces:
    first, last = max(start - position, 0), min(stop - position, size)
    if first < last:
      file.seek(place + first)
      content = file.read(last - first)
      while len(content) < last - first and (more := file.read(last - first - len(content))):
        content += more
      parts.append(content)
    position += size
  content = b"".join(parts)
  if len(content) != stop - start:
    raise damaged(path, "it ends before its last array")
  return content


class _Piece:
  """One array in the file, not read: its leaf, and (place, bytes)."""

  def __init__(self, leaf: Leaf, place: tuple[int, int]):
    self.leaf, self.place = leaf, place


class _Parser:
  """Just as much of MessagePack (github.com/msgpack/msgpack, spec.md) as flax writes."""

  def __init__(self, file: BinaryIO, size: int):
    self._file, self._size = file, size
    self._entries = 0

  def value(self, depth: int) -> Any:
    if depth > _MAX_DEPTH:
      raise ValueError("it is nested too deeply")
    kind = self._bytes(1)[0]
    if kind < 0x80:
      return kind
    if kind < 0x90 or kind in (0xde, 0xdf):
      count = kind & 0x0f if kind < 0x90 else self._number(2 << (kind - 0xde))
      return {self._key(depth): self.value(depth + 1) for _ in self._counted(count)}
    if kind < 0xa0 or kind in (0xdc, 0xdd):
      count = kind & 0x0f if kind < 0xa0 else self._number(2 << (kind - 0xdc))
      return [self.value(depth + 1) for _ in self._counted(count)]
    if kind < 0xc0 or 0xd9 <= kind <= 0xdb:
      length = kind & 0x1f if kind < 0xc0 else self._number(1 << (kind - 0xd9))
      return self._text(length)
    if kind in (0xc2, 0xc3):
      return kind == 0xc3
    if 0xcc <= kind <= 0xcf:
      return self._number(1 << (kind - 0xcc))
    if 0xc7 <= kind <= 0xc9:
      return self._array(self._number(1 << (kind - 0xc7)), depth)
    if 0xd4 <= kind <= 0xd8:
      return self._array(1 << (kind - 0xd4), depth)
    raise ValueError(f"byte 0x{kind:02x} at {self._file.tell() - 1:,} starts nothing that is known")

  def _array(self, length: int, depth: int) -> _Piece:
    if self._bytes(1)[0] != _ARRAY:
      raise ValueError("it holds an extension that is not an array")
    end = self._file.tell() + length
    header = self._bytes(1)[0]
    if header != 0x93 or end > self._size:
      raise ValueError("an array is not shape, type and bytes, or ends after the file")
    shape, name = _check_shape(self.value(depth + 1)), self.value(depth + 1)
    kind = self._bytes(1)[0]
    if name not in DTYPES or not 0xc4 <= kind <= 0xc6:
      raise ValueError(f"an array has the unsupported type {name!r}")
    size = self._number(1 << (kind - 0xc4))
    leaf = Leaf(shape, DTYPES[name])
    place = self._file.tell()
    if leaf.nbytes != size or place + size != end:
      raise ValueError(f"an array {list(shape)} has {size:,} bytes")
    self._file.seek(end)
    return _Piece(leaf, (place, size))

  def _key(self, depth: int) -> str:
    key = self.value(depth + 1)
    if not isinstance(key, str):
      raise ValueError(f"{key!r} is not a name")
    return key

  def _counted(self, count: int) -> range:
    self._entries += count
    if self._entries > min(_MAX_ENTRIES, self._size):
      raise ValueError(f"it declares {self._entries:,} entries")
    return range(count)

  def _text(self, length: int) -> str:
    if length > _MAX_KEY:
      raise ValueError(f"a name has {length:,} bytes")
    return self._bytes(length).decode("utf-8")

  def _number(self, size: int) -> int:
    return int.from_bytes(self._bytes(size), "big")

  def _bytes(self, count: int) -> bytes:
    content = self._file.read(count)
    if len(content) != count:
      raise ValueError("it ends in the middle")
    return content
