"""A user's own files as a task: every format, and every message of bad input."""

import gzip
import json

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.files import FileTask

ROWS = [{"text": 'a "good", one', "label": "yes"}, {"text": "naïve 2", "label": "no"}]


def write(path, data):
  data = data.encode("utf-8") if isinstance(data, str) else data
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return str(path)


def task(path, **settings):
  return FileTask(**{"train_file": str(path), "inputs": "say: {text}", "targets": "{label}",
                     "labels": ("yes", "no"), **settings})


TSV = 'text\tlabel\na "good", one\tyes\nnaïve 2\tno\n'
CSV = 'text,label\r\n"a ""good"", one",yes\r\n\r\nnaïve 2,no\r\n'
JSONL = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"


@pytest.mark.parametrize("name, data", [
  ("a.tsv", TSV), ("a.csv", CSV), ("a.jsonl", JSONL), ("a.TSV", TSV), ("a.tsv.gz", TSV),
  ("a.jsonl.gz", JSONL), ("bom.csv", "\ufeff" + CSV)])
def test_formats_give_the_same_texts(tmp_path, name, data):
  row = task(write(tmp_path / name, data)).spec()
  assert list(row.source.rows("train")) == ROWS
  assert [row.to_text(raw) for raw in row.source.rows("train")] == [
    {"inputs": 'say: a "good", one', "targets": "yes"}, {"inputs": "say: naïve 2", "targets": "no"}]
  assert row.labels == ("yes", "no") and row.metrics == ("accuracy", "macro_f1")
  assert row.source.splits == ("train",)


def test_splits_default_metrics_and_names(tmp_path):
  train, dev = write(tmp_path / "my data.tsv", TSV), write(tmp_path / "dev.csv", CSV)
  row = task(train, validation_file=dev, labels=None, test_file=None).spec()
  assert row.source.splits == ("train", "validation")
  assert row.metrics == ("exact_match", "token_f1", "rouge") and row.labels is None
  assert row.name.startswith("my_data_")
  assert row == task(train, validation_file=dev, labels=None).spec()
  assert row.name != task(train, validation_file=dev, inputs="{text}", labels=None).spec().name
  assert task(train, name="mine", metrics=["bleu"]).spec().metrics == ("bleu",)


def test_fingerprint_follows_the_content(tmp_path):
  row = task(write(tmp_path / "a.tsv", TSV)).spec()
  before = row.source.fingerprint()
  assert before == task(write(tmp_path / "b.tsv", TSV)).spec().source.fingerprint()
  write(tmp_path / "a.tsv", TSV + "three\tno\n")
  assert row.source.fingerprint() != before


def test_a_named_task_with_other_templates_is_another_one(tmp_path):
  """The name does not say so, but caches of tokens ask for the fingerprint."""
  path = write(tmp_path / "a.tsv", TSV)
  prints = {task(path, name="mine", **more).spec().source.fingerprint()
            for more in ({}, {"inputs": "is it good? {text}"})}
  assert len(prints) == 2


def test_json_values_and_braces(tmp_path):
  path = write(tmp_path / "a.jsonl", '{"a b": 1.5, "n": null, "is": true, "label": " yes "}\n')
  row = task(path, inputs="{{{a b}}} {n}{is}").spec()
  assert row.to_text(next(row.source.rows("train"))) == {"inputs": "{1.5} true", "targets": "yes"}


def test_csv_fields_may_hold_line_ends(tmp_path):
  path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",yes\nx,maybe\n')
  with pytest.raises(UserError, match="line 4: 'maybe' is not one of LABELS"):
    task(path).spec()


@pytest.mark.parametrize("name, data, settings, messages", [
  ("a.tsv", TSV, {"inputs": "{txt}"},
   ["a.tsv, line 2: there is no column 'txt'", "'text', 'label'", "did you mean 'text'?"]),
  ("a.jsonl", '{"text": "a", "label": "no"}\n{"text": "b"}\n', {},
   ["line 2: there is no column 'label'", "the columns 'text'"]),
  ("a.tsv", "", {}, ["a.tsv is empty"]),
  ("a.csv", "text,label\n", {}, ["a.csv is empty", "one record or more"]),
  ("a.jsonl", "\n\n", {}, ["a.jsonl is empty"]),
  ("a.tsv", "text\tlabel\nx\tyes\ny\tYes!\n", {},
   ["a.tsv, line 3: 'Yes!' is not one of LABELS", "'yes', 'no'"]),
  ("a.tsv", "text\tlabel\nx\tyess\n", {}, ["did you mean 'yes'?"]),
  ("a.tsv", b"text\tlabel\nx\tyes\ncaf\xe9\tno\n", {},
   ["a.tsv, line 3: not UTF-8", "byte 0xe9 at column 4", "iconv"]),
  ("a.txt", TSV, {}, ["a.txt is of no known kind", "'.txt'", ".tsv, .csv, .jsonl"]),
  ("a.jsonl", '{"text": "a", "label": "no"}\n{"text": \n', {},
   ["a.jsonl, line 2: broken JSON", "one JSON object a line"]),
  ("a.jsonl", "[1, 2]\n", {}, ["line 1: not a JSON object"]),
  ("a.jsonl", '{"text": ["a"], "label": "no"}\n', {}, ["line 1: column 'text' holds no text"]),
  ("a.tsv", "text\tlabel\nx\tyes\tmore\n", {},
   ["a.tsv, line 2: wrong number of fields", "3 fields", "text, label"]),
  ("a.csv", "text,label\na, b,yes\n", {}, ["line 2: wrong number of fields", "double quotes"]),
  ("a.csv", 'text,label\nx,yes\n"open,yes\n', {}, ["a.csv, line 3: broken CSV"]),
  ("a.tsv", "text\ttext\nx\ty\n", {}, ["a column name is repeated", "'text'"]),
  ("a.tsv", "text\tlabel\nx\t \n", {}, ["a.tsv, line 2: the target is empty"]),
  ("a.tsv", TSV, {"inputs": "{text"}, ["the template INPUTS cannot be filled"]),
  ("a.tsv", TSV, {"inputs": "{text!r}"}, ["the template INPUTS cannot be filled"]),
  ("a.tsv", TSV, {"targets": "label"}, ["the template TARGETS", "the same text for every row"]),
  ("a.tsv", TSV, {"labels": "yes"}, ["LABELS and metrics are lists"]),
  ("a.tsv", TSV, {"labels": ("yes", "yes")}, ["do not name classes"]),
  ("a.tsv", TSV, {"metrics": ["acuracy"]}, ["no metric 'acuracy'", "did you mean 'accuracy'?"]),
])
def test_bad_input(tmp_path, name, data, settings, messages):
  path = write(tmp_path / name, data)
  with pytest.raises(UserError) as error:
    task(path, **settings).spec()
  for message in messages:
    assert message in str(error.value)


def test_missing_and_damaged_files(tmp_path):
  with pytest.raises(UserError, match="none.tsv cannot be read\n.*No such file"):
    task(tmp_path / "none.tsv").spec()
  path = write(tmp_path / "a.tsv.gz", TSV * 50)
  data = (tmp_path / "a.tsv.gz").read_bytes()
  (tmp_path / "a.tsv.gz").write_bytes(data[:len(data) // 2])
  with pytest.raises(UserError, match="damaged gzip data"):
    task(path).spec()


def test_the_second_file_is_checked_too(tmp_path):
  train = write(tmp_path / "a.tsv", TSV)
  with pytest.raises(UserError, match="dev.tsv, line 2: 'perhaps'"):
    task(train, validation_file=write(tmp_path / "dev.tsv", "text\tlabel\nx\tperhaps\n")).spec()
