"""A user's own data as a task, without Python: files and two templates.

  FileTask(train_file="train.tsv", validation_file="dev.tsv",
           inputs="sentence: {sentence}", targets="{label}", labels=("good", "bad"))

`{column}` stands for a column's text; `{{` and `}}` are braces. All files are read and checked
once when the spec is made, before anything expensive starts.
"""

import dataclasses
import hashlib
import pathlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import metrics as metric_functions
from prompt_tuning.tasks.spec import TaskSpec, label_texts
from prompt_tuning.tasks.tables import Record, records


@dataclasses.dataclass(frozen=True)
class FileSource:
  """A task source of records.

  Attributes:
    files: split -> path of a file that `tables.records` reads.
    texts: the templates that a task makes its texts by: part of what tells two tasks apart.
  """

  files: Mapping[str, str]
  texts: tuple[str, ...] = ()

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.files)

  def rows(self, split: str) -> Iterator[Record]:
    return (record for _, record in records(pathlib.Path(self.files[split])))

  def fingerprint(self) -> str:
    """Hash of the files' bytes, not of their names, and of the templates."""
    digest = hashlib.sha256(repr(self.texts).encode() if self.texts else b"")
    for split, path in self.files.items():
      digest.update(split.encode() + hashlib.sha256(pathlib.Path(path).read_bytes()).digest())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Template:
  """A text with `{column}`s to fill.

  Attributes:
    setting: what the user calls it, for messages.
    text: the template.
  """

  setting: str
  text: str

  def __post_init__(self):
    try:
      parts = list(string.Formatter().parse(self.text))
    except ValueError as error:
      raise self._bad(str(error)) from error
    fields = [field for _, field, _, _ in parts if field is not None]
    if any(spec or conversion for _, _, spec, conversion in parts) or not all(fields):
      raise self._bad(repr(self.text))
    if not fields:
      raise self._bad(f"{self.text!r}, the same text for every row")
    object.__setattr__(self, "_parts", tuple((text, field) for text, field, _, _ in parts))

  @property
  def fields(self) -> tuple[str, ...]:
    """The columns that it names, in order."""
    return tuple(field for _, field in self._parts if field is not None)

  def _bad(self, found: str) -> UserError:
    return UserError(f"the template {self.setting} cannot be filled", found=found,
                     wanted="text with {column}s, such as 'sentence: {sentence}'",
                     fix="name columns in single braces; write {{ and }} for braces")

  def fill(self, record: Record) -> str:
    """The text for one record; raises KeyError with the name of a column that is not there."""
    return "".join(text + ("" if field is None else record[field]) for text, field in self._parts)


@dataclasses.dataclass(frozen=True)
class FillTemplates:
  """`to_text` of a file task: targets lose the space around them."""

  inputs: Template
  targets: Template

  def __call__(self, record: Record) -> dict[str, str]:
    return {"inputs": self.inputs.fill(record), "targets": self.targets.fill(record).strip()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileTask:
  """A user's files.

  Attributes:
    train_file, validation_file, test_file: TSV, CSV or JSON lines by extension, also `.gz`; the
      last two may be left out, and the task then lacks that split.
    inputs, targets: templates.
    labels: the only targets there may be (classification), or None (free text). Numbers are read
      as their texts.
    metrics: names of functions in `metrics.py`; None takes accuracy and macro-F1 with labels,
      exact match, token F1 and ROUGE without.
    name: of the task; None makes one from the training file and the settings.
  """

  train_file: str
  inputs: str
  targets: str
  validation_file: str | None = None
  test_file: str | None = None
  labels: Sequence[str | float] | None = None
  metrics: Sequence[str] | None = None
  name: str | None = None

  def __post_init__(self):
    if isinstance(self.labels, str) or isinstance(self.metrics, str):
      raise UserError("LABELS and metrics are lists", found=repr(self.labels or self.metrics),
                      wanted="a list, such as ['yes', 'no']", fix="put it in [ ]")
    for metric in self.metrics or ():
      metric_functions.get(metric)

  def spec(self) -> TaskSpec:
    """The task's row, with every record of every file checked.

    Raises:
      UserError: as `tables.records`, and for a column that is missing, a target that is empty or
        not among the labels, each with file and line.
    """
    files = {split: str(path) for split, path in (
      ("train", self.train_file), ("validation", self.validation_file), ("test", self.test_file))
      if path}
    labels = None if self.labels is None else label_texts(self.labels)
    default = (("accuracy", "macro_f1") if labels else ("exact_match", "token_f1", "rouge"))
    row = TaskSpec(
      name=self.name or self._default_name(), source=FileSource(files, (self.inputs, self.targets)),
      labels=labels,
      to_text=FillTemplates(Template("INPUTS", self.inputs), Template("TARGETS", self.targets)),
      metrics=default if self.metrics is None else tuple(self.metrics),
      description="your data: " + ", ".join(files.values()))
    for path in files.values():
      _check(pathlib.Path(path), row)
    return row

  def _default_name(self) -> str:
    stem = pathlib.Path(self.train_file).name.split(".")[0]
    settings = repr(dataclasses.astuple(self)).encode()
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', stem)}_{hashlib.sha256(settings).hexdigest()[:6]}"


def _check(path: pathlib.Path, row: TaskSpec) -> None:
  for line, record in records(path):
    try:
      target = row.to_text(record)["targets"]
    except KeyError as error:
      column = error.args[0]
      raise UserError(f"{path}, line {line}: there is no column {column!r}",
                      found="the columns " + ", ".join(map(repr, record)),
                      wanted="every column that INPUTS and TARGETS name",
                      fix=nearest(column, record)) from error
    if not target:
      raise UserError(f"{path}, line {line}: the target is empty", found=_shown(record),
                      wanted="some text for every row", fix="fill it in, or drop the row")
    if row.labels is not None and target not in row.labels:
      raise UserError(f"{path}, line {line}: {target!r} is not one of LABELS", found=_shown(record),
                      wanted="one of " + ", ".join(map(repr, row.labels)),
                      fix=nearest(target, row.labels))


def _shown(record: Record) -> str:
  text = repr(record)
  return text if len(text) <= 120 else text[:117] + "..."
