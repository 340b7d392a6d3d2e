"""The rows over the docstrings: what they hold, on the corpus that is installed."""

import collections
import re

import numpy as np
import pytest

from prompt_tuning import tasks
from prompt_tuning.tasks import docstring_tasks, vocabularies
from prompt_tuning.tasks.docstrings import Docstring, corpus

CLASSIFICATION = ("docstring_library", "docstring_match", "docstring_kind_seen",
                  "docstring_kind_unseen")
GENERATION = ("docstring_summary", "docstring_signature")


def rows(name, split):
  return list(tasks.spec(name).source.rows(split))


def test_library_classes_are_capped_and_enough():
  labels = tasks.spec("docstring_library").labels
  train = collections.Counter(row["targets"] for row in rows("docstring_library", "train"))
  assert set(train) == set(labels) and len(labels) >= 6 and sum(train.values()) >= 5000
  assert max(train.values()) / sum(train.values()) < 0.25
  first = collections.Counter(row["targets"] for row in rows("docstring_library", "train")[:2000])
  for label in labels:  # the order is random: the start is like the whole
    share = train[label] / sum(train.values())
    assert abs(first[label] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5


# Written apart from the masking: whole words between anything but letters, and names anywhere.
LEAK = re.compile(
  r"numpy|scipy|jax|tensorflow|keras|flax|optax|matplotlib|orbax|seqio|pyplot|jnp|tfds|nnx|"
  r"(?<![a-z])(?:np|tf|plt|mpl|lax|linen|ocp|absl|grain)(?![a-z])", re.IGNORECASE)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_library_names_are_masked(split):
  found = rows("docstring_library", split)
  leaks = [row["inputs"] for row in found if LEAK.search(row["inputs"])]
  assert leaks == []
  assert any("library" in row["inputs"] for row in found)


@pytest.mark.parametrize("text, masked", [
  ("See `tf.data` and NumPy's np.zeros.", "See `library.data` and library's library.zeros."),
  ("A tf_function of TFRecords, jnp", "A library of library, library"),
  ("fine-grained, fine-grain, input, output", "fine-grained, fine-library, input, output"),
  ("tensorflow_datasets.load(matplotlib_axes)", "library.load(library)"),
  ("the platform stuffs relaxed graphs", "the platform stuffs relaxed graphs")])
def test_mask(text, masked):
  assert docstring_tasks.mask_libraries(text) == masked


@pytest.mark.parametrize("text, units, expected", [
  ("Two words, done.", 3, "Two words,"), ("a  b\n c", 9, "a b c"), ("x12 y", 3, "x12"),
  ("snake_case more", 3, "snake_case")])
def test_shorten(text, units, expected):
  assert docstring_tasks.shorten(text, units) == expected


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_inputs_fit_and_labels_are_one_piece(name):
  spec = tasks.spec(name)
  tokenizer = vocabularies.load_light("tiny")
  lengths = [len(tokenizer.encode(row["inputs"])) + 1 for row in rows(name, "validation")]
  assert np.percentile(lengths, 95) <= 96
  for label in spec.labels:
    assert label.islower() and label.isalpha() and len(tokenizer.encode(label)) == 1


@pytest.mark.parametrize("name", CLASSIFICATION + GENERATION)
def test_splits_have_no_module_in_common(name):
  modules = [{row["module"] for row in rows(name, split)}
             for split in tasks.spec(name).source.splits]
  assert all(modules)
  assert sum(map(len, modules)) == len(set().union(*modules))


def test_match():
  own_lines = collections.defaultdict(list)  # a property and its setter have one name
  lines = set()
  for each in corpus().docstrings:
    own_lines[each.module, each.qualname].append(each.first_line)
    lines.add((each.split, each.library, each.first_line))
  found = rows("docstring_match", "train")
  assert 0.48 < sum(row["targets"] == "yes" for row in found) / len(found) < 0.52
  for row in found:
    own = any(row["inputs"].startswith(f"summary: {line} text: ")
              for line in own_lines[row["module"], row["qualname"]])
    assert own == (row["targets"] == "yes")
    line = row["inputs"].removeprefix("summary: ").partition(" text: ")[0]
    assert ("train", row["library"], line) in lines or row["inputs"].count(" text: ") > 1


def test_kind_pair_has_no_library_in_common():
  seen = {row["library"] for row in rows("docstring_kind_seen", "train")}
  unseen = {row["library"] for row in rows("docstring_kind_unseen", "test")}
  assert seen == set(docstring_tasks.SEEN_LIBRARIES) and unseen and not seen & unseen
  assert tasks.spec("docstring_kind_unseen").source.splits == ("validation", "test")
  assert (tasks.spec("docstring_kind_unseen").labels == tasks.spec("docstring_kind_seen").labels)


def docstring(module, name, first_line, body, **rest):
  values = {"library": "lib", "kind": "function", "signature": f"{name.split('.')[-1]}(a, b)",
            "split": "train"}
  return Docstring(module=module, qualname=name, first_line=first_line, body=body,
                   **(values | rest))


LONG = "This text has twelve words at the least so that it is kept."
GIVEN = [docstring("lib.m", "f", "Do one thing.", LONG + " f."),
         docstring("lib.m", "C.g", "Do another thing.", LONG + " g."),
         docstring("lib.n", "_h", "Do a hidden thing.", LONG),
         docstring("lib.n", "k", "Do a short thing.", "Too short.")]


def pairs(view):
  return sorted((row["inputs"], row["targets"]) for row in view("train", GIVEN))


def test_generation_views():
  assert pairs(docstring_tasks.summary_view) == [
    (LONG, "Do a hidden thing."), (LONG + " f.", "Do one thing."),
    (LONG + " g.", "Do another thing.")]
  assert pairs(docstring_tasks.signature_view) == [
    ("C.g(a, b)", "Do another thing."), ("f(a, b)", "Do one thing."),
    ("k(a, b)", "Do a short thing.")]


def test_running_text_joins_a_module():
  assert [row["text"] for row in docstring_tasks.text_view("train", GIVEN)] == [
    f"Do one thing.\n{LONG} f. Do another thing.\n{LONG} g.",
    f"Do a hidden thing.\n{LONG} Do a short thing.\nToo short."]


def test_rows_and_fingerprints_are_stable():
  for name in ("docstring_match", "docstring_summary"):
    assert rows(name, "test") == rows(name, "test")
  prints = [tasks.spec(name).source.fingerprint() for name in tasks.names()
            if name.startswith("docstring_")]
  assert len(set(prints)) == len(prints) - 1  # two objectives share the running text
