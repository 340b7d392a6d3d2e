"""Metrics against worked examples and formulas written out again."""

import inspect
import math

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import metrics


def test_accuracy_strips():
  assert metrics.accuracy(["a", "b", "c", "d"], ["a ", " b", "C", ""]) == {"accuracy": 0.5}


def test_exact_match_and_token_f1_are_squads():
  targets, predictions = ["The Eiffel Tower!", "in 1889"], ["eiffel tower", "1889 and 1890"]
  assert metrics.exact_match(targets, predictions) == {"exact_match": 0.5}
  # Second pair: one shared word, precision 1/3, recall 1/2.
  expected = (1 + 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)) / 2
  assert metrics.token_f1(targets, predictions)["token_f1"] == pytest.approx(expected)
  assert metrics.token_f1(["the"], ["x"]) == {"token_f1": 0.0}
  assert metrics.token_f1(["the"], ["an"]) == {"token_f1": 1.0}


def test_macro_f1_from_precision_and_recall():
  targets = ["a", "a", "a", "b", "b", "c"]
  predictions = ["a", "a", "b", "b", "zzz", "a"]
  f1 = {"a": (2 / 3, 2 / 3), "b": (1 / 2, 1 / 2)}  # (precision, recall); c has no hit
  expected = sum(2 * p * r / (p + r) for p, r in f1.values()) / 3
  assert metrics.macro_f1(targets, predictions)["macro_f1"] == pytest.approx(expected)
  with_labels = metrics.macro_f1(targets, predictions, labels=("a", "b", "c", "d"))
  assert with_labels["macro_f1"] == pytest.approx(expected)  # d is nowhere


def lcs(left, right):
  table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
  for i, x in enumerate(left):
    for j, y in enumerate(right):
      table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
  return table[-1][-1]


def test_rouge_from_its_definition():
  target, prediction = "the cat sat on the mat", "the cat on a mat sat"
  found = metrics.rouge([target], [prediction])
  words, own = target.split(), prediction.split()
  assert found["rouge1"] == pytest.approx(100 * 2 * 5 / 12)  # the, cat, on, mat, sat
  assert found["rouge2"] == pytest.approx(100 * 2 * 1 / 10)  # "the cat"
  assert found["rougeL"] == pytest.approx(100 * 2 * lcs(words, own) / 12)
  assert metrics.rouge(["Running dogs."], ["run dog"])["rouge1"] == pytest.approx(100)  # stems


def test_bleu_from_its_definition():
  target, prediction = "the cat sat on the mat today", "the cat sat on a mat"
  precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
  brevity = math.exp(1 - 7 / 6)
  expected = 100 * brevity * math.exp(sum(map(math.log, precisions)) / 4)
  assert metrics.bleu([target], [prediction])["bleu"] == pytest.approx(expected)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_extremes(name):
  metric = metrics.bind(name, None)
  texts = ["compute the mean of x along it", "return a copy of the array now"]
  top = 100 if name in ("rouge", "bleu") else 1
  assert all(value == pytest.approx(top) for value in metric(texts, texts).values())
  assert all(value == 0 for value in metric([], []).values())
  with pytest.raises(ValueError, match="shorter|longer"):
    metric(["one"], [])


def test_labels_add_not_a_label():
  bound = metrics.bind("accuracy", ("yes", "no"))
  assert bound(["yes", "no", "no"], ["yes", "maybe", "yes"]) == {
    "accuracy": pytest.approx(1 / 3), "not_a_label": pytest.approx(1 / 3)}
  assert list(inspect.signature(bound).parameters) == ["targets", "predictions"]
  assert bound.__name__ == "accuracy"


def test_unknown_metric():
  with pytest.raises(UserError, match="no metric 'rogue'\n(.*\n)*.*did you mean 'rouge'"):
    metrics.get("rogue")
