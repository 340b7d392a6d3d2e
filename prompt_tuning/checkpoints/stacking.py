"""One layout of a checkpoint's layers seen as the other, without reading anything twice.

  unstacked  encoder/layers_0/mlp/wo/kernel [F, D], encoder/layers_1/...
  stacked    encoder/layers/mlp/wo/kernel [L, F, D]

A part of a stacked leaf reads the rows of its own layers only.
"""

import re
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import numpy as np

from prompt_tuning.checkpoints.leaves import Index, Leaf, Reader, bounds, damaged, empty
from prompt_tuning.interfaces import T5Config

_NUMBERED = re.compile(r"(.*/layers)_(0|[1-9]\d{0,8})/(.*)")
_STACKED = "/layers/"


def is_stacked(names: Any) -> bool | None:
  """Whether names are of the stacked layout; None: there are no layers."""
  for name in names:
    if _STACKED in name:
      return True
    if _NUMBERED.fullmatch(name):
      return False
  return None


def stacked_name(name: str) -> str:
  """`encoder/layers_3/mlp/wo/kernel` -> `encoder/layers_*/mlp/wo/kernel`; others as they are."""
  found = _NUMBERED.fullmatch(name)
  return f"{found[1]}_*/{found[3]}" if found else name


def in_layout(source: Reader, stacked: bool | None) -> Reader:
  """`source` in one layout; None: as it is.

  Raises:
    UserError: layers are missing, or differ in shape.
  """
  if stacked is None or is_stacked(source.leaves) in (stacked, None):
    return source
  return Stacked(source) if stacked else Unstacked(source)


def unstacked_leaves(leaves: Mapping[str, Leaf], path: str = "") -> dict[str, Leaf]:
  """Stacked leaves as unstacked ones; `path` is for the message where one has no layers."""
  return {own: leaves[name] if layer is None else Leaf(leaves[name].shape[1:], leaves[name].dtype)
          for own, (name, layer) in _rows(leaves, path).items()}


def _rows(leaves: Mapping[str, Leaf], path: str) -> dict[str, tuple[str, int | None]]:
  """Unstacked name -> stacked name and layer; None where the leaf is no layer's."""
  rows: dict[str, tuple[str, int | None]] = {}
  for name, leaf in leaves.items():
    head, found, tail = name.partition(_STACKED)
    if not found:
      rows[name] = (name, None)
    elif not leaf.shape or leaf.shape[0] > 10_000:
      raise damaged(path, f"{name} has shape {list(leaf.shape)}",
                    wanted="layers on the first axis")
    else:
      rows |= {f"{head}/layers_{i}/{tail}": (name, i) for i in range(leaf.shape[0])}
  return rows


class _View:
  """What both views take over from the reader behind them."""

  leaves: dict[str, Leaf]

  def __init__(self, source: Reader):
    self._source = source
    self.format, self.path = source.format, source.path
    self.ignored, self.metadata = source.ignored, source.metadata
    self.config: T5Config | None = source.config


class Stacked(_View):
  """An unstacked reader as a stacked one."""

  def __init__(self, source: Reader):
    super().__init__(source)
    layers: dict[str, dict[int, str]] = {}
    self.leaves = {}
    for name, leaf in source.leaves.items():
      if found := _NUMBERED.fullmatch(name):
        layers.setdefault(f"{found[1]}/{found[3]}", {})[int(found[2])] = name
      else:
        self.leaves[name] = leaf
    self._layers = {name: self._in_order(name, rows) for name, rows in layers.items()}
    for name, rows in self._layers.items():
      leaf = source.leaves[rows[0]]
      self.leaves[name] = Leaf((len(rows), *leaf.shape), leaf.dtype)

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    if name not in self._layers:
      return self._source.read(name, index)
    leaf = self.leaves[name]
    spans = bounds(index, leaf.shape)
    (start, stop), rest = spans[0], tuple(slice(*span) for span in spans[1:])
    part = empty([end - begin for begin, end in spans], leaf.dtype)

    def fill(layer: int) -> None:
      part[layer - start] = self._source.read(self._layers[name][layer], rest)

    # What a reader decompresses or fetches from a bucket is quicker with several at work.
    threads = getattr(self._source, "threads", 1)
    if threads == 1:
      for layer in range(start, stop):
        fill(layer)
    else:
      with futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(start, stop)))
    return part

  def _in_order(self, name: str, rows: dict[int, str]) -> list[str]:
    missing = sorted(set(range(max(rows) + 1)) - rows.keys()) if max(rows) < 10_000 else [0]
    leaves = {self._source.leaves[row] for row in rows.values()}
    if missing or len(leaves) > 1:
      why = f"layers {missing[:4]} are missing" if missing else (
        "its layers differ: " + ", ".join(sorted(f"{x.dtype} {list(x.shape)}" for x in leaves)))
      raise damaged(self.path, f"{name}: {why}", wanted="every layer of a stack, all alike")
    return [rows[i] for i in range(len(rows))]


class Unstacked(_View):
  """A stacked reader as an unstacked one."""

  def __init__(self, source: Reader):
    super().__init__(source)
    self._rows = _rows(source.leaves, self.path)
    self.leaves = unstacked_leaves(source.leaves, self.path)

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    stacked, layer = self._rows[name]
    if layer is None:
      return self._source.read(name, index)
    rest = tuple(slice(*span) for span in bounds(index, self.leaves[name].shape))
    return self._source.read(stacked, (slice(layer, layer + 1), *rest))[0]
