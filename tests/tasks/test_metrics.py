"""Metrics against worked examples and formulas written out again."""

import inspect
import math

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import metrics
from prompt_tuning.tasks.answer_metrics import exact_match, token_f1
from prompt_tuning.tasks.classification_metrics import accuracy, macro_f1
from prompt_tuning.tasks.overlap_metrics import bleu, rouge


def test_accuracy_strips():
  assert accuracy(["a", "b", "c", "d"], ["a ", " b", "C", ""]) == {"accuracy": 0.5}


def test_exact_match_and_token_f1_are_squads():
  targets, predictions = ["The Eiffel Tower!", "in 1889"], ["eiffel tower", "1889 and 1890"]
  assert exact_match(targets, predictions) == {"exact_match": 0.5}
  # Second pair: one shared word, precision 1/3, recall 1/2.
  expected = (1 + 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)) / 2
  assert token_f1(targets, predictions)["token_f1"] == pytest.approx(expected)
  assert token_f1(["the"], ["x"]) == {"token_f1": 0.0}
  assert token_f1(["the"], ["an"]) == {"token_f1": 1.0}


def test_macro_f1_from_precision_and_recall():
  targets = ["a", "a", "a", "b", "b", "c"]
  predictions = ["a", "a", "b", "b", "zzz", "a"]
  f1 = {"a": (2 / 3, 2 / 3), "b": (1 / 2, 1 / 2)}  # (precision, recall); c has no hit
  expected = sum(2 * p * r / (p + r) for p, r in f1.values()) / 3
  assert macro_f1(targets, predictions)["macro_f1"] == pytest.approx(expected)
  with_labels = macro_f1(targets, predictions, labels=("a", "b", "c", "d"))
  assert with_labels["macro_f1"] == pytest.approx(expected)  # d is nowhere


def lcs(left, right):
  table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
  for i, x in enumerate(left):
    for j, y in enumerate(right):
      table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
  return table[-1][-1]


def test_rouge_from_its_definition():
  target, prediction = "the cat sat on the mat", "the cat on a mat sat"
  found = rouge([target], [prediction])
  words, own = target.split(), prediction.split()
  assert found["rouge1"] == pytest.approx(100 * 2 * 5 / 12)  # the, cat, on, mat, sat
  assert found["rouge2"] == pytest.approx(100 * 2 * 1 / 10)  # "the cat"
  assert found["rougeL"] == pytest.approx(100 * 2 * lcs(words, own) / 12)
  assert rouge(["Running dogs."], ["run dog"])["rouge1"] == pytest.approx(100)  # stems


def test_bleu_from_its_definition():
  target, prediction = "the cat sat on the mat today", "the cat sat on a mat"
  precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
  brevity = math.exp(1 - 7 / 6)
  expected = 100 * brevity * math.exp(sum(map(math.log, precisions)) / 4)
  assert bleu([target], [prediction])["bleu"] == pytest.approx(expected)


OF_TEXTS = [name for name in metrics.METRICS if name not in (
  "matthews", "pearson", "spearman", "f1_binary", "multirc", "wsc")]
TOP = {"rouge": 100, "bleu": 100, "bleu_uncased": 100, "chrf": 100, "ter": 0}


@pytest.mark.parametrize("name", OF_TEXTS)
def test_extremes(name):
  metric = metrics.bind(name, None)
  texts = ["compute the mean of x along it", "return a copy of the array now"]
  found = metric(texts, texts)
  if name == "nist":  # without an upper end; no other prediction has more
    assert found["nist"] > metric(texts, texts[::-1])["nist"]
  elif name == "meteor":  # one chunk of 6 and of 7 words: 1 - 0.5 / words^3
    assert found["meteor_exact_stem"] == pytest.approx(100 * (1 - 0.25 / 7**3 - 0.25 / 7**3))
  else:
    assert all(value == pytest.approx(TOP.get(name, 1)) for value in found.values())
  assert all(value == 0 for value in metric([], []).values())
  with pytest.raises(ValueError, match="shorter|longer"):
    metric(["one"], [])


def test_targets_carry_references_groups_and_labels():
  extras = metrics.pack_extras({"inputs": "x", "references": ("a", "b c"), "group": 7})
  target = metrics.Target.parse("a", extras)
  assert target == metrics.Target("a", ("a", "b c"), "7")
  assert metrics.pack_extras({"inputs": "x", "targets": "a"}) == ""
  assert metrics.Target.parse("a", "") == metrics.Target("a")
  assert metrics.bind("squad", None)([target, "d"], ["the b c", "d"]) == {"em": 1.0, "f1": 1.0}
  with pytest.raises(UserError, match="(?s)some rows have no group.*row 1"):
    metrics.bind("record", None)([target, "d"], ["a", "d"])


def test_an_argument_stands_after_the_colon():
  bound = metrics.bind("f1_binary:no", ("no", "yes"))
  assert bound(["no", "no", "yes"], ["no", "yes", "yes"])["f1"] == pytest.approx(2 / 3)
  assert metrics.bind("f1_binary", ("no", "yes"))(["yes"], ["yes"])["f1"] == 1
  with pytest.raises(UserError, match="(?s)a class that is no label.*'nein'"):
    metrics.bind("f1_binary:nein", ("no", "yes"))
  with pytest.raises(UserError, match="(?s)needs a positive class.*3 labels"):
    metrics.bind("f1_binary", ("a", "b", "c"))
  with pytest.raises(UserError, match="takes no argument"):
    metrics.get("accuracy:yes")


def test_labels_add_not_a_label():
  bound = metrics.bind("accuracy", ("yes", "no"))
  assert bound(["yes", "no", "no"], ["yes", "maybe", "yes"]) == {
    "accuracy": pytest.approx(1 / 3), "not_a_label": pytest.approx(1 / 3)}
  assert list(inspect.signature(bound).parameters) == ["targets", "predictions"]
  assert bound.__name__ == "accuracy"


def test_unknown_metric():
  with pytest.raises(UserError, match="no metric 'rogue'\n(.*\n)*.*did you mean 'rouge'"):
    metrics.get("rogue")
