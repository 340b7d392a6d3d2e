"""Prompts on disk: ours (`.npz`), a plain array (`.npy`), the paper's code's, and PEFT's.

  npz   `prompt.npy [P, D]` or `[N, P, D]` float32 and `metadata.json` in one uncompressed zip,
        which `numpy.load` opens. Keys: format, prompt_length, backbone and vocabulary
        (fingerprints), task, versions.
  npy   one array `[P, D]`, or `[N, P, D]` of a bank.
  t5x   the same bytes without a suffix, where the code of Lester et al. 2021 puts them:
        `MODEL_DIR/numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt`.
  peft  a folder with `adapter_config.json` and `adapter_model.safetensors`: `peft.py`.

Values are float32 in memory; what was float32 on disk goes through unchanged, to the bit.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import hub, npy_files, npz_files, peft
from prompt_tuning.disk import report_full, write_bytes
from prompt_tuning.errors import UserError

FORMATS = ("npz", "npy", "t5x", "peft")
T5X_NAME = "encoder.prompt.prompt.prompt"
_WANTED = ("a .npz of ours, a .npy file with one float array [P, D], a T5X MODEL_DIR with "
           "numpy_checkpoints, or a PEFT adapter's folder")
_PACKAGES = ("prompt-tuning", "jax", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class PromptFile:
  """A prompt that was read.

  Attributes:
    values: `[P, D]`, or `[N, P, D]` of a bank; float32, finite.
    metadata: what the file says about it; {} for a plain array.
    format: of `FORMATS`.
    path: the file or folder that holds it.
  """

  values: np.ndarray
  metadata: Mapping[str, Any]
  format: str
  path: str


def describe(values: np.ndarray, *, backbone: str = "", vocabulary: str = "",
             task: str = "") -> dict[str, Any]:
  """The metadata of our `.npz`.

  Args:
    values: the prompt.
    backbone, vocabulary: fingerprints of what it was trained with; "" where unknown.
    task: what it was trained on.
  """
  return {"format": 1, "prompt_length": int(values.shape[-2]), "backbone": backbone,
          "vocabulary": vocabulary, "task": task,
          "versions": {name: _version(name) for name in _PACKAGES}}


def find(path: str) -> tuple[str, pathlib.Path] | None:
  """(format, file or folder) of the prompt that a path names, by names and first bytes alone.

  A folder stands for the prompt in it: a PEFT adapter (also `hf://owner/name@revision`), or the
  newest of a T5X MODEL_DIR. None: there is no prompt.

  Raises:
    UserError: the hub does not have it.
  """
  where = hub.folder(path, peft.choose)
  if where.name in (peft.CONFIG, peft.WEIGHTS, peft.PICKLED):
    where = where.parent
  if where.is_dir():
    if (where / peft.CONFIG).is_file():
      return "peft", where
    newest = _newest(where)
    return None if newest is None else ("t5x", newest)
  if not where.is_file():
    return None
  with open(where, "rb") as file:
    start = file.read(len(npy_files.MAGIC))
  if start == npy_files.MAGIC:
    return ("t5x" if where.name == T5X_NAME else "npy"), where
  return ("npz", where) if start.startswith(b"PK") else None


def read(path: str, setting: str = "PROMPT_FILE") -> PromptFile:
  """Reads a prompt of any format.

  Args:
    setting: what the path was given as, for the messages.

  Raises:
    UserError: no such file; not a prompt (pickled, truncated, of another kind of adapter); values
      that are not finite.
  """
  try:
    found = find(path)
    if found is None:
      if not (os.path.exists(path) or path.startswith(hub.SCHEME)):
        raise UserError(f"{setting} does not exist", found=path, wanted=_WANTED,
                        fix="give the prompt.npy of a run's MODEL_DIR")
      raise ValueError("it is neither a .npy nor a .npz file" if os.path.isfile(path) else
                       "no prompt is in this folder")
    kind, where = found
    values, metadata = _READ[kind](where)
    if values.ndim not in (2, 3) or 0 in values.shape:
      raise ValueError(f"{values.dtype} {values.shape} is not [P, D] or [N, P, D]")
  except UserError:
    raise
  except (ValueError, OSError) as error:
    raise UserError(f"{setting} is not a prompt", found=f"{path}: {error}", wanted=_WANTED,
                    fix="copy the file again, or save an array with numpy.save(path, array)"
                    ) from error
  with np.errstate(over="ignore"):
    values = values.astype(np.float32)
  if not np.isfinite(values).all():
    raise UserError("The prompt file holds values that are not finite", found=str(where),
                    wanted="finite numbers", fix="use an earlier prompt of that run")
  return PromptFile(values, metadata, kind, str(where))


def target_format(path: str) -> str:
  """The format that the name of a new file or folder stands for.

  Raises:
    UserError: the name stands for none.
  """
  name = pathlib.Path(path).name
  if name == T5X_NAME:
    return "t5x"
  suffix = pathlib.Path(path).suffix
  if suffix in (".npz", ".npy"):
    return suffix[1:]
  if suffix:
    raise UserError("No format of prompts has this suffix", found=path,
                    wanted=f".npz, .npy, a file called {T5X_NAME}, or a folder (PEFT)",
                    fix="give a name with one of them")
  return "peft"


def write(path: str, values: np.ndarray, metadata: Mapping[str, Any], *,
          format: str | None = None) -> None:
  """Writes a prompt; what stood there is whole until the new one is.

  Args:
    values: `[P, D]`; `[N, P, D]` only as npz and npy.
    metadata: as `describe` makes it. PEFT takes `base_model` of it, plain arrays take nothing.
    format: of `FORMATS`; None: what the path's name stands for.

  Raises:
    UserError: a format that cannot hold a bank; no space left.
  """
  kind = target_format(path) if format is None else format
  values = np.ascontiguousarray(values, np.float32)
  if values.ndim == 3 and kind in ("t5x", "peft"):
    raise UserError(f"A bank of prompts does not fit the format {kind}",
                    found=f"{values.shape[0]} prompts", wanted="one prompt [P, D]",
                    fix="write it as .npz or .npy, or take one prompt of it")
  where = pathlib.Path(path)
  with report_full("a prompt", where, "run the same command again"):
    if kind == "peft":
      peft.write(where, values, metadata)
      return
    where.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(where, npz_files.encode(values, metadata) if kind == "npz" else
                npy_files.encode(values))


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
  """The prompt of a T5X MODEL_DIR, of its numpy_checkpoints, or of one step."""
  direct = folder / T5X_NAME
  if direct.is_file():
    return direct
  steps = {int(found[1]): file for file in folder.glob(f"checkpoint_*/{T5X_NAME}")
           if (found := re.fullmatch(r"checkpoint_(\d+)", file.parent.name))}
  if steps:
    return steps[max(steps)]
  deeper = folder / "numpy_checkpoints"
  return _newest(deeper) if deeper.is_dir() else None


def _read_npy(path: pathlib.Path) -> tuple[np.ndarray, dict[str, Any]]:
  with open(path, "rb") as file:
    return npy_files.decode(file, os.path.getsize(path)), {}


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ""


_READ = {"npz": npz_files.read, "npy": _read_npy, "t5x": _read_npy, "peft": peft.read}
