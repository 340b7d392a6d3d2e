"""PyTorch's `.bin` files, which are pickles: read by `torch.load(weights_only=True)` or not at all.

A pickle is a program. `weights_only` runs an interpreter that knows tensors and plain containers
alone, so torch has to be installed; nothing here reads such a file by other means.
"""

import io
import os
import pathlib
import pickle
from typing import Any

import ml_dtypes
import numpy as np

from prompt_tuning.disk import first_line
from prompt_tuning.errors import UserError


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
  """name -> array; memory-mapped where the file's layout lets torch do so (torch 1.6 and later).

  Raises:
    UserError: torch is not installed, or the file would run code.
    ValueError: it is damaged, or holds other things than named arrays.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "A pickled checkpoint needs PyTorch", found=f"{path}, and torch is not installed",
      wanted="safetensors, or torch to read it with weights_only=True",
      fix="pip install torch; or, where it is installed, convert the file once: "
      "transformers' AutoModelForSeq2SeqLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
    ) from error
  try:
    state = _load(torch, path)
  except pickle.UnpicklingError as error:
    raise UserError("A pickled checkpoint is not plain weights",
                    found=f"{path}: {first_line(error)}", wanted="tensors and plain containers",
                    fix="do not use this file: reading it could run code") from error
  except Exception as error:  # torch raises many kinds for a damaged file.
    raise ValueError(f"{path}: {first_line(error)}") from error
  if not isinstance(state, dict) or not state:
    raise ValueError(f"{path}: {type(state).__name__}, not a dictionary of tensors")
  return {str(name): _array(torch, path, name, tensor) for name, tensor in state.items()}


def _load(torch: Any, path: pathlib.Path) -> Any:
  try:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
  except RuntimeError as error:
    # Files of torch before 1.6 cannot be mapped.
    if "mmap can only be used with files saved with" not in str(error):
      raise
  with _Bounded(open(path, "rb", buffering=0)) as file:
    return torch.load(file, map_location="cpu", weights_only=True)


class _Bounded(io.BufferedReader):
  """A file that is never asked for more bytes than it has: a buffer for them is allocated first."""

  def read(self, size: int | None = -1) -> bytes:
    left = os.fstat(self.fileno()).st_size - self.tell()
    return super().read(left if size is None or size < 0 else min(size, max(left, 0)))


def _array(torch: Any, path: pathlib.Path, name: object, tensor: Any) -> np.ndarray:
  if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
    raise ValueError(f"{path}: {name!r} is {type(tensor).__name__}, not an array")
  # A stride of 0 would declare more numbers than the file has.
  if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
    raise ValueError(f"{path}: {name!r} {tuple(tensor.shape)} is larger than what is stored of it")
  if tensor.dtype == torch.bfloat16:
    return tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
  return tensor.detach().numpy()
