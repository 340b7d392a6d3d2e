"""What a method that is more than a table of vectors leaves to be served: `prompt.safetensors`.

One float32 tensor a leaf, named by its path (`encoder/value`, `decoder.mlp.wo/a`, ...), and in the
file's metadata the method and the task. A plain prompt is `prompt.npy` instead, which other tools
read (`prompt_files.py`).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from prompt_tuning.disk import first_line, write_bytes
from prompt_tuning.errors import UserError

NAME = "prompt.safetensors"
_KEY = "prompt_tuning"


def write(path: pathlib.Path, leaves: Mapping[str, np.ndarray],
          metadata: Mapping[str, Any]) -> None:
  """Writes a file that appears whole or not at all.

  Args:
    leaves: path -> float32 array.
    metadata: JSON values.
  """
  write_bytes(path, encode(leaves, metadata))


def encode(leaves: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
  """The bytes of the file that `write` writes."""
  tensors = {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in leaves.items()}
  return save(tensors, metadata={_KEY: json.dumps(dict(metadata), sort_keys=True)})


def is_one(path: str) -> bool:
  """Whether the name is that of such a file."""
  return path.endswith(".safetensors")


def metadata(path: str) -> dict[str, Any]:
  """What the file says about itself; {} where it cannot be read, which `read` will say."""
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      found = json.loads((file.metadata() or {}).get(_KEY, "{}"))
  except (OSError, safetensors.SafetensorError, ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def read(path: str, expected: Mapping[str, tuple[int, ...]],
         setting: str = "PROMPT_FILE") -> dict[str, np.ndarray]:
  """The leaves, after checking that they are those of the method.

  Args:
    expected: path -> shape.
    setting: what the path was given as, for the messages.

  Raises:
    UserError: no such file, damaged, or of another method, size or number of layers.
  """
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      names = list(file.keys())
      shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
      _check(path, shapes, expected)
      leaves = {name: file.get_tensor(name) for name in names}
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{setting} cannot be read", found=f"{path}: {first_line(error)}",
                    wanted=f"{NAME} of a run", fix="give that of a run's MODEL_DIR") from error
  for name, leaf in leaves.items():
    if leaf.dtype != np.float32 or not np.isfinite(leaf).all():
      raise UserError("The file of the prompt is damaged", found=f"{path}: {name} is {leaf.dtype}"
                      + ("" if leaf.dtype != np.float32 else " with numbers that are not finite"),
                      wanted="finite float32", fix="take another copy of the file")
  return leaves


def _check(path: str, found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
  if found == expected:
    return
  wrong = sorted(name for name in found.keys() | expected.keys()
                 if found.get(name) != expected.get(name))
  name = wrong[0]
  raise UserError("The file of the prompt is of another method or model",
                  found=f"{path}: {name} is {found.get(name, 'not there')}"
                  + (f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""),
                  wanted=f"{expected.get(name, 'no such leaf')}, as the method's gin file has it",
                  fix="use the gin files of the run that wrote it")
