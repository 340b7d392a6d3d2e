"""Text files as sources, and the pre-training mixture made of them."""

import gzip

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import corpora
from prompt_tuning.tasks.objectives import Rebuild, SpanCorruption
from prompt_tuning.tasks.pretraining import PretrainingMixture


@pytest.fixture
def files(tmp_path):
  (tmp_path / "a_train.txt").write_text("one two\nthree\n\n\nfour\n", encoding="utf-8")
  (tmp_path / "b_train.txt.gz").write_bytes(gzip.compress("\ufefffive\r\n \nsix é\n".encode()))
  (tmp_path / "a_valid.txt").write_text("held out", encoding="utf-8")
  return tmp_path


def texts(source, split="train"):
  return [row["text"] for row in source.rows(split)]


def test_documents(files):
  assert list(corpora.documents(files / "a_train.txt")) == [("one two", "three"), ("four",)]
  assert list(corpora.documents(files / "b_train.txt.gz")) == [("five",), ("six é",)]


def test_rows_of_several_files(files):
  patterns = {"train": [str(files / "*_train*"), str(files / "a_train.txt")],
              "validation": [str(files / "a_valid.txt")]}
  source = corpora.TextFiles(files=patterns)
  assert texts(source) == ["one two", "three", "four", "five", "six é"]
  assert texts(source, "validation") == ["held out"]
  assert source.splits == ("train", "validation")


def test_paragraphs_are_joined_within_a_document(files):
  source = corpora.TextFiles(files={"train": [str(files / "*_train*")]}, join_words=3)
  assert texts(source) == ["one two three", "four", "five", "six é"]
  assert list(corpora.joined(["a b", "c", "d e f g", "h"], 3)) == ["a b c", "d e f g", "h"]


def test_fingerprint_follows_the_content(files):
  source = corpora.TextFiles(files={"train": [str(files / "a_*.txt")]})
  before = source.fingerprint()
  (files / "a_valid.txt").write_text("other")
  assert source.fingerprint() != before


@pytest.mark.parametrize("name, data, message", [
  ("a.txt", b"good\nbad \xff\n", "a.txt, line 2: not UTF-8 text\n.*byte 0xff at column 5"),
  ("a.txt", b"\n \n", "a.txt is empty\n.*no paragraph"),
  ("a.txt.gz", b"not gzip", "damaged gzip data after line 0")])
def test_bad_files(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=message):
    texts(corpora.TextFiles(files={"train": [str(tmp_path / name)]}))


def test_bad_settings(tmp_path):
  with pytest.raises(UserError, match=r"no file matches .*\*.txt"):
    texts(corpora.TextFiles(files={"train": [str(tmp_path / "*.txt")]}))
  with pytest.raises(UserError, match="a split without files"):
    corpora.TextFiles(files={"train": []})
  with pytest.raises(UserError, match="join_words is not a number of words"):
    corpora.TextFiles(files={"train": ["a"]}, join_words=0)


def test_text_spec(files):
  row = corpora.text_spec("mine", {"train": [str(files / "a_train.txt")]}, SpanCorruption())
  assert [row.to_text(raw) for raw in row.source.rows("train")] == [
    {"targets": "one two three"}, {"targets": "four"}]
  assert row.objective == SpanCorruption()


def test_pretraining_mixture(files):
  mixture = PretrainingMixture(
    name="pre", files=[str(files / "a_train.txt")], validation_files=[str(files / "a_valid.txt")],
    docstrings=False, length=80, objectives={"rebuild": Rebuild(noise_density=0.5)}).spec()
  assert mixture.rates == {"pre_span_corruption": 0.4, "pre_rebuild": 0.6}
  assert [task.objective for task in mixture.tasks] == [
    SpanCorruption(length=80), Rebuild(noise_density=0.5, length=80)]
  for task in mixture.tasks:
    assert task.source.splits == ("train", "validation")
    assert texts(task.source) == ["one two three", "four"]
    assert texts(task.source, "validation") == ["held out"]


def test_docstrings_follow_the_files(files):
  from prompt_tuning.tasks.docstring_tasks import RUNNING_TEXT

  mixture = PretrainingMixture(files=[str(files / "a_train.txt")], rates={"prefix_lm": 1}).spec()
  source = mixture.tasks[0].source
  assert source.splits == ("train", "validation")  # the docstrings have a validation split
  rows = texts(source)
  assert rows[:2] == ["one two three", "four"]
  assert rows[2:] == texts(RUNNING_TEXT)
  assert texts(source, "validation") == texts(RUNNING_TEXT, "validation")


@pytest.mark.parametrize("settings, message", [
  ({"rates": {"rebiuld": 1}}, "no objective 'rebiuld'\n(.*\n)*.*did you mean 'rebuild'"),
  ({"files": "corpus.txt"}, "PretrainingMixture.files is one text"),
  ({"docstrings": False}, "nothing to pre-train on"),
  ({"objectives": {"deshuffle": Rebuild()}}, "settings that nothing uses\n.*deshuffle")])
def test_bad_mixtures(settings, message):
  with pytest.raises(UserError, match=message):
    PretrainingMixture(**settings)


def test_a_rate_must_be_positive(files):
  with pytest.raises(UserError, match="a rate that is not positive"):
    PretrainingMixture(rates={"rebuild": 0}).spec()
