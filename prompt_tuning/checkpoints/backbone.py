"""Our backbone format: a folder with `backbone.safetensors` and `backbone.json`.

`backbone.safetensors` holds one tensor a leaf under its scanned path (`encoder/layers/mlp/wo/kernel
[L, F, D]`), whatever layout the model in memory has. `backbone.json` holds the architecture, the
vocabulary's fingerprint and where the weights come from. The shipped models are such folders.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from prompt_tuning import trees
from prompt_tuning.disk import report_full
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import T5Config

SHIPPED = pathlib.Path(__file__).parent.parent / "pretrained"
WEIGHTS, METADATA = "backbone.safetensors", "backbone.json"

# What decides whether weights fit a model; the rest (dropout, dtypes, remat) is the run's matter.
_ARCHITECTURE = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers",
                 "num_decoder_layers", "mlp_activations", "logits_via_embedding",
                 "relative_attention_num_buckets", "relative_attention_max_distance")


def shipped_models() -> list[str]:
  return sorted(p.parent.name for p in SHIPPED.glob(f"*/{METADATA}"))


def find(path: str) -> pathlib.Path:
  """The folder that `INITIAL_CHECKPOINT_PATH` names: a shipped model, a folder, or a MODEL_DIR.

  Raises:
    UserError: there is no such checkpoint.
  """
  if path in shipped_models():
    return SHIPPED / path
  folder = pathlib.Path(path)
  for candidate in (folder, folder / "backbone"):
    if (candidate / METADATA).is_file():
      return candidate
  names = shipped_models()
  found = f"{path} (a file)" if folder.is_file() else (
    f"{path} (a folder without {METADATA})" if folder.is_dir() else f"{path} (does not exist)")
  raise UserError("INITIAL_CHECKPOINT_PATH is not a checkpoint", found=found,
                  wanted=f"a shipped model ({', '.join(names)}), a folder with {METADATA} and "
                  f"{WEIGHTS}, or the MODEL_DIR of a run that trained a backbone",
                  fix=nearest(path, names))


def check(path: str, config: T5Config, vocabulary: str | None) -> pathlib.Path:
  """Everything that can be checked without reading weights.

  Args:
    vocabulary: fingerprint of the vocabulary in use; None skips that check.

  Raises:
    UserError: no checkpoint, or its architecture or vocabulary is another one.
  """
  folder = find(path)
  metadata = _read_metadata(folder)
  theirs = metadata["architecture"]
  ours = architecture(config)
  wrong = [f"{k}: {theirs.get(k)} in the checkpoint, {v} in the model" for k, v in ours.items()
           if theirs.get(k) != v]
  if wrong:
    raise UserError("The checkpoint and the model differ", found="; ".join(wrong),
                    wanted="one architecture", fix="use the models/*.gin file of the checkpoint")
  if vocabulary and metadata["vocabulary"] != vocabulary:
    raise UserError("The checkpoint was trained with another vocabulary",
                    found=f"fingerprint {vocabulary} in use",
                    wanted=f"fingerprint {metadata['vocabulary']}",
                    fix="set VOCABULARY to the checkpoint's vocabulary")
  if not (folder / WEIGHTS).is_file():
    raise UserError("The checkpoint has no weights", found=f"{folder} without {WEIGHTS}",
                    wanted=f"{WEIGHTS} beside {METADATA}", fix="copy the whole folder")
  return folder


def restore(folder: pathlib.Path, expected: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the weights into the layout, shapes and dtypes of `expected` (a tree of shapes).

  Raises:
    UserError: the file is truncated or not safetensors; leaves are missing, unused or misshapen.
  """
  try:
    flat = load_file(folder / WEIGHTS)
  except (SafetensorError, OSError, ValueError) as error:
    raise UserError("The checkpoint's weights cannot be read",
                    found=f"{folder / WEIGHTS}: {error}", wanted="a whole safetensors file",
                    fix="copy the checkpoint again; it may be truncated") from error
  wanted = trees.flatten(expected)
  unstacked = any(re.search(r"/layers_\d+/", path) for path in wanted)
  given = _unstack(flat) if unstacked else flat
  missing, unused = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
  if missing or unused:
    raise UserError("The checkpoint's parameters are not the model's",
                    found=f"missing {missing[:4]} ({len(missing)}), unused {unused[:4]} "
                    f"({len(unused)})", wanted=f"the model's {len(wanted)} parameters",
                    fix="use the models/*.gin file of the checkpoint")
  for path, leaf in wanted.items():
    if given[path].shape != leaf.shape:
      raise UserError("A parameter of the checkpoint has another shape",
                      found=f"{path}: {given[path].shape}", wanted=str(leaf.shape),
                      fix="use the models/*.gin file of the checkpoint")
  return trees.unflatten({p: given[p].astype(leaf.dtype) for p, leaf in wanted.items()})


def save(folder: pathlib.Path, params: Mapping[str, Any], config: T5Config, *, vocabulary: str,
         about: Mapping[str, Any], dtype: str = "float32") -> None:
  """Writes a checkpoint folder; the old one is whole until the new one is.

  Args:
    params: the backbone's tree, scanned or not.
    vocabulary: its fingerprint.
    about: where the weights come from, for people.
    dtype: what is stored.

  Raises:
    UserError: the disk is full.
  """
  with report_full("a backbone", folder, "run the same command again"):
    _save(folder, params, config, vocabulary, about, dtype)


def _save(folder: pathlib.Path, params: Mapping[str, Any], config: T5Config, vocabulary: str,
          about: Mapping[str, Any], dtype: str) -> None:
  partial = folder.with_name(folder.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  flat = {p: jnp.asarray(leaf, jnp.dtype(dtype)) for p, leaf in stacked(params).items()}
  save_file(flat, partial / WEIGHTS)
  metadata = {"architecture": architecture(config), "vocabulary": vocabulary,
              "fingerprint": fingerprint(flat), "dtype": dtype,
              "parameters": sum(int(v.size) for v in flat.values()), **about}
  (partial / METADATA).write_text(json.dumps(metadata, indent=2, sort_keys=True) + "\n")
  old = folder.with_name(folder.name + ".old")
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    os.rename(folder, old)
  os.rename(partial, folder)
  shutil.rmtree(old, ignore_errors=True)


def architecture(config: T5Config) -> dict[str, Any]:
  """The fields that weights depend on, as JSON has them."""
  return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(config).items()
                                if k in _ARCHITECTURE}))


def fingerprint(params: Mapping[str, Any]) -> str:
  """16 hex digits over names and values; the same for scanned and unscanned trees."""
  digest = hashlib.sha256()
  for path, leaf in sorted(stacked(params).items()):
    digest.update(path.encode())
    digest.update(np.asarray(leaf, np.float32).tobytes())
  return digest.hexdigest()[:16]


def stacked(params: Mapping[str, Any]) -> dict[str, Any]:
  """Any layout -> flat scanned paths: `x/layers_i/y` leaves become rows of `x/layers/y`."""
  flat, layers = {}, {}
  for path, leaf in trees.flatten(params).items():
    if found := re.fullmatch(r"(.*/layers)_(\d+)/(.*)", path):
      layers.setdefault(f"{found[1]}/{found[3]}", {})[int(found[2])] = leaf
    else:
      flat[path] = leaf
  for path, rows in layers.items():
    flat[path] = np.stack([np.asarray(rows[i]) for i in range(len(rows))])
  return flat


def _unstack(flat: Mapping[str, Any]) -> dict[str, Any]:
  result = {}
  for path, leaf in flat.items():
    head, found, tail = path.partition("/layers/")
    if found:
      result |= {f"{head}/layers_{i}/{tail}": leaf[i] for i in range(leaf.shape[0])}
    else:
      result[path] = leaf
  return result


def _read_metadata(folder: pathlib.Path) -> dict[str, Any]:
  try:
    metadata = json.loads((folder / METADATA).read_text())
    if not {"architecture", "vocabulary"} <= metadata.keys():
      raise ValueError("keys `architecture` and `vocabulary` are missing")
    return metadata
  except (ValueError, UnicodeDecodeError, AttributeError) as error:
    raise UserError(f"The checkpoint's {METADATA} cannot be read",
                    found=f"{folder / METADATA}: {error}", wanted="the JSON that a run wrote",
                    fix="copy the checkpoint again") from error
