"""Mesh TensorFlow's checkpoints: the original releases of T5, T5 1.1, LM-adapted T5 and mT5.

A checkpoint is a prefix: `model.ckpt-1000000.index`, `.meta` and `.data-00000-of-00002`, ... Its
variables are T5X's in all but their names; kernels are (in, out) and the relative bias is
[heads, buckets], so nothing is transposed. `_slot_` variables are Adafactor's. T5 1.0 calls its
norms `layer_norm` and `final_layer_norm`, later releases call both `rms_norm`.
(Names: google-research/text-to-text-transfer-transformer and T5X's `checkpoint_importer.py`.)

Only here is a checkpoint read with TensorFlow, which is imported when one is opened.
"""

import glob
import os
import pathlib
import re
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import architecture
from prompt_tuning.checkpoints.leaves import DTYPES, Format, Index, Leaf, damaged
from prompt_tuning.disk import first_line
from prompt_tuning.errors import UserError

_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
_NORMS = {"encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
          "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm",
                      "pre_mlp_layer_norm")}
_IGNORED = re.compile(r"global_step|.*_slot_(v|vr|vc|m)")
_SUBLAYER = re.compile(r"(encoder|decoder)/block_(\d{3,6})/layer_00([012])/(.+)")
_BIAS = "SelfAttention/relative_attention_bias"
_STEP = re.compile(r"\.ckpt-(\d+)$")


def our_name(name: str) -> str | None:
  """A variable's name -> ours, unstacked; None: no T5 of one bias a stack has it."""
  if name == "shared/embedding":
    return "token_embedder/embedding"
  if name == "decoder/logits/kernel":
    return "decoder/logits_dense/kernel"
  if found := re.fullmatch(r"(encoder|decoder)/(final_layer_norm|rms_norm)/scale", name):
    return f"{found[1]}/{found[1]}_norm/scale"
  if not (found := _SUBLAYER.fullmatch(name)):
    return None
  stack, block, layer, rest = found[1], int(found[2]), int(found[3]), found[4]
  here = f"{stack}/layers_{block}"
  if rest == _BIAS:
    return f"{stack}/relpos_bias/rel_embedding" if block == layer == 0 else None
  if rest in ("layer_norm/scale", "rms_norm/scale"):
    norms = _NORMS[stack]
    return f"{here}/{norms[layer]}/scale" if layer < len(norms) else None
  module, _, kernel = rest.partition("/")
  if module == "DenseReluDense" and kernel in ("wi/kernel", "wi_0/kernel", "wi_1/kernel",
                                               "wo/kernel"):
    return f"{here}/mlp/{kernel}"
  if kernel in _ATTENTION and module in ("SelfAttention", "EncDecAttention"):
    ours = "encoder_decoder_attention" if module == "EncDecAttention" else (
      "attention" if stack == "encoder" else "self_attention")
    return f"{here}/{ours}/{_ATTENTION[kernel]}/kernel"
  return None


def prefix_of(path: str) -> str | None:
  """The prefix that a path names: itself, its `.index`, or the newest in a folder."""
  if path.endswith(".index") and os.path.isfile(path):
    return path.removesuffix(".index")
  if os.path.isfile(path + ".index"):
    return path
  steps = {int(found[1]): prefix for index in glob.glob(glob.escape(path) + "/*.ckpt-*.index")
           if (found := _STEP.search(prefix := index.removesuffix(".index")))}
  return steps[max(steps)] if steps else None


class MeshTFReader:
  """As `leaves.Reader`. TensorFlow reads a variable whole, so a part costs as much as the leaf."""

  format = "mesh_tf"

  def __init__(self, path: str):
    """Raises:
      UserError: it is not there, damaged, or its layers have biases of their own.
    """
    prefix = prefix_of(path)
    if prefix is None:
      raise UserError("There is no Mesh TensorFlow checkpoint", found=path,
                      wanted="a prefix such as .../model.ckpt-1000000, or its folder",
                      fix="copy the .index, .meta and .data files")
    self.path, self._prefix = path, prefix
    self._variables, self._reader = _open(prefix)
    self.ignored: dict[str, Leaf] = {}
    self.leaves: dict[str, Leaf] = {}
    self._names: dict[str, str] = {}
    for name, leaf in sorted(self._variables.items()):
      if _IGNORED.fullmatch(name):
        self.ignored[name] = leaf
        continue
      if name.endswith(_BIAS) and our_name(name) is None:
        raise UserError("Each layer of this checkpoint has a relative bias of its own",
                        found=f"{path}: {name}", wanted="one bias a stack",
                        fix="use a T5, T5 1.1 or mT5")
      ours = our_name(name) or name
      if ours in self.leaves or leaf.dtype not in DTYPES.values():
        raise damaged(path, f"{name} is {leaf.dtype} {list(leaf.shape)}, as {ours}",
                      wanted="each weight once, in floats")
      self.leaves[ours], self._names[ours] = leaf, name
    self.config = architecture.infer(self.leaves)
    step = _STEP.search(prefix)
    self.metadata: dict[str, Any] = {"from": path} | ({"step": int(step[1])} if step else {})

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    theirs = self._names[name]
    try:
      array = np.asarray(self._reader.get_tensor(theirs))
    except Exception as error:  # TensorFlow raises its own kinds.
      raise damaged(self._prefix, f"{theirs}: {first_line(error)}") from error
    if array.shape != self.leaves[name].shape:
      raise damaged(self._prefix, f"{theirs} is {array.shape}, not {self.leaves[name].shape}")
    # A part of it must not keep all of it in memory.
    return array if index is None else array[index].copy()


def _open(prefix: str) -> tuple[dict[str, Leaf], Any]:
  """name -> leaf of every variable, and TensorFlow's reader."""
  # Its start-up notes would come between a table's lines.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import tensorflow as tf

  where = pathlib.Path(prefix)
  data = glob.glob(glob.escape(prefix) + ".data-*-of-*")
  for file in [*data, prefix + ".index"]:
    if os.path.realpath(os.path.dirname(file)) != os.path.dirname(os.path.realpath(file)):
      raise damaged(prefix, f"{file} is a link out of its folder",
                    fix="do not use this checkpoint, or copy the files that it links to into it")
  size = sum(os.path.getsize(file) for file in data)
  try:
    reader = tf.train.load_checkpoint(str(where.absolute()))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    leaves = {name: Leaf(tuple(shape), np.dtype(dtypes[name].as_numpy_dtype))
              for name, shape in shapes.items()}
  except Exception as error:  # TensorFlow raises its own kinds, and numpy for odd types.
    raise damaged(prefix, first_line(error),
                  fix="copy the .index and every .data file again") from error
  # TensorFlow allocates what an entry declares before it reads.
  for name, leaf in leaves.items():
    if min(leaf.shape, default=1) < 0 or leaf.nbytes > size:
      raise damaged(prefix, f"{name} declares {leaf.nbytes:,} of {size:,} bytes")
  return leaves, reader


def matches(path: str) -> bool:
  """Whether a path is a prefix of a TensorFlow checkpoint, or a folder with one."""
  return prefix_of(path) is not None


FORMAT = Format(name="mesh_tf", title="Mesh TensorFlow (original T5 releases)", matches=matches,
                open=MeshTFReader)
