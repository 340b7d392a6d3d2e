"""T5s of Hugging Face: a folder with `config.json` and weights, or `hf://owner/name@revision`.

Reads T5 1.0, 1.1, LM-adapted, Flan-T5, mT5 and ByT5 in each kind of file that `hf_files.py` lists,
and shows them unstacked under our names (`hf_names.py`, which also tells of the tying trap).
`hf_export.py` writes them.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import hf_export, hf_files, hf_names, hub
from prompt_tuning.checkpoints.hf_names import EMBEDDING, OUTPUT, Entry
from prompt_tuning.checkpoints.leaves import (
  DTYPES,
  Format,
  Index,
  Leaf,
  bounds,
  damaged,
  read_small,
)
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.tasks import vocabularies

_MAX_CONFIG = 1 << 24
_BLOCK = 16 * 2**20


class HFReader:
  """As `leaves.Reader`; tensors that no T5 has keep their own names in `leaves`."""

  format = "hf"

  def __init__(self, path: str):
    """Raises:
      UserError: it is not there, damaged, not a T5, or its configuration and weights differ.
    """
    self.path = path
    folder = hub.folder(path, hf_files.choose)
    theirs = _read_config(folder)
    self._tensors = hf_files.open_weights(folder)
    self.ignored: dict[str, Leaf] = {}
    tied = self._ignore_copies()
    config_path = str(folder / hf_files.CONFIG)
    self._check_depth(theirs, config_path)
    self.config: T5Config | None = hf_names.config_from(theirs, is_tied=tied, where=config_path)
    self.metadata = {"from": _origin(path, folder), "model_type": theirs["model_type"],
                     **_vocabulary(folder)}
    self._entries: dict[str, Entry] = {}
    self.leaves: dict[str, Leaf] = {}
    left = {name: leaf for name, leaf in self._tensors.leaves.items() if name not in self.ignored}
    for entry in hf_names.table(self.config):
      if entry.theirs == OUTPUT and tied:
        # Tied and not scaled: our untied output is the embedding, transposed.
        entry = dataclasses.replace(entry, theirs=EMBEDDING)
      leaf = self._tensors.leaves.get(entry.theirs)
      left.pop(entry.theirs, None)
      if leaf is None:
        continue
      if leaf.shape != entry.their_shape or leaf.dtype not in DTYPES.values():
        raise damaged(path, f"{entry.theirs} is {leaf.dtype} {list(leaf.shape)}",
                      wanted=f"{' or '.join(DTYPES)} {list(entry.their_shape)}, as config.json "
                      "says", fix="fetch config.json and the weights of one revision")
      self._entries[entry.ours] = entry
      self.leaves[entry.ours] = Leaf(entry.shape, leaf.dtype)
    self.leaves |= left

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    if name not in self._entries:
      return self._tensors.read(name, index)
    entry = self._entries[name]
    if not entry.transposed:
      return self._tensors.read(entry.theirs, index)
    spans = bounds(index, entry.shape)
    return self._tensors.read(entry.theirs, tuple(slice(*span) for span in spans[::-1])).T

  def _ignore_copies(self) -> bool:
    """Sets aside what repeats the embedding; whether the output is one of it, or not there."""
    there = self._tensors.leaves
    if EMBEDDING not in there:
      raise damaged(self.path, f"it has no {EMBEDDING}: {sorted(there)[:3]}",
                    wanted="a whole T5 with encoder and decoder", fix="fetch all of the weights")
    for name in hf_names.COPIES:
      if name in there:
        if not self._is_embedding(name):
          raise UserError("This T5 has more than one embedding",
                          found=f"{self.path}: {name} differs from {EMBEDDING}",
                          wanted="one table that encoder and decoder share", fix="no T5 release "
                          "has this; only weights of one shared table can be used")
        self.ignored[name] = there[name]
    if hf_names.UNUSED in there:
      self.ignored[hf_names.UNUSED] = there[hf_names.UNUSED]
    if OUTPUT not in there:
      return True
    if self._is_embedding(OUTPUT):
      self.ignored[OUTPUT] = there[OUTPUT]
      return True
    return False

  def _is_embedding(self, name: str) -> bool:
    """Whether a tensor equals the embedding; read only as far as they are alike."""
    first, second = (self._tensors.leaves[x] for x in (EMBEDDING, name))
    if first != second or len(first.shape) != 2:
      return False
    rows = max(1, _BLOCK // max(1, first.shape[1] * first.dtype.itemsize))
    for start in range(0, first.shape[0], rows):
      part = (slice(start, min(start + rows, first.shape[0])), slice(None))
      ours, theirs = (self._tensors.read(x, part) for x in (EMBEDDING, name))
      if ours.tobytes() != theirs.tobytes():
        return False
    return True

  def _check_depth(self, theirs: Mapping[str, Any], where: str) -> None:
    # A table of names is made for every layer that config.json declares.
    for key in ("num_layers", "num_decoder_layers"):
      depth = theirs.get(key)
      if isinstance(depth, int) and depth > len(self._tensors.leaves):
        raise damaged(where, f"{key} {depth:,}, and {len(self._tensors.leaves)} tensors",
                      wanted="as many layers as the weights have",
                      fix="fetch config.json and the weights of one revision")


def matches(path: str) -> bool:
  """Whether a path is a reference to the hub, or a folder with a Hugging Face model."""
  if path.startswith(hub.SCHEME):
    return True
  try:
    return hf_files.is_checkpoint(os.listdir(path))
  except OSError:
    return False


FORMAT = Format(name="hf", title="Hugging Face", matches=matches, open=HFReader,
                write=hf_export.write, stacked=False, full_config=True,
                files=hf_export.FILES)


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  where = hub.file_in(folder, hf_files.CONFIG)
  try:
    theirs = json.loads(read_small(where, _MAX_CONFIG))
  except (RecursionError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise damaged(where, error, wanted="a T5's config.json") from error
  if not isinstance(theirs, dict):
    raise damaged(where, f"it is {type(theirs).__name__}", wanted="a T5's config.json")
  return theirs


def _origin(path: str, folder: pathlib.Path) -> str:
  """What was read; for the hub with the commit, which is the name of a snapshot's folder."""
  return f"{path} ({folder.name})" if path.startswith(hub.SCHEME) else path


def _vocabulary(folder: pathlib.Path) -> dict[str, str]:
  """{"vocabulary": fingerprint} where the folder says which vocabulary it has."""
  pieces, tokenizer = hf_files.VOCABULARY
  if (folder / pieces).exists():
    content: bytes | None = read_small(hub.file_in(folder, pieces), _MAX_CONFIG)
  elif (folder / tokenizer).exists() and (
      b'"ByT5Tokenizer"' in read_small(hub.file_in(folder, tokenizer), _MAX_CONFIG)):
    content = None
  else:
    return {}
  return {"vocabulary": vocabularies.fingerprint_of(content)}
