"""The weights of a Hugging Face folder, whole or in shards, by PyTorch's names and in its layout.

  model.safetensors    or model.safetensors.index.json and its shards
  pytorch_model.bin    pickles: read by torch alone (`pickled.py`)
  flax_model.msgpack   of older repositories (`flax_msgpack.py`)

The first kind that is there is read. An index is not trusted: its files must lie in the folder.
"""

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from prompt_tuning.checkpoints import pickled
from prompt_tuning.checkpoints.flax_msgpack import FlaxFile, torch_name
from prompt_tuning.checkpoints.hub import file_in
from prompt_tuning.checkpoints.leaves import Index, Leaf, damaged, read_small
from prompt_tuning.checkpoints.safetensors_file import SafetensorsFile
from prompt_tuning.errors import UserError

CONFIG = "config.json"
# What says which vocabulary a checkpoint has.
PIECES = "spiece.model"
VOCABULARY = (PIECES, "tokenizer_config.json")
_MAX_INDEX = 1 << 26
_POINTER = b"version https://git-lfs"


class Tensors(Protocol):
  """Named arrays of a file, as `SafetensorsFile` has them."""

  leaves: dict[str, Leaf]

  def read(self, name: str, index: Index | None = None) -> np.ndarray: ...


class PickledFile:
  """A `.bin` file as `Tensors`."""

  def __init__(self, path: pathlib.Path):
    try:
      self._arrays = pickled.load(path)
    except (ValueError, OSError) as error:
      if isinstance(error, UserError):
        raise
      raise damaged(path, error) from error
    self.leaves = {name: Leaf(x.shape, x.dtype) for name, x in self._arrays.items()}

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    array = self._arrays[name]
    return np.array(array if index is None else array[index])


class Shards:
  """Several files as one."""

  def __init__(self, files: Sequence[Tensors]):
    self.leaves: dict[str, Leaf] = {}
    self._files: dict[str, Tensors] = {}
    for file in files:
      for name, leaf in file.leaves.items():
        if name in self.leaves:
          raise ValueError(f"two of its files hold {name}")
        self.leaves[name], self._files[name] = leaf, file

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    return self._files[name].read(name, index)


# (one file, how it is opened, name in an index -> name in `leaves`), the preferred kind first.
_KINDS: tuple[tuple[str, Callable[[pathlib.Path], Tensors], Callable[[str], str]], ...] = (
  ("model.safetensors", SafetensorsFile, str),
  ("pytorch_model.bin", PickledFile, str),
  ("flax_model.msgpack", FlaxFile, torch_name))


def is_checkpoint(names: Sequence[str]) -> bool:
  """Whether a folder with these files is a Hugging Face model whose weights are read."""
  return CONFIG in names and any(name in names or f"{name}.index.json" in names
                                 for name, _, _ in _KINDS)


def choose(names: Sequence[str]) -> list[str]:
  """Of a repository's files those that are read: one kind of weights, and what describes them."""
  kept = [name for name in (CONFIG, *VOCABULARY) if name in names]
  for single, _, _ in _KINDS:
    if single in names:
      return [*kept, single]
    stem, _, suffix = single.rpartition(".")
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
    if f"{single}.index.json" in names:
      return [*kept, f"{single}.index.json", *filter(shard.fullmatch, names)]
  return kept


def open_weights(folder: pathlib.Path) -> Tensors:
  """Looks at the weights; reads none.

  Raises:
    UserError: there are none, they are damaged or incomplete, or a file lies outside the folder.
  """
  for single, open_file, rename in _KINDS:
    if (folder / single).exists():
      return _open(open_file, folder, single)
    index = f"{single}.index.json"
    if (folder / index).exists():
      return _open_shards(open_file, rename, folder, index)
  there = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "no folder"
  raise UserError("This Hugging Face checkpoint has no weights that are read",
                  found=f"{folder}: {there}",
                  wanted=" or ".join(name for name, _, _ in _KINDS) + ", or an index of shards",
                  fix="fetch the weights too; TensorFlow's tf_model.h5 and Rust's rust_model.ot "
                  "are converted by transformers 4")


def _open_shards(open_file: Callable[[pathlib.Path], Tensors], rename: Callable[[str], str],
                 folder: pathlib.Path, index: str) -> Tensors:
  where = file_in(folder, index)
  try:
    places = json.loads(read_small(where, _MAX_INDEX))["weight_map"]
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
      raise ValueError("weight_map is not an object of file names")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    if isinstance(error, UserError):
      raise
    raise damaged(where, f"{type(error).__name__} {error}", wanted="an index of shards") from error
  names = sorted(set(places.values()))
  files = {name: _open(open_file, folder, name) for name in names}
  lost = [f"{name} in {file}" for name, file in places.items()
          if rename(name) not in files[file].leaves]
  if lost:
    raise damaged(where, f"it names {len(lost)} tensors that are not there: {lost[:3]}")
  try:
    return Shards(list(files.values()))
  except ValueError as error:
    raise damaged(where, error) from error


def _open(open_file: Callable[[pathlib.Path], Any], folder: pathlib.Path, name: str) -> Tensors:
  path = file_in(folder, name)
  try:
    with open(path, "rb") as file:
      start = file.read(len(_POINTER))
  except OSError as error:
    raise damaged(path, error.strerror or error) from error
  if start == _POINTER:
    raise UserError("The weights are not there yet", found=f"{path} is a Git LFS pointer",
                    wanted="the file that it stands for", fix="run `git lfs pull` in the folder")
  return open_file(path)
