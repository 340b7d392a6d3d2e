"""T5X's trees of parameters and our names (Raffel et al. 2020; T5X's `examples/t5/network.py`).

T5X's names below `target/` are ours, unstacked: `encoder/layers_0/attention/query/kernel`. Its
scanned network (`examples/scalable_t5`) differs in three ways:

  encoder/encoder/mlp/wo/kernel [F, L, D]          encoder/layers/mlp/wo/kernel [L, F, D]
  encoder/encoder/.../scale [D, L]                 encoder/layers/.../scale [L, D]
  encoder/encoder/relpos_bias/rel_embedding        encoder/relpos_bias/rel_embedding [H, buckets]
    [H, L, buckets], one a layer

One bias a layer (umT5 has them) is another architecture; a scanned T5 whose layers have equal
biases is read, and ours are written as such.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from prompt_tuning.checkpoints.architecture import infer
from prompt_tuning.checkpoints.leaves import Index, Leaf, Reader, damaged
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config

THREADS = 4
STACKS = ("encoder", "decoder")
# Where the paper's code and ours have a prompt in T5X's tree; it is no part of the backbone.
PROMPT = "encoder/prompt/prompt/"
_BIAS = "relpos_bias/rel_embedding"


class Array(Protocol):
  """An open array: `leaf`, and `read` of a part."""

  leaf: Leaf

  def read(self, index: Index | None = None) -> np.ndarray: ...


class T5XReader:
  """The arrays below T5X's `target/`, under our names; prompts in it, and the rest of its train
  state, are ignored.

  `leaves` are stacked where the checkpoint is scanned.

  Attributes:
    threads: how many reads may run at a time, each with a chunk in memory.
  """

  threads = THREADS

  def __init__(self, form: str, path: str, arrays: Mapping[str, Array],
               state: Mapping[str, Array], metadata: Mapping[str, object]):
    """Args:
      arrays: by T5X's names below `target/`.
      state: the other arrays of the train state, `state/param_states/...`.

    Raises:
      UserError: there is no array, or each layer has a bias of its own.
    """
    if not arrays:
      raise damaged(path, "no parameters", wanted="parameters below target/",
                    fix="give the folder of one step, e.g. .../checkpoint_1100000")
    self.format, self.path = form, path
    self.state, self.metadata = dict(state), dict(metadata)
    prompt = {name for name in arrays if name.startswith(PROMPT)}
    self.ignored = {name: array.leaf for name, array in state.items()} | {
      f"target/{name}": arrays[name].leaf for name in prompt}
    self._arrays = {name: array for name, array in arrays.items() if name not in prompt}
    # Our name -> T5X's, and the axis of its layers (None: none, or not stacked).
    self._sources: dict[str, tuple[str, int | None]] = {}
    self.leaves: dict[str, Leaf] = {}
    for name in sorted(self._arrays):
      self._add(name, arrays[name].leaf)
    self.config = infer(self.leaves)

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    source, axis = self._sources[name]
    array = self._arrays[source]
    if axis is None:
      return array.read(index)
    shape = self.leaves[name].shape
    index = tuple(slice(None) for _ in shape) if index is None else index
    if _is_bias(source):
      part = array.read((index[0], slice(0, 1), index[1]))
      return part[:, 0]
    layers, *rest = index
    return np.moveaxis(array.read((*rest[:axis], layers, *rest[axis:])), axis, 0)

  def _add(self, name: str, leaf: Leaf) -> None:
    stack, _, tail = name.partition("/")
    inner, _, tail = tail.partition("/")
    if stack not in STACKS or inner != stack or len(leaf.shape) < 2:
      self._sources[name], self.leaves[name] = (name, None), leaf
      return
    if _is_bias(name):
      self._check_equal_biases(name)
      ours, shape = f"{stack}/{_BIAS}", (leaf.shape[0], *leaf.shape[2:])
    else:
      ours = f"{stack}/layers/{tail}"
      shape = (leaf.shape[1], leaf.shape[0], *leaf.shape[2:])
    self._sources[ours], self.leaves[ours] = (name, 1), Leaf(shape, leaf.dtype)

  def _check_equal_biases(self, name: str) -> None:
    leaf = self._arrays[name].leaf
    if len(leaf.shape) != 3 or leaf.nbytes > 2**28:
      raise damaged(self.path, f"{name} has shape {list(leaf.shape)}", wanted="[H, L, buckets]",
                    fix="do not use this checkpoint")
    bias = self._arrays[name].read()
    if not (bias == bias[:, :1]).all():
      raise UserError("Each layer of this checkpoint has a relative bias of its own",
                      found=f"{self.path}: {name} {list(leaf.shape)} differs between layers",
                      wanted="one bias a stack, as T5, T5 1.1, mT5 and ByT5 have it",
                      fix="umT5 and Pile-T5 are other architectures; use a T5, mT5 or ByT5")


class Scanned:
  """Arrays of a stacked reader as T5X's scanned network names and lays them out."""

  def __init__(self, source: Reader, config: T5Config):
    self._source = source
    self.leaves: dict[str, Leaf] = {}
    self._ours: dict[str, str] = {}
    layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    for name, leaf in source.leaves.items():
      stack, _, tail = name.partition("/")
      shape = leaf.shape
      if tail == _BIAS:
        theirs, shape = f"{stack}/{stack}/{tail}", (shape[0], layers[stack], shape[1])
      elif tail.startswith("layers/"):
        theirs = f"{stack}/{stack}/{tail.removeprefix('layers/')}"
        shape = (shape[1], shape[0], *shape[2:])
      else:
        theirs = name
      self.leaves[theirs], self._ours[theirs] = Leaf(shape, leaf.dtype), name

  def read(self, name: str) -> np.ndarray:
    ours = self._ours[name]
    array = self._source.read(ours)
    if name == ours:
      return array
    if _is_bias(name):
      return np.repeat(array[:, None], self.leaves[name].shape[1], axis=1)
    return np.ascontiguousarray(np.moveaxis(array, 0, 1))


def _is_bias(name: str) -> bool:
  return name.endswith("/" + _BIAS)
