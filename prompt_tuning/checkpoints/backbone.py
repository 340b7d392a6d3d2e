"""Our backbone format: a folder with `backbone.safetensors` and `backbone.json`.

`backbone.safetensors` holds one tensor a leaf under its stacked path (`encoder/layers/mlp/wo/kernel
[L, F, D]`), whatever layout the model in memory has. `backbone.json` holds the architecture, the
vocabulary's fingerprint and where the weights come from. The shipped models are such folders.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prompt_tuning import trees
from prompt_tuning.checkpoints import safetensors_file
from prompt_tuning.checkpoints.architecture import FIELDS, as_json
from prompt_tuning.checkpoints.leaves import (
  Format,
  Index,
  Leaf,
  MemoryReader,
  Reader,
  cast_reader,
  dtype_of,
  read_small,
)
from prompt_tuning.checkpoints.stacking import in_layout
from prompt_tuning.disk import new_folder, report_full
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config

SHIPPED = pathlib.Path(__file__).parent.parent / "pretrained"
WEIGHTS, METADATA = "backbone.safetensors", "backbone.json"
_MAX_METADATA = 2**20


def shipped_models() -> list[str]:
  return sorted(p.parent.name for p in SHIPPED.glob(f"*/{METADATA}"))


def folder_of(path: str) -> pathlib.Path | None:
  """The checkpoint that a path names (a shipped model, a folder, a MODEL_DIR), or None."""
  if path in shipped_models():
    return SHIPPED / path
  folder = pathlib.Path(path)
  for candidate in (folder, folder / "backbone"):
    if (candidate / METADATA).is_file():
      return candidate
  return None


class BackboneReader:
  """A checkpoint of ours.

  Raises:
    UserError: its metadata or its weights are missing or damaged.
  """

  format = "ours"

  def __init__(self, path: str):
    folder = folder_of(path) or pathlib.Path(path)
    self.path = path
    self.metadata, self.config = _read_metadata(folder)
    if not (folder / WEIGHTS).is_file():
      raise UserError("The checkpoint has no weights", found=f"{folder} without {WEIGHTS}",
                      wanted=f"{WEIGHTS} beside {METADATA}", fix="copy the whole folder")
    self._file = safetensors_file.SafetensorsFile(folder / WEIGHTS)
    self.leaves: Mapping[str, Leaf] = self._file.leaves
    self.ignored: Mapping[str, Leaf] = {}

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    return self._file.read(name, index)


def save(folder: pathlib.Path, params: Mapping[str, Any], config: T5Config, *, vocabulary: str,
         about: Mapping[str, Any], dtype: str = "float32") -> None:
  """Writes parameters in memory as a checkpoint folder; the old one is whole until the new one is.

  Args:
    params: the backbone's tree, stacked or not.
    vocabulary: its fingerprint.
    about: where the weights come from, for people.
    dtype: what is stored.

  Raises:
    UserError: the disk is full.
  """
  source = in_layout(MemoryReader(trees.flatten(params), config), True)
  write(str(folder), source, config=config, metadata={"vocabulary": vocabulary, **about},
        dtype=dtype)


def write(path: str, source: Reader, *, config: T5Config, metadata: Mapping[str, Any],
          dtype: str | None = None) -> None:
  """As `leaves.Writer`; leaves are stacked."""
  kind = dtype_of(dtype)
  read = cast_reader(source.read, kind)
  leaves = {name: Leaf(leaf.shape, kind or leaf.dtype)
            for name, leaf in sorted(source.leaves.items())}
  digest = hashlib.sha256()

  def hashed(name: str) -> np.ndarray:
    array = read(name)
    _hash(digest, name, array)
    return array

  folder = pathlib.Path(path)
  with report_full("a backbone", folder, "run the same command again"), \
      new_folder(folder) as partial:
    safetensors_file.write(partial / WEIGHTS, leaves, hashed)
    about = {"vocabulary": "", **metadata, "architecture": as_json(config),
             "fingerprint": digest.hexdigest()[:16],
             "dtype": "+".join(sorted({leaf.dtype.name for leaf in leaves.values()})),
             "parameters": sum(leaf.size for leaf in leaves.values())}
    (partial / METADATA).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def fingerprint(params: Mapping[str, Any]) -> str:
  """16 hex digits over names and values; the same for stacked and unstacked trees."""
  source = in_layout(MemoryReader(trees.flatten(params)), True)
  digest = hashlib.sha256()
  for name, array in _arrays(source):
    _hash(digest, name, array)
  return digest.hexdigest()[:16]


def _arrays(source: Reader) -> Iterator[tuple[str, np.ndarray]]:
  return ((name, source.read(name)) for name in sorted(source.leaves))


def _hash(digest: Any, name: str, array: np.ndarray) -> None:
  digest.update(name.encode())
  digest.update(np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8).data)


def _read_metadata(folder: pathlib.Path) -> tuple[dict[str, Any], T5Config]:
  path = folder / METADATA
  try:
    metadata = json.loads(read_small(path, _MAX_METADATA))
    if not {"architecture", "vocabulary"} <= metadata.keys():
      raise ValueError("keys `architecture` and `vocabulary` are missing")
    given = metadata["architecture"]
    config = T5Config(**{name: given[name] for name in FIELDS})
    return metadata, config
  except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
    if isinstance(error, UserError) and error.what.startswith("The checkpoint"):
      raise
    raise UserError(f"The checkpoint's {METADATA} cannot be read", found=f"{path}: {error}",
                    wanted="the JSON that a run wrote", fix="copy the checkpoint again") from error


FORMAT = Format("ours", "prompt_tuning's own (safetensors)", lambda path: bool(folder_of(path)),
                BackboneReader, write, stacked=True, full_config=True,
                files=f"{re.escape(METADATA)}|{re.escape(WEIGHTS)}")
