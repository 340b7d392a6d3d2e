"""What the key of a token cache is made of, for seqio tasks of users."""

import functools
import importlib
import os
import subprocess
import sys
import types

import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data import cache_task
from prompt_tuning.errors import UserError
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.task_setup import set_up
from prompt_tuning.tasks import identity, vocabularies

FEATURES = {name: seqio.Feature(seqio.ByteVocabulary()) for name in ("inputs", "targets")}
MODULE = '''
import re
import tensorflow as tf

PREFIX = {prefix!r}
WORDS = {{"b", "a", "c"}}
log = object()

def spell(text):
  return tf.strings.join([PREFIX, {text}])

def cast(dataset):
  return dataset.map(lambda line: {{"inputs": spell(line), "targets": line, "n": len(WORDS)}})
'''


def copy(dataset):
  return dataset.map(lambda line: {"inputs": line, "targets": line})


def lines_task(path, cast=copy, **source):
  return seqio.Task("lines", seqio.TextLineDataSource({"train": str(path)}, **source),
                    output_features=FEATURES, preprocessors=[
                      cast, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos])


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "train.txt"
  path.write_text("one\ntwo\n")
  return path


@pytest.fixture
def read(tmp_path):
  return lambda task: [cache["inputs_text"] for cache in
                       cache_task(task, "train", cache_dir=tmp_path / "cache")]


def test_another_or_edited_file_is_read_anew(tmp_path, file, read):
  other = tmp_path / "other.txt"
  other.write_text("three\n")
  assert read(lines_task(file)) == read(lines_task(file)) == ["one", "two"]
  assert read(lines_task(other)) == ["three"]
  assert read(lines_task(file, skip_header_lines=1)) == ["two"]
  file.write_text("six\ntwo\n")  # as long as before
  status = os.stat(file)
  os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
  assert read(lines_task(file)) == ["six", "two"]


def test_a_function_source_is_told_by_its_code():
  def task_of(texts):
    def dataset(split, shuffle_files, seed=None):
      return tf.data.Dataset.from_tensor_slices(texts)
    return seqio.Task("mine", seqio.FunctionDataSource(dataset, splits=["train"]),
                      output_features=FEATURES, preprocessors=[copy])

  of = functools.partial(identity.of_task, splits=["train"], with_source=True)
  assert of(task_of(["a"])) == of(task_of(["a"])) != of(task_of(["b"]))


def test_globals_that_a_preprocessor_uses_are_in_the_key():
  module = types.ModuleType("their_module")
  found = set()
  for text in (MODULE.format(prefix="a", text="text"), MODULE.format(prefix="b", text="text"),
               MODULE.format(prefix="a", text="tf.strings.lower(text)")):
    exec(text, vars(module))
    found.add(identity.describe(module.cast))
  assert len(found) == 3


def test_another_process_finds_the_same_words(tmp_path, monkeypatch):
  (tmp_path / "their_casts.py").write_text(MODULE.format(prefix="a", text="text"))
  monkeypatch.syspath_prepend(tmp_path)
  here = identity.describe(importlib.import_module("their_casts").cast)
  del sys.modules["their_casts"]
  code = ("import their_casts; from prompt_tuning.tasks import identity;"
          "print(identity.describe(their_casts.cast))")
  path = os.pathsep.join([str(tmp_path), os.getcwd(), os.environ.get("PYTHONPATH", "")])
  there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "1"})
  assert there.stdout.strip() == here


def test_a_recursive_function_is_described():
  def down(n):
    return n and down(n - 1)

  assert "down" in identity.describe(down)
  assert len(identity.describe(seqio.preprocessors.tokenize)) < 200_000


def test_the_run_knows_its_data_by_it(file, monkeypatch):
  seqio.TaskRegistry.add(
    "lines_of_a_run", source=seqio.TextLineDataSource({"train": str(file)}),
    preprocessors=[copy, seqio.preprocessors.tokenize], output_features=FEATURES)
  config = TaskConfig(name="lines_of_a_run", feature_lengths={"inputs": 8, "targets": 8})
  try:
    before = set_up(config, "bytes").fingerprint
    assert before and before == set_up(config, "bytes").fingerprint
    file.write_text("one\ntwo\nthree\n")
    assert set_up(config, "bytes").fingerprint != before
  finally:
    seqio.TaskRegistry.remove("lines_of_a_run")


@pytest.mark.parametrize("own, name, same", [
  (seqio.ByteVocabulary(), "bytes", True), (seqio.ByteVocabulary(extra_ids=9), "bytes", True),
  (seqio.ByteVocabulary(), "tiny", False), (vocabularies.load("tiny"), "tiny", True),
  (vocabularies.load("tiny"), "bytes", False), (seqio.PassThroughVocabulary(9), "tiny", True),
  # Sentinels may be left out; others than T5's have other ids.
  (seqio.SentencePieceVocabulary(str(vocabularies.path_of("tiny")), extra_ids=0), "tiny", True),
  (seqio.SentencePieceVocabulary(str(vocabularies.path_of("tiny")), extra_ids=7), "tiny", False)])
def test_a_task_has_the_ids_of_the_run(own, name, same):
  task = seqio.Task("other_ids", seqio.FunctionDataSource(
    lambda split, shuffle_files: None, splits=["train"]), preprocessors=[], output_features={
      "inputs": seqio.Feature(own), "targets": seqio.Feature(own)})
  if same:
    identity.check_vocabulary(task, name)
    return
  with pytest.raises(UserError, match="inputs of 'other_ids' are tokenised with another") as raised:
    identity.check_vocabulary(task, name)
  assert f"VOCABULARY = {name!r}" in str(raised.value)


def test_a_run_with_another_vocabulary_does_not_start(file):
  seqio.TaskRegistry.add(
    "lines_of_bytes", source=seqio.TextLineDataSource({"train": str(file)}),
    preprocessors=[copy, seqio.preprocessors.tokenize], output_features=FEATURES)
  try:
    with pytest.raises(UserError, match="another vocabulary"):
      set_up(TaskConfig(name="lines_of_bytes", feature_lengths={"inputs": 8, "targets": 8}), "tiny")
  finally:
    seqio.TaskRegistry.remove("lines_of_bytes")
