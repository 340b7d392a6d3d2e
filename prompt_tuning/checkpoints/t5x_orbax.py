"""T5X's checkpoints of today, written by Orbax: `checkpoint_<step>/state/`.

Every leaf of `{target, state}` is a zarr array called by its path with dots, packed into one
database (OCDBT) with zstandard chunks, or as plain folders where Orbax was told so. `_METADATA` is
the tree in JSON. What is written here, Orbax and T5X read.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import storage, zarr_arrays
from prompt_tuning.checkpoints.leaves import (
  Format,
  Reader,
  cast_reader,
  damaged,
  dtype_of,
)
from prompt_tuning.checkpoints.stacking import is_stacked
from prompt_tuning.checkpoints.t5x_names import THREADS, Array, Scanned, T5XReader
from prompt_tuning.disk import new_folder, report_full
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config

TREE, DATABASE, STATE = "_METADATA", "manifest.ocdbt", "state"
_ARRAY = "/.zarray"
# Small, because a chunk of zstandard is decoded as a whole beside the leaf that it belongs to.
_CHUNK_BYTES = 16 * 2**20


def folder_of(path: str) -> str | None:
  """The folder with the arrays that a path (a step, or its `state`) names, or None."""
  for folder in (storage.join(path, STATE), path.rstrip("/")):
    if any(storage.exists(storage.join(folder, name)) for name in (TREE, DATABASE)):
      return folder
  return None


def matches(path: str) -> bool:
  return folder_of(path) is not None


def open_checkpoint(path: str) -> T5XReader:
  """Reads the shapes of all arrays, and the step.

  Raises:
    UserError: the database is damaged, or holds no parameters.
  """
  folder = folder_of(path) or path
  packed = storage.exists(storage.join(folder, DATABASE))
  store = storage.Store(folder, packed=packed)
  names = store.names()
  if any(name.endswith("/zarr.json") for name in names):
    raise damaged(folder, "arrays of zarr, version 3", wanted="version 2, which T5X writes",
                  fix="write it anew with use_zarr3=False")
  arrays: dict[str, Any] = {}
  others: dict[str, Any] = {}
  metadata: dict[str, Any] = {"from": path}
  found = [key.removesuffix(_ARRAY) for key in names if key.endswith(_ARRAY)]
  # A bucket answers many at a time as quickly as one.
  with futures.ThreadPoolExecutor(THREADS) as pool:
    opened = list(pool.map(functools.partial(zarr_arrays.ZarrArray, store), found))
  for name, array in zip(found, opened, strict=True):
    top, _, rest = name.replace(".", "/").partition("/")
    if top == "target":
      arrays[rest] = array
    else:
      others[f"{top}/{rest}"] = array
      if name == "state.step" and array.leaf.size == 1:
        metadata["step"] = int(array.read().reshape(()))
  return T5XReader(FORMAT.name, path, arrays, others, metadata)


def write(path: str, source: Reader, *, config: T5Config, metadata: Mapping[str, Any],
          dtype: str | None = None, state: Mapping[str, Array] | None = None) -> None:
  """As `leaves.Writer`. Stacked leaves become T5X's scanned layout.

  Args:
    state: what else of a train state is written (`T5XReader.state`); None: the step alone.

  Raises:
    UserError: no space is left; a bucket is named.
  """
  if path.startswith(storage.BUCKET):
    raise UserError("Orbax checkpoints are written to a disk only", found=path,
                    wanted="a local folder",
                    fix="write it locally and copy it: gcloud storage cp -r FOLDER gs://...")
  arrays: Any = Scanned(source, config) if is_stacked(source.leaves) else source
  read = cast_reader(arrays.read, dtype_of(dtype))
  where = pathlib.Path(path)
  with report_full("a checkpoint", where, "run the same command again"), \
      new_folder(where) as partial:
    folder = partial / STATE
    folder.mkdir()
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.absolute()}/"}}
    entries: dict[str, Any] = {}

    def store(name: str, array: np.ndarray, kind: str = "np.ndarray") -> None:
      zarr_arrays.write(spec, name.replace("/", "."), array, zarr_arrays.ZSTANDARD, _CHUNK_BYTES)
      _describe(entries, tuple(name.split("/")), kind)

    for name in sorted(arrays.leaves):
      store("target/" + name, read(name))
    for name, array in (state or {}).items():
      store(name, array.read())
    store("state/step", np.asarray(metadata.get("step", 0), np.int32), "scalar")
    (folder / TREE).write_text(json.dumps({
      "tree_metadata": entries, "use_ocdbt": True, "use_zarr3": False,
      "store_array_data_equal_to_fill_value": True, "custom_metadata": None}))


def _describe(entries: dict[str, Any], keys: tuple[str, ...], kind: str) -> None:
  """Adds a leaf to Orbax's tree; key type 2 is a dictionary's."""
  entries[str(keys)] = {
    "key_metadata": [{"key": key, "key_type": 2} for key in keys],
    "value_metadata": {"value_type": kind, "skip_deserialize": False}}


FORMAT = Format("t5x_orbax", "T5X (Orbax)", matches, open_checkpoint, write)
