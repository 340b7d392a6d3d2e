"""Arrays of zarr, version 2: `NAME/.zarray` says shape, type, chunks and compressor, and the files
`NAME/0.0`, `NAME/0.1`, ... hold the chunks.

tensorstore writes them. Reading is ours, chunk by chunk, because a decoder must stop at the size
that a chunk has to have: a kilobyte of gzip can hold a megabyte, and a kilobyte of zstandard much
more.
"""

import itertools
import json
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts

from prompt_tuning.checkpoints.leaves import Index, Leaf, bounds, damaged, empty
from prompt_tuning.checkpoints.storage import Store
from prompt_tuning.checkpoints.zstandard_frames import decoded_bound
from prompt_tuning.disk import first_line
from prompt_tuning.errors import UserError

GZIP = {"id": "gzip", "level": 1}
ZSTANDARD = {"id": "zstd", "level": 1}
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)} | {
  code: np.dtype(code) for code in ("<f2", "<f4", "<f8", "<u2", "<i4", "<i8", "|u1", "|i1", "|b1")}
CHUNK_BYTES, _PIECE = 64 * 2**20, 2**20
_MAX_EXTENT, _MAX_RANK, _MAX_METADATA, _MAX_CHUNKS = 2**40, 8, 2**20, 2**20
_LARGE_PART = 2**30


class ZarrArray:
  """One array, of which nothing but `.zarray` has been read.

  Attributes:
    leaf: its shape and dtype.

  Raises:
    UserError: there is none, or its metadata is damaged or of another kind than T5X writes.
  """

  def __init__(self, store: Store, name: str):
    self._store, self._name = store, name.rstrip("/")
    self._place = f"{store.path}, {self._name}"
    content = store.read(self._name + "/.zarray")
    try:
      if content is None:
        raise ValueError("it has no .zarray")
      if len(content) > _MAX_METADATA:
        raise ValueError(f".zarray has {len(content):,} bytes")
      self._metadata = json.loads(content)
      self._parse(self._metadata)
    except UserError:
      raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
      raise damaged(self._place, first_line(error), wanted="a zarr array, version 2") from error

  def read(self, index: Index | None = None) -> np.ndarray:
    """The array or a part of it; only the chunks that overlap the part are read.

    Raises:
      UserError: a chunk is missing or damaged.
    """
    spans = bounds(index, self.leaf.shape)
    ranges = [range(start // chunk, -(-stop // chunk)) if stop > start else range(0)
              for (start, stop), chunk in zip(spans, self._chunks, strict=True)]
    part: Any = None
    for position in itertools.product(*ranges):
      stored = [self._stored(position)]
      if part is None:
        # Only once there is a chunk, and of a large part also the last: a shape may be made up.
        part = self._empty(spans, tuple(chunks[-1] for chunks in ranges))
      source, target = [], []
      for where, extent, (start, stop) in zip(position, self._chunks, spans, strict=True):
        first, last = max(start, where * extent), min(stop, (where + 1) * extent)
        source.append(slice(first - where * extent, last - where * extent))
        target.append(slice(first - start, last - start))
      place = part[(*target, ...)]
      if place.shape == self._chunks and place.flags.c_contiguous:
        self._fill(position, stored, place)
      else:
        chunk = np.empty(self._chunks, self.leaf.dtype)
        self._fill(position, stored, chunk)
        place[...] = chunk[tuple(source)]
    return self._empty(spans, None) if part is None else part

  def _empty(self, spans: list[tuple[int, int]], last: tuple[int, ...] | None) -> np.ndarray:
    shape = [stop - start for start, stop in spans]
    if last is not None and Leaf(tuple(shape), self.leaf.dtype).nbytes > _LARGE_PART:
      self._stored(last)
    try:
      return empty(shape, self.leaf.dtype)
    except (MemoryError, ValueError) as error:
      raise damaged(self._place, f"shape {list(self.leaf.shape)}: {error}") from error

  def _parse(self, metadata: Mapping[str, Any]) -> None:
    shape, chunks, code = metadata["shape"], metadata["chunks"], metadata["dtype"]
    if metadata["zarr_format"] != 2 or metadata.get("order", "C") != "C" or metadata.get("filters"):
      raise ValueError("zarr_format 2, order C and no filters are what can be read")
    if code not in _DTYPES:
      raise ValueError(f"dtype {code!r} is none of {', '.join(_DTYPES)}")
    extents = [*shape, *chunks]
    if len(shape) != len(chunks) or len(shape) > _MAX_RANK or not all(
        type(x) is int and 0 <= x <= _MAX_EXTENT for x in extents) or 0 in chunks:
      raise ValueError(f"shape {shape} and chunks {chunks} are not those of an array")
    self.leaf = Leaf(tuple(shape), _DTYPES[code])
    self._chunks = tuple(chunks)
    self._chunk_bytes = Leaf(self._chunks, self.leaf.dtype).nbytes
    if self._chunk_bytes > max(2 * self.leaf.nbytes, CHUNK_BYTES):
      raise ValueError(f"chunks {chunks} are larger than the array {shape}")
    if self.leaf.size > _MAX_CHUNKS * self._chunk_bytes // self.leaf.dtype.itemsize:
      raise ValueError(f"chunks {chunks} of {shape} are more than {_MAX_CHUNKS:,}")
    self._separator = metadata.get("dimension_separator", ".")
    if self._separator not in (".", "/"):
      raise ValueError(f"dimension_separator {self._separator!r}")
    compressor = metadata.get("compressor")
    self._compressor = None if compressor is None else compressor["id"]
    if self._compressor not in (None, "gzip", "zlib", "zstd"):
      raise ValueError(f"compressor {self._compressor!r} is none of gzip, zlib, zstd")

  def _stored(self, position: tuple[int, ...]) -> bytes:
    name = self._chunk_name(position)
    stored = self._store.read(name)
    if stored is None:
      raise damaged(f"{self._store.path}, {name}", "this part of the array is missing",
                    wanted="every chunk; T5X leaves out only those that are all zeros, which "
                    "trained weights are not")
    return stored

  def _chunk_name(self, position: tuple[int, ...]) -> str:
    return f"{self._name}/{self._separator.join(map(str, position)) or '0'}"

  def _fill(self, position: tuple[int, ...], waiting: list[bytes], chunk: np.ndarray) -> None:
    """Decodes into `chunk`, contiguous and of a chunk's shape, and never more than it.

    Args:
      waiting: the stored bytes, taken out of the list so that they can be freed.
    """
    target = chunk.reshape(-1).view(np.uint8)
    try:
      if self._compressor in ("gzip", "zlib"):
        _inflate(waiting.pop(), target.data)
      elif self._compressor == "zstd":
        if (bound := decoded_bound(waiting[0])) > target.size + 2**17:
          raise ValueError(f"up to {bound:,} bytes in a chunk of {target.size:,}")
        _zstandard(waiting, target)
      elif len(waiting[0]) != target.size:
        raise ValueError(f"a chunk of {target.size:,} bytes holds {len(waiting[0]):,}")
      else:
        target[:] = np.frombuffer(waiting.pop(), np.uint8)
    except (ValueError, zlib.error) as error:
      place = f"{self._store.path}, {self._chunk_name(position)}"
      raise damaged(place, first_line(error)) from error


def write(store_spec: Mapping[str, Any], name: str, array: np.ndarray,
          compressor: Mapping[str, Any], chunk_bytes: int = CHUNK_BYTES) -> dict[str, Any]:
  """Writes one array below a store; the metadata that T5X repeats in its index."""
  metadata = {"chunks": list(chunk_shape(array.shape, array.dtype.itemsize, chunk_bytes)),
              "compressor": dict(compressor), "shape": list(array.shape)}
  spec = {"driver": "zarr", "dtype": array.dtype.name, "metadata": metadata,
          "kvstore": dict(store_spec) | {"path": store_spec.get("path", "") + name + "/"},
          "store_data_equal_to_fill_value": True}
  # Waiting for the disk after every small file would take longer than writing them.
  context = ts.Context({"file_io_sync": False})
  array_there = ts.open(spec, create=True, delete_existing=True, context=context).result()
  array_there.write(array).result()
  return metadata


def chunk_shape(shape: tuple[int, ...], itemsize: int, limit: int) -> tuple[int, ...]:
  """The largest chunks of at most `limit` bytes that divide the array evenly, in whole rows."""
  chunks = [max(extent, 1) for extent in shape]
  for axis, extent in enumerate(chunks):
    rest = Leaf(tuple(chunks[:axis] + chunks[axis + 1:]), np.dtype(f"V{itemsize}")).nbytes
    pieces = next(n for n in range(1, extent + 1)
                  if n == extent or extent % n == 0 and extent // n * rest <= limit)
    chunks[axis] = extent // pieces
  return tuple(chunks)


def _inflate(stored: bytes, target: memoryview) -> None:
  """Decodes gzip or zlib a little at a time, and stops where the target is full."""
  decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
  position, waiting = 0, memoryview(stored)
  while not decoder.eof:
    piece = decoder.unconsumed_tail or bytes(waiting[:_PIECE])
    if not decoder.unconsumed_tail:
      waiting = waiting[_PIECE:]
    if not piece:
      raise ValueError("a chunk is truncated")
    content = decoder.decompress(piece, _PIECE)
    if position + len(content) > len(target):
      raise ValueError(f"a chunk of {len(target):,} bytes holds more")
    target[position:position + len(content)] = content
    position += len(content)
  if position != len(target):
    raise ValueError(f"a chunk of {len(target):,} bytes holds {position:,}")


def _zstandard(stored: list[bytes], target: np.ndarray) -> None:
  """Decodes one frame, taken out of its list: as the only chunk of a tensorstore in memory."""
  context = ts.Context()
  store = ts.KvStore.open({"driver": "memory"}, context=context).result()
  size = target.size
  metadata = {"zarr_format": 2, "shape": [size], "chunks": [size], "dtype": "|u1", "order": "C",
              "compressor": ZSTANDARD, "filters": None, "fill_value": None}
  store.write(".zarray", json.dumps(metadata).encode()).result()
  store.write("0", stored.pop()).result()
  array = ts.open({"driver": "zarr", "kvstore": {"driver": "memory"}}, context=context).result()
  ts.array(target).write(array).result()
