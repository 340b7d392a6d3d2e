"""One plain float array as `.npy` bytes, checked before anything is allocated.

`numpy.load` allocates what a header declares and, where it is let, runs the pickles of object
arrays. Here the header must be that of a little or big endian float array, and the file must have
exactly the bytes that it declares.
"""

import io
import math
import warnings
from typing import BinaryIO

import numpy as np

from prompt_tuning.disk import first_line

MAGIC = b"\x93NUMPY"
# A bank of 600 prompts for T5 XXL; a prompt has a few megabytes.
LIMIT = 1 << 30


def decode(file: BinaryIO, size: int) -> np.ndarray:
  """The array that `file` holds, of its own dtype and shape, in C order.

  Args:
    file: at its start.
    size: how many bytes the file has.

  Raises:
    ValueError: it is no array, not one of floats, or not whole; the text says which.
  """
  if size > LIMIT:
    raise ValueError(f"{size:,} bytes are more than any prompt has")
  shape, is_fortran, dtype = _header(file)
  if dtype.hasobject:
    raise ValueError("it is pickled, and pickles run code when they are read: allow_pickle is off")
  if dtype.kind != "f" or dtype.itemsize > 8:
    raise ValueError(f"{dtype} {shape} is not a float array")
  declared = math.prod(shape) * dtype.itemsize
  left = size - file.tell()
  if min(shape, default=1) < 0 or declared != left:
    raise ValueError(f"its header declares {declared:,} bytes of {dtype} {shape}, and it has "
                     f"{left:,}")
  content = file.read(declared)
  if len(content) != declared:
    raise ValueError(f"it ends after {len(content):,} of {declared:,} bytes")
  array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
  return np.ascontiguousarray(array).astype(dtype.newbyteorder("="))


def encode(array: np.ndarray) -> bytes:
  """The bytes that `numpy.save` would write."""
  stream = io.BytesIO()
  np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
  return stream.getvalue()


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
  readers = {(1, 0): np.lib.format.read_array_header_1_0,
             (2, 0): np.lib.format.read_array_header_2_0}
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # A garbled header may warn before it fails.
      version = np.lib.format.read_magic(file)
      return readers[version](file)
  except Exception as error:  # The header is a Python literal: its parser raises many kinds.
    raise ValueError(f"its header is not that of a .npy file: {first_line(error)}") from error
