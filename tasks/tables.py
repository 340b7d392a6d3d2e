"""Records of TSV, CSV and JSON-lines files (`.gz` too), with the line each one starts on.

TSV has no quoting: a quotation mark is a character like any other. CSV is RFC 4180: fields in
double quotes may hold commas and line ends. Both start with a line of column names. In JSON lines
numbers and true, false become their JSON text, and null an empty text.
"""

import csv
import json
import pathlib
from collections.abc import Iterator

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.lines import lines

Record = dict[str, str]
EXTENSIONS = (".tsv", ".csv", ".jsonl")


def records(path: pathlib.Path) -> Iterator[tuple[int, Record]]:
  """(line number, column -> text) of each record.

  Raises:
    UserError: unknown extension, missing or empty file, bytes that are not UTF-8, a repeated
      column name, a row with another number of fields than there are columns, broken JSON.
  """
  extension = pathlib.Path(path.name.removesuffix(".gz")).suffix.lower()
  if extension not in EXTENSIONS:
    raise UserError(f"{path} is of no known kind", found=f"the extension {extension!r}",
                    wanted=", ".join(EXTENSIONS) + ", each also with .gz",
                    fix="rename the file, or convert it")
  is_empty = True
  for item in _json_records(path) if extension == ".jsonl" else _rows(path, extension):
    yield item
    is_empty = False
  if is_empty:
    raise UserError(f"{path} is empty", found="no record", wanted="one record or more",
                    fix="check the file, or leave this split out")


def _rows(path: pathlib.Path, extension: str) -> Iterator[tuple[int, Record]]:
  columns: list[str] | None = None
  for number, fields in _csv(path) if extension == ".csv" else _tsv(path):
    if columns is None:
      columns = [name.strip() for name in fields]
      repeated = sorted({name for name in columns if columns.count(name) > 1})
      if repeated:
        raise UserError(f"{path}, line {number}: a column name is repeated",
                        found=", ".join(map(repr, repeated)), wanted="different names",
                        fix="rename the columns in the first line")
      continue
    if len(fields) != len(columns):
      raise UserError(f"{path}, line {number}: wrong number of fields",
                      found=f"{len(fields)} fields: {_shown(fields)}",
                      wanted=f"{len(columns)}, one for each of {', '.join(columns)}",
                      fix="correct the line" + (
                        "; fields with commas need double quotes" if extension == ".csv" else ""))
    yield number, dict(zip(columns, fields, strict=True))


def _tsv(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  return ((number, line.split("\t")) for number, line in lines(path) if line.strip())


def _csv(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  reader = csv.reader((line + "\n" for _, line in lines(path)), strict=True)
  start = 1
  while True:
    try:
      fields = next(reader, None)
    except csv.Error as error:
      raise UserError(f"{path}, line {start}: broken CSV", found=str(error),
                      wanted='fields in closed double quotes, with "" for a quotation mark',
                      fix="correct the record that starts on this line") from error
    if fields is None:
      return
    if fields:
      yield start, fields
    start = reader.line_num + 1


def _json_records(path: pathlib.Path) -> Iterator[tuple[int, Record]]:
  for number, line in lines(path):
    if not line.strip():
      continue
    try:
      values = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f"{path}, line {number}: broken JSON",
                      found=f"{error.msg} at column {error.colno}: {_shown([line])}",
                      wanted="one JSON object a line", fix="correct the line") from error
    if not isinstance(values, dict):
      raise UserError(f"{path}, line {number}: not a JSON object", found=_shown([line]),
                      wanted='{"column": "text", ...}', fix="correct the line")
    yield number, {name: _text(value, name, path, number) for name, value in values.items()}


def _text(value: object, name: str, path: pathlib.Path, number: int) -> str:
  if isinstance(value, str):
    return value
  if value is None:
    return ""
  if isinstance(value, list | dict):
    raise UserError(f"{path}, line {number}: column {name!r} holds no text",
                    found=_shown([json.dumps(value)]), wanted="a text, a number, true or false",
                    fix="flatten the column before")
  return json.dumps(value)


def _shown(fields: list[str]) -> str:
  text = " | ".join(fields)
  return text if len(text) <= 80 else text[:77] + "..."
