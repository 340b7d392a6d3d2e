"""Our prompts: `prompt.npy` and `metadata.json` in one uncompressed zip, checked before it is read.

Uncompressed, so that nothing can unfold to more than the file has; the archive's checksums find
bits that changed.
"""

import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import npy_files

ARRAY, METADATA = "prompt.npy", "metadata.json"
_MAX_METADATA = 1 << 20


def read(path: pathlib.Path) -> tuple[np.ndarray, dict[str, Any]]:
  """The array and its metadata.

  Raises:
    ValueError: it is damaged, or another archive.
  """
  size = os.path.getsize(path)
  try:
    with zipfile.ZipFile(path) as archive:
      members = {info.filename: info for info in archive.infolist()}
      if members.keys() != {ARRAY, METADATA} or any(
          info.compress_type != zipfile.ZIP_STORED or max(info.file_size, info.compress_size) > size
          for info in members.values()):
        raise ValueError(f"it holds {sorted(members)[:4]}, not {ARRAY} and {METADATA}, "
                         "uncompressed")
      if members[METADATA].file_size > _MAX_METADATA:
        raise ValueError(f"{METADATA} is larger than any metadata")
      if members[ARRAY].file_size > npy_files.LIMIT:
        raise ValueError(f"{ARRAY} is larger than any prompt")
      metadata = json.loads(archive.read(METADATA))
      # Read to its end, so that the checksum is compared.
      content = archive.read(ARRAY)
  except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError,
          OverflowError, KeyError, TypeError) as error:
    raise ValueError(f"its archive is damaged: {error}") from error
  if not isinstance(metadata, dict):
    raise ValueError(f"{METADATA} is not an object")
  return npy_files.decode(io.BytesIO(content), len(content)), metadata


def encode(array: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
  """The archive; the same prompt and metadata give the same bytes."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
    # A ZipInfo has the date 1980.
    archive.writestr(zipfile.ZipInfo(ARRAY), npy_files.encode(array))
    archive.writestr(zipfile.ZipInfo(METADATA),
                     json.dumps(dict(metadata), indent=2, sort_keys=True) + "\n")
  return stream.getvalue()
