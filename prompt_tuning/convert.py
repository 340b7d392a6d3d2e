"""`prompt-tuning convert`: a backbone or a prompt from one format into another.

A backbone goes through leaf by leaf: never more than one leaf is in memory. It is written beside
its destination, read back, compared with what was read, and only then takes its name; so a kill
leaves no half of a checkpoint, and the next run removes what it left. Nothing is dropped that
`--drop` does not name.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning import placement
from prompt_tuning.checkpoints import (
  formats,
  hub,
  leaf_table,
  loading,
  method_files,
  prompt_files,
  prompt_origin,
  storage,
)
from prompt_tuning.checkpoints.leaf_table import Row
from prompt_tuning.checkpoints.leaves import DTYPES, Format, Index, Leaf, Reader, dtype_of
from prompt_tuning.checkpoints.stacking import in_layout, is_stacked
from prompt_tuning.disk import check_local, new_folder
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.tasks import vocabularies

# Reading with decompression, writing and reading back, on one core of a laptop or a cloud machine.
_BYTES_A_SECOND = 60e6
_OF_PROMPTS_ALONE = ("npz", "npy", "peft")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
  """One conversion.

  Attributes:
    source, destination: paths; `gs://` where the format allows it.
    to: a format's name; None: what the name of a prompt's file stands for.
    dtype: of the leaves that are written; None: as they are.
    drop: patterns of leaves that may be left out.
    layout: `stacked` or `unstacked` leaves, where the format has both; None: as they are.
    backbone: the architecture; None: what the source says.
    vocabulary: VOCABULARY, recorded with the checkpoint; None: what the source says.
    overwrite: replace the destination.
    keep_state: T5X's optimizer state goes along, between its two formats.
  """

  source: str
  destination: str
  to: str | None = None
  dtype: str | None = None
  drop: tuple[str, ...] = ()
  layout: str | None = None
  backbone: T5Config | None = None
  vocabulary: str | None = None
  overwrite: bool = False
  keep_state: bool = False

  def __post_init__(self):
    dtype_of(self.dtype)
    _check_source(self.source)
    if not self.overwrite and os.path.exists(self.destination):
      raise UserError("The destination exists", found=self.destination, wanted="a new name",
                      fix="give another name, or --overwrite")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a conversion of a backbone will do; no weight has been read.

  Attributes:
    config: what was asked.
    source: in the layout that will be written.
    source_form, form: of the source and of the destination.
    backbone: the architecture.
    rows: every leaf.
    metadata: of the new checkpoint.
    state: optimizer state that goes along.
  """

  config: ConvertConfig
  source: Reader
  source_form: Format
  form: Format
  backbone: T5Config
  rows: Sequence[Row]
  metadata: Mapping[str, Any]
  state: Mapping[str, Any]

  @property
  def bytes_read(self) -> int:
    return sum(row.given.nbytes for row in self.rows if row.given and row.wanted)

  @property
  def bytes_written(self) -> int:
    return sum(row.wanted.nbytes for row in self.rows if row.given and row.wanted)

  @property
  def seconds(self) -> float:
    """A guess, for a local disk."""
    return (self.bytes_read + self.bytes_written) / _BYTES_A_SECOND


def is_prompt(config: ConvertConfig) -> bool:
  """Whether a prompt is asked for; of the hub, whose references say nothing, by the format."""
  if config.source.startswith(hub.SCHEME):
    return config.to in _OF_PROMPTS_ALONE or (
      config.to is None and config.destination.endswith((".npz", ".npy")))
  return formats.detect(config.source) is None and prompt_files.find(config.source) is not None


def convert_prompt(config: ConvertConfig, *, dry_run: bool = False) -> prompt_files.PromptFile:
  """Reads, writes, and reads back; what was written, or would be, with all that is known of it.

  Raises:
    UserError: no prompt, or a format that cannot hold it; a flag that is a backbone's.
  """
  if config.dtype not in (None, "float32") or config.drop or config.layout:
    raise UserError("A prompt is stored whole, in float32", found="--dtype, --drop or --layout",
                    wanted="none of them", fix="leave the flag out")
  if config.to is not None and config.to not in prompt_files.FORMATS:
    raise UserError("There is no such format of prompts", found=config.to,
                    wanted="one of " + ", ".join(prompt_files.FORMATS),
                    fix="name one of them, or leave --to out: the destination's name decides")
  prompt = prompt_files.read(config.source, "SRC")
  form = config.to or prompt_files.target_format(config.destination)
  metadata = prompt_files.describe(prompt.values) | prompt_origin.of_prompt(
    prompt.path, prompt.metadata)
  _check_place(metadata, prompt, form)
  if dry_run:
    return dataclasses.replace(prompt, path=config.destination, format=form, metadata=metadata)
  prompt_files.write(config.destination, prompt.values, metadata, format=config.to)
  written = prompt_files.read(config.destination, "DST")
  if written.values.tobytes() != prompt.values.tobytes():
    raise _differs(config.destination, ["the prompt"])
  return dataclasses.replace(written, metadata=metadata)


def _check_source(path: str) -> None:
  """Refuses by name the prompt of a method that is more than a table: no other format holds it."""
  if method_files.is_one(path) and (pathlib.Path(path).name == method_files.NAME
                                    or method_files.metadata(path)):
    method = method_files.metadata(path).get("method")
    raise UserError("This prompt is more than a table of vectors, and no other format holds it",
                    found=path + (f", of {method}" if method else ""),
                    wanted="a checkpoint, or a prompt that is a table: prompt.npy, .npz, PEFT's",
                    fix="use it as it is: PROMPT_FILE and --prompt take it. LoRA and IA3 become "
                    "weights with `prompt-tuning merge`, and convert takes those")


def _check_place(metadata: Mapping[str, Any], prompt: prompt_files.PromptFile, form: str) -> None:
  """Refuses a prompt that does not stand in front for a reader that always puts it there."""
  template = metadata.get("template")
  if form in ("peft", "t5x") and isinstance(template, str) and not placement.is_front(
      template, prompt.values.shape[-2]):
    reader = "PEFT" if form == "peft" else "the code of Lester et al. 2021"
    raise UserError(f"{reader} has prompts in front of the input alone",
                    found=f"{prompt.path}: PROMPT_TEMPLATE = {template!r}",
                    wanted="a prompt that was trained in front",
                    fix="keep it as .npz, which says where it stands, or train one without "
                    "PROMPT_TEMPLATE")


def plan(config: ConvertConfig) -> Plan:
  """Opens the source and says what would become of every leaf.

  Raises:
    UserError: no checkpoint; no such format; an architecture that is not known or another one.
  """
  form = formats.writable(config.to or "ours")
  _check_destination(config, form)
  source_form = loading.find(config.source, "SRC")
  reader = source_form.open(config.source)
  backbone = config.backbone or reader.config
  if backbone is None:
    raise UserError("The checkpoint does not say which T5 it is", found=config.source,
                    wanted="its architecture", fix="add --gin_file=models/t5_1_1_base.gin, or the "
                    "file of its size")
  stacked = _layout(config, form, reader)
  backbone = dataclasses.replace(backbone, scan_layers=bool(stacked))
  source = in_layout(reader, stacked)
  dtype = dtype_of(config.dtype)
  expected = leaf_table.in_dtype(source, loading.expected_leaves(backbone))
  if dtype is not None:
    expected = {name: Leaf(leaf.shape, dtype) for name, leaf in expected.items()}
  rows = leaf_table.compare(source.leaves, expected, config.drop)
  metadata = dict(reader.metadata) | {"from": config.source}
  if config.vocabulary is not None:
    size = vocabularies.load_light(config.vocabulary).vocab_size
    vocabularies.check_table(config.vocabulary, size, backbone.vocab_size)
    metadata["vocabulary"] = vocabularies.fingerprint(config.vocabulary)
  state = _state(config, form, reader, source) if config.keep_state else {}
  return Plan(config, source, source_form, form, backbone, rows, metadata, state)


def check(todo: Plan) -> None:
  """Raises a UserError where a leaf is missing, would be lost, or has a dtype of no format."""
  leaf_table.check(todo.rows)
  for row in todo.rows:
    if row.wanted is not None and row.wanted.dtype not in DTYPES.values():
      raise UserError("Weights are not stored in this dtype", found=f"{row.name}: "
                      f"{row.wanted.dtype}", wanted="one of " + ", ".join(DTYPES),
                      fix="--dtype float32")


def run(todo: Plan) -> None:
  """Writes the destination, and reads it back.

  Raises:
    UserError: as `check`; the source is damaged; no space is left; or what was written is not what
      was read.
  """
  check(todo)
  path = todo.config.destination
  assert todo.form.write is not None
  recorded = _Recorded(todo)
  write: Any = todo.form.write
  if todo.state:  # T5X's writers alone take it.
    write = functools.partial(write, state=todo.state)
  if "://" in path:  # Nothing is renamed in a bucket: the index goes first, and comes last.
    assert todo.form.index is not None
    storage.Store(path).write(todo.form.index, None)
    write(path, recorded, config=todo.backbone, metadata=todo.metadata, dtype=todo.config.dtype)
    recorded.compare(todo.form.open(path), path)
    return
  with new_folder(pathlib.Path(path)) as partial:
    write(str(partial), recorded, config=todo.backbone, metadata=todo.metadata,
          dtype=todo.config.dtype)
    recorded.compare(todo.form.open(str(partial)), path)


def _check_destination(config: ConvertConfig, form: Format) -> None:
  """Checks that nothing but a checkpoint would be replaced, and that only on request."""
  path = config.destination
  if "://" in path and form.index is not None:
    if not config.overwrite and storage.exists(storage.join(path, form.index)):
      raise UserError("The destination exists", found=path, wanted="a new name",
                      fix="give another name, or --overwrite")
    return
  check_local(path, f"The destination of a checkpoint in the format {form.name}")
  folder = pathlib.Path(path)
  if folder.suffix in (".npz", ".npy"):
    raise UserError("A backbone is a folder, not the file of a prompt", found=path,
                    wanted="the name of a folder", fix="give SRC a prompt, or DST another name")
  names = sorted(os.listdir(folder)) if folder.is_dir() else []
  there = formats.detect(path)
  others = names if there is None else [
    name for name in names if there.files is not None and not re.fullmatch(there.files, name)]
  if folder.is_file() or others:
    raise UserError("The destination holds other things, which would be lost",
                    found=f"{path} (a file)" if folder.is_file() else
                    f"{path}: {', '.join(others[:4])} ({len(others)})",
                    wanted="a new folder, or one that holds a checkpoint and nothing else",
                    fix="give another path, or take those files away first")


class _Recorded:
  """The leaves that the model has, and a digest of each as it was read."""

  def __init__(self, todo: Plan):
    source = todo.source
    self.format, self.path = source.format, source.path
    self.config, self.metadata = source.config, source.metadata
    self.ignored = source.ignored
    self.leaves = {row.name: row.given for row in todo.rows if row.given and row.wanted}
    self._dtypes = {row.name: row.wanted.dtype for row in todo.rows if row.wanted}
    self._source = source
    self._digests: dict[str, bytes] = {}

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    array = self._source.read(name, index)
    if index is None:
      self._digests[name] = self._digest(name, array)
    return array

  def compare(self, written: Reader, path: str) -> None:
    """Raises a UserError unless `written` has the same leaves with the same bits."""
    again = in_layout(written, is_stacked(self.leaves))
    wrong = sorted(again.leaves.keys() ^ self.leaves.keys())
    for name in [] if wrong else self.leaves:
      expected = self._digests.get(name) or self._digest(name, self._source.read(name))
      array = again.read(name)
      if array.dtype != self._dtypes[name] or self._digest(name, array) != expected:
        wrong.append(name)
    if wrong:
      raise _differs(path, wrong)

  def _digest(self, name: str, array: np.ndarray) -> bytes:
    content = np.ascontiguousarray(array.astype(self._dtypes[name], copy=False))
    return hashlib.sha256(content.reshape(-1).view(np.uint8).data).digest()


def _layout(config: ConvertConfig, form: Format, reader: Reader) -> bool | None:
  choices = {None: None, "stacked": True, "unstacked": False}
  if config.layout not in choices:
    raise UserError("There is no such layout", found=config.layout, wanted="stacked or unstacked",
                    fix="--layout unstacked")
  asked = choices[config.layout]
  if form.stacked is not None and asked not in (None, form.stacked):
    raise UserError(f"The format {form.name} has one layout", found=f"--layout {config.layout}",
                    wanted="no --layout", fix="leave the flag out")
  if form.stacked is not None:
    return form.stacked
  # T5X's own T5s are unstacked: what stands in one of its formats keeps its layout.
  return asked if asked is not None else (
    is_stacked(reader.leaves) if reader.format.startswith("t5x") else False)


def _state(config: ConvertConfig, form: Format, reader: Reader,
           source: Reader) -> Mapping[str, Any]:
  """The arrays of T5X's optimizer state, where names and layout stay as they are."""
  arrays = getattr(reader, "state", None)
  if arrays is None or not form.name.startswith("t5x") or source is not reader:
    raise UserError("The optimizer state cannot go along", found=f"{reader.format} to {form.name}"
                    + ("" if source is reader else ", in another layout"),
                    wanted="t5x or t5x_orbax on both sides, and one layout",
                    fix="leave --keep_state and --layout out; a run starts with fresh state")
  return {name: array for name, array in arrays.items() if name.startswith("state/param_states/")}


def _differs(path: str, names: Sequence[str]) -> UserError:
  return UserError("What was written is not what was read",
                   found=f"{path}: {', '.join(names[:4])} ({len(names)})", wanted="the same bits",
                   fix="the disk may be failing; try another one, and report it if it repeats")
