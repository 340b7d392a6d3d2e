"""Published files -> raw rows: tables with and without a header, JSON lines, whole JSON.

Every row says in `where` which file and line (or entry) it is from. A line that is no row (a wrong
number of fields, as some of QQP's have) becomes `{"where", "unusable": reason}`, and
`TaskSpec.examples` counts it. Broken JSON is an error: such a file is cut short.
"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.lines import lines, text

Row = dict[str, Any]
Reader = Callable[[pathlib.Path], Iterator[Row]]
# Of splits without published labels, as TFDS has it.
NO_LABEL = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Rows of TSV or CSV.

  Attributes:
    columns: our name -> the file's names for it, of which the first that is there is read. A file
      without a `label` is a test set: its label is -1.
    names: the columns of a file without a header. A first line that names our columns is a header
      all the same: AG News is published both ways.
    quoted: CSV with double quotes; else tabs, and a quotation mark is a character like any other.
  """

  columns: Mapping[str, tuple[str, ...]]
  names: tuple[str, ...] | None = None
  quoted: bool = False
  encoding: str = "utf-8"

  def __call__(self, path: pathlib.Path) -> Iterator[Row]:
    names: tuple[str, ...] | None = None
    for number, fields in self._fields(path):
      where = f"{path}, line {number}"
      if names is None:
        names = self._header(path, fields)
        if names is not self.names:
          continue
      if len(fields) != len(names):
        yield {"where": where, "unusable": f"{len(fields)} fields, {len(names)} columns"}
        continue
      values = dict(zip(names, fields, strict=True))
      row = {ours: next((values[name] for name in theirs if name in values), None)
             for ours, theirs in self.columns.items()}
      if row.get("label", "") is None:
        row["label"] = NO_LABEL
      yield {**{name: value for name, value in row.items() if value is not None}, "where": where}

  def _header(self, path: pathlib.Path, fields: list[str]) -> tuple[str, ...]:
    """The names of the columns: the file's first line, or `names` where that line is a row."""
    found = tuple(field.strip() for field in fields)
    known = {name for theirs in self.columns.values() for name in theirs}
    missing = [ours for ours, theirs in self.columns.items()
               if ours != "label" and not set(theirs) & set(found)]
    if self.names is not None and (missing or not known & set(found)):
      return self.names
    if missing:
      raise UserError(f"{path}, line 1: columns are missing", found=", ".join(map(repr, found)),
                      wanted=", ".join("/".join(self.columns[name]) for name in missing),
                      fix="check that the file is the published one, with its header")
    return found

  def _fields(self, path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    numbered = lines(path, self.encoding)
    if not self.quoted:
      yield from ((number, line.split("\t")) for number, line in numbered if line.strip())
      return
    reader = csv.reader(line + "\n" for _, line in numbered)
    start = 1
    for fields in reader:
      if fields:
        yield start, fields
      start = reader.line_num + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonLines:
  """Rows of JSON lines, with their values as they are.

  Attributes:
    rename: the file's name of a field -> ours.
    has_labels: a row without a `label` is a test row: its label is -1.
  """

  rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
  has_labels: bool = True

  def __call__(self, path: pathlib.Path) -> Iterator[Row]:
    for where, values in json_lines(path):
      row = {self.rename.get(name, name): value for name, value in values.items()}
      if self.has_labels:
        row.setdefault("label", NO_LABEL)
      yield {**row, "where": where}


@dataclasses.dataclass(frozen=True)
class Sentences:
  """One sentence a line; the file's name says its label (MR: `rt-polarity.pos`, in latin-1)."""

  labels: Mapping[str, str]
  encoding: str

  def __call__(self, path: pathlib.Path) -> Iterator[Row]:
    name = path.name.removesuffix(".gz")
    label = next(label for ending, label in self.labels.items() if name.endswith(ending))
    for number, line in lines(path, self.encoding):
      yield {"sentence": line.strip(), "label": label, "where": f"{path}, line {number}"}


def json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file and line, object) of each line.

  Raises:
    UserError: a line is no JSON object.
  """
  for number, line in lines(path):
    if not line.strip():
      continue
    where = f"{path}, line {number}"
    try:
      values = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f"{where}, column {error.colno}: broken JSON",
                      found=f"{error.msg}: {line[:60]!r}", wanted="one JSON object a line",
                      fix="fetch the file again; it may have been cut short") from error
    if not isinstance(values, dict):
      raise UserError(f"{where}: not a JSON object", found=line[:60],
                      wanted="{...}, one object a line", fix="check that it is the published file")
    yield where, values


def json_file(path: pathlib.Path) -> Any:
  """The value that a JSON file holds.

  Raises:
    UserError: it is broken.
  """
  try:
    return json.loads(text(path))
  except json.JSONDecodeError as error:
    raise UserError(f"{path}, line {error.lineno}, column {error.colno}: broken JSON",
                    found=error.msg, wanted="one JSON value",
                    fix="fetch the file again; it may have been cut short") from error
