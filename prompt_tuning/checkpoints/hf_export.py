"""Writes a T5 as transformers loads it: config.json, and safetensors in shards of 5 GB."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import hf_files, hf_names, safetensors_file
from prompt_tuning.checkpoints.hf_names import Entry
from prompt_tuning.checkpoints.leaves import Leaf, Reader, dtype_of
from prompt_tuning.disk import new_folder, report_full
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config

SHARD_BYTES = 5 * 10**9
# Names of what is written.
FILES = r"config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"


def write(path: str, source: Reader, *, config: T5Config, metadata: Mapping[str, Any],
          dtype: str | None = None) -> None:
  """As `leaves.Writer`; `source` is unstacked.

  Args:
    metadata: `model_type` is taken: `t5` (also of ByT5) or `mt5`.

  Raises:
    UserError: a leaf is missing or is none of a T5; transformers has no such T5; the folder holds
      other things; no space left.
  """
  # transformers never scales an mT5's output.
  untied_kind = "mt5" if metadata.get("model_type") == "mt5" else "t5"
  kind = "t5" if config.logits_via_embedding else untied_kind
  text = json.dumps(hf_names.config_to(config, kind), indent=2, sort_keys=True) + "\n"
  entries = hf_names.table(config)
  _check_leaves(source, entries)
  _check_folder(pathlib.Path(path))
  cast = dtype_of(dtype)
  plan = {entry.theirs: entry for entry in entries}
  leaves = {entry.theirs: Leaf(entry.their_shape, cast or source.leaves[entry.ours].dtype)
            for entry in entries}

  def read(name: str) -> np.ndarray:
    array = source.read(plan[name].ours).astype(leaves[name].dtype, copy=False)
    return np.ascontiguousarray(array.T) if plan[name].transposed else array

  with report_full("a Hugging Face checkpoint", pathlib.Path(path), "run the same command again"):
    with new_folder(pathlib.Path(path)) as partial:
      (partial / hf_files.CONFIG).write_text(text, encoding="utf-8")
      shards = _shards(leaves)
      for name, part in shards.items():
        safetensors_file.write(partial / name, part, read, {"format": "pt"})
      if len(shards) > 1:
        index = {"metadata": {"total_size": sum(leaf.nbytes for leaf in leaves.values())},
                 "weight_map": {tensor: name for name, part in shards.items() for tensor in part}}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n",
                                                              encoding="utf-8")


def _shards(leaves: Mapping[str, Leaf]) -> dict[str, dict[str, Leaf]]:
  """File name -> its leaves, none above SHARD_BYTES that could be smaller."""
  parts: list[dict[str, Leaf]] = [{}]
  filled = 0
  for name, leaf in leaves.items():
    if parts[-1] and filled + leaf.nbytes > SHARD_BYTES:
      parts.append({})
      filled = 0
    parts[-1][name] = leaf
    filled += leaf.nbytes
  if len(parts) == 1:
    return {"model.safetensors": parts[0]}
  return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part
          for i, part in enumerate(parts, start=1)}


def _check_leaves(source: Reader, entries: list[Entry]) -> None:
  wanted = {entry.ours: entry.shape for entry in entries}
  missing = sorted(wanted.keys() - source.leaves.keys())
  unused = sorted(source.leaves.keys() - wanted.keys())
  wrong = [f"{name} {list(source.leaves[name].shape)}, not {list(shape)}"
           for name, shape in wanted.items()
           if name in source.leaves and source.leaves[name].shape != shape]
  if missing or unused or wrong:
    raise UserError("These leaves are not those of a T5 of this architecture",
                    found=f"{source.path}: missing {missing[:3]} ({len(missing)}), unused "
                    f"{unused[:3]} ({len(unused)}), misshapen {wrong[:3]}",
                    wanted=f"{len(wanted)} leaves", fix="give the architecture of the checkpoint")


def _check_folder(path: pathlib.Path) -> None:
  if path.is_file():
    raise UserError("A Hugging Face checkpoint is a folder", found=f"{path} (a file)",
                    wanted="a folder that is new, or holds a checkpoint", fix="give another path")
  others = [name for name in (os.listdir(path) if path.is_dir() else [])
            if not re.fullmatch(FILES, name)]
  if others:
    raise UserError("The folder holds other things, which would be lost",
                    found=f"{path}: {sorted(others)[:4]}", wanted="a new folder",
                    fix="give another path, and copy what the tokenizer needs into it")
