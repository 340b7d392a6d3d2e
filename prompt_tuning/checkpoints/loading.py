"""Weights for a model from any checkpoint: `INITIAL_CHECKPOINT_PATH`.

`check` reads names, shapes and metadata; `restore` then reads every leaf part by part into the
device buffers that hold it, in the dtype that the model wants. There is never a second copy of the
model on the host: what is alive besides the device buffers is one part of one leaf.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prompt_tuning import host_memory, trees
from prompt_tuning.checkpoints import architecture, backbone, formats, leaf_table
from prompt_tuning.checkpoints.leaves import Format, Leaf, Reader, bounds, empty
from prompt_tuning.checkpoints.stacking import in_layout, is_stacked, unstacked_leaves
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.quantization import Quantized, quantize, scheme_like, summed_axis
from prompt_tuning.t5 import T5

_LARGE = 2**24


def find(path: str, setting: str = "INITIAL_CHECKPOINT_PATH") -> Format:
  """The format of a checkpoint.

  Args:
    setting: what the path was given as, for the messages.

  Raises:
    UserError: there is no such checkpoint.
  """
  found = formats.detect(path)
  if found is not None:
    return found
  names = backbone.shipped_models()
  folder = pathlib.Path(path)
  what = f"{path} (a file)" if folder.is_file() else (
    f"{path} (a folder with {_some_names(folder)})" if folder.is_dir()
    else f"{path} (does not exist)")
  titles = "; ".join(form.title for form in formats.formats().values())
  raise UserError(f"{setting} is not a checkpoint", found=what,
                  wanted=f"a shipped model ({', '.join(names)}), the MODEL_DIR of a run that "
                  f"trained a backbone, or a checkpoint in one of these formats: {titles}",
                  fix=nearest(path, names))


def check(path: str, config: T5Config, vocabulary: str | None) -> Reader:
  """Opens a checkpoint, and checks everything that can be without reading weights.

  Args:
    vocabulary: fingerprint of the vocabulary in use; None skips that check.

  Raises:
    UserError: no checkpoint; its architecture, its parameters or its vocabulary are others.
  """
  form = find(path)
  reader = form.open(path)
  if reader.config is not None:
    architecture.check(architecture.as_json(reader.config), config,
                       from_shapes=not form.full_config)
  theirs = reader.metadata.get("vocabulary")
  if vocabulary and theirs and theirs != vocabulary:
    raise UserError("The checkpoint was trained with another vocabulary",
                    found=f"fingerprint {vocabulary} in use", wanted=f"fingerprint {theirs}",
                    fix="set VOCABULARY to the checkpoint's vocabulary")
  expected = expected_leaves(config)
  source = in_layout(reader, is_stacked(expected))
  leaf_table.check(leaf_table.compare(source.leaves, leaf_table.in_dtype(source, expected)))
  return reader


@functools.lru_cache(maxsize=8)
def expected_leaves(config: T5Config) -> Mapping[str, Leaf]:
  """The model's leaves by name, in `param_dtype`; nothing is allocated."""
  # The stacked model is traced in the time of one layer.
  model = PromptedT5(T5(dataclasses.replace(config, scan_layers=True)))
  stacked = leaf_table.of_tree(trees.flatten(abstract_params(model)["backbone"]))
  return stacked if config.scan_layers else unstacked_leaves(stacked)


def restore(reader: Reader, expected: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the weights into the layout, shapes, dtypes and shardings of `expected`.

  Args:
    expected: a tree of `jax.ShapeDtypeStruct`s; those without a sharding go to the first device.

  Raises:
    UserError: leaves are missing, unused or misshapen, or the file is damaged.
  """
  wanted = trees.flatten(expected)
  source = in_layout(reader, is_stacked(wanted))
  leaf_table.check(leaf_table.compare(source.leaves, leaf_table.of_tree(wanted)))
  return trees.unflatten({
    name: _place_quantized(source, name, leaf) if isinstance(leaf, Quantized)
    else _place(source, name, leaf) for name, leaf in wanted.items()})


def _place_quantized(source: Reader, name: str, leaf: Quantized) -> Quantized:
  """Quantises on the host, layer by layer: only few-bit numbers are there whole."""
  axis = summed_axis(name)
  scheme = scheme_like(leaf, axis)
  made = Quantized(*(empty(part.shape, part.dtype) for part in (leaf.values, leaf.scales)))
  # Layers of a stack, or blocks of rows of one matrix.
  size = max(_LARGE * made.shape[0] // source.leaves[name].nbytes, 1)
  whole = len(made.shape) == 2 and axis == -2
  for start in range(0, made.shape[0], made.shape[0] if whole else size):
    span = slice(None) if whole else slice(start, start + size)
    index = (span, *(slice(None),) * (len(made.shape) - 1))
    part = quantize(source.read(name, index), scheme, axis, np)
    made.values[span], made.scales[span] = part.values, part.scales
  return Quantized(*(_put(array, part.sharding) for array, part in (
    (made.values, leaf.values), (made.scales, leaf.scales))))


def _put(array: np.ndarray, sharding: Any) -> jax.Array:
  return jax.block_until_ready(jax.make_array_from_callback(
    array.shape, sharding or _first_device(), lambda index: array[index]))


def _first_device() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _place(source: Reader, name: str, leaf: Any) -> jax.Array:
  sharding = getattr(leaf, "sharding", None) or _first_device()
  shape = tuple(leaf.shape)
  indices = sharding.addressable_devices_indices_map(shape).values()
  parts = {str(index): index for index in indices}
  read: dict[str, np.ndarray] = {}
  if sum(_size(index, shape) for index in parts.values()) == source.leaves[name].size:
    # All of the leaf is needed here: read once, since a chunk of a file may hold many parts.
    whole = _cast(source.read(name), leaf.dtype)
    read = {key: whole[index] for key, index in parts.items()}

  def part(index: Any) -> np.ndarray:
    key = str(index)
    if key not in read:
      read.clear()
      read[key] = _cast(source.read(name, index), leaf.dtype)
    return read[key]

  # Transfers end before the next leaf is read: else several leaves are on the host at a time.
  placed = jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))
  if source.leaves[name].nbytes > _LARGE:
    host_memory.return_unused_memory()  # glibc would keep what compressed chunks took.
  return placed


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
  if array.dtype == dtype:
    return array
  target = empty(array.shape, dtype)
  target[...] = array
  return target


def _size(index: Any, shape: tuple[int, ...]) -> int:
  size = 1
  for start, stop in bounds(index, shape):
    size *= stop - start
  return size


def _some_names(folder: pathlib.Path) -> str:
  names = sorted(path.name for path in folder.iterdir())
  return (", ".join(names[:4]) + (", ..." if len(names) > 4 else "")) or "nothing in it"
