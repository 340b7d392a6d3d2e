"""Classes and numbers, against scikit-learn's values, scipy's and formulas written out."""

import math

import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import benchmark_averages, classification_metrics, metrics

TARGETS = ["a", "a", "b", "c", "b", "a", "c", "b"]
PREDICTIONS = ["a", "b", "b", "c", "x", "a", "a", "b"]


def test_matthews_is_scikit_learns():
  # sklearn.metrics.matthews_corrcoef, 1.9.1; `x` is one more class there too.
  found = classification_metrics.matthews(TARGETS, PREDICTIONS)
  assert found["matthews"] == pytest.approx(0.4652421051992354, abs=1e-12)
  assert classification_metrics.macro_f1(TARGETS, PREDICTIONS, labels=("a", "b", "c"))[
    "macro_f1"] == pytest.approx(0.6666666666666666)


def test_matthews_of_two_classes_is_the_correlation_of_their_indicators():
  targets, predictions = list("0110101"), list("0101101")
  expected = np.corrcoef([list(map(int, targets)), list(map(int, predictions))])[0, 1]
  assert expected == pytest.approx(0.4166666666666667)  # scikit-learn's
  found = classification_metrics.matthews(targets, predictions)
  assert found == {"matthews": pytest.approx(expected)}
  assert classification_metrics.matthews(["1", "0"], ["1", "1"]) == {"matthews": 0.0}


def test_f1_counts_no_label_as_the_other_one():
  labels = ("no", "yes")
  found = metrics.bind("f1_binary", labels)(
    ["yes", "yes", "no", "no", "yes"], ["yes", "maybe", "eh", "no", "no"])
  # Of `yes`: 1 hit; predicted twice (the second `eh`), true three times.
  assert found == {"f1": pytest.approx(2 * 1 / 5), "not_a_label": pytest.approx(2 / 5)}


def test_correlations_of_numbers():
  targets, predictions = ["1.0", "2.0", "3.0", "4.0"], ["1", "3", "2", "5.5"]
  x, y = np.array([1, 2, 3, 4.0]), np.array([1, 3, 2, 5.5])
  expected = ((x - x.mean()) @ (y - y.mean())) / math.sqrt(
    ((x - x.mean())**2).sum() * ((y - y.mean())**2).sum())
  assert classification_metrics.pearson(targets, predictions) == {
    "pearson": pytest.approx(expected), "not_a_number": 0.0}
  # Ranks 1 3 2 4: 1 - 6 sum d^2 / (n (n^2 - 1)).
  assert classification_metrics.spearman(targets, predictions)["spearman"] == pytest.approx(
    1 - 6 * 2 / (4 * 15))


def test_what_is_no_number_counts_as_minus_one():
  found = classification_metrics.pearson(["1", "2", "5"], ["2", "nan", "about 5"])
  expected = np.corrcoef([1, 2, 5], [2, -1, -1])[0, 1]
  assert found == {"pearson": pytest.approx(expected), "not_a_number": pytest.approx(2 / 3)}
  assert classification_metrics.spearman(["1", "2"], ["3", "3"])["spearman"] == 0
  with pytest.raises(UserError, match="(?s)needs numbers as targets.*'good'"):
    classification_metrics.pearson(["good"], ["1"])


def test_the_averages_of_t5_11b_are_the_published_ones():
  # T5's rows of both leaderboards: 90.3 and 89.3.
  glue = {"cola": {"matthews": 71.6}, "sst2": {"accuracy": 97.5},
          "mrpc": {"f1": 92.8, "accuracy": 90.4}, "stsb": {"pearson": 93.1, "spearman": 92.8},
          "qqp": {"f1": 75.1, "accuracy": 90.6}, "mnli": {"accuracy": 92.2},
          "mnli_mismatched": {"accuracy": 91.9}, "qnli": {"accuracy": 96.9},
          "rte": {"accuracy": 92.8}, "wnli": {"accuracy": 94.5}}
  score, missing = benchmark_averages.average("glue", glue)
  assert round(score, 1) == 90.3 and missing == ()
  super_glue = {"boolq": {"accuracy": 91.2}, "cb": {"macro_f1": 93.9, "accuracy": 96.8},
                "copa": {"accuracy": 94.8}, "multirc": {"f1a": 88.1, "em": 63.3},
                "record": {"f1": 94.1, "em": 93.4}, "rte": {"accuracy": 92.5},
                "wic": {"accuracy": 76.9}, "wsc": {"accuracy": 93.8}}
  score, _ = benchmark_averages.average(
    "super_glue", {f"super_glue_{name}": found for name, found in super_glue.items()})
  assert score == pytest.approx(89.3, abs=0.051)
  del glue["mnli"]
  assert benchmark_averages.average("glue", glue) == (None, ("mnli",))
