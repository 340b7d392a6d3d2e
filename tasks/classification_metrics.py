"""Metrics of classes and of numbers that are written as texts.

Texts are compared after `strip()`; shares and correlations are between 0 (or -1) and 1. A
prediction that is no label is always wrong, in the way that T5's evaluation makes it wrong
(Raffel et al. 2020, section 2.4): in a binary F1 it counts as the label that the target is not, in
a correlation of classes as one more class, in a correlation of numbers as -1.
"""

import math
from collections.abc import Sequence

import numpy as np

from prompt_tuning.errors import UserError, nearest

NOT_A_NUMBER = -1.0


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Share of the predictions that equal their target."""
  return {"accuracy": share([t == p for t, p in pairs(targets, predictions)])}


def macro_f1(targets: Sequence[str], predictions: Sequence[str], *,
             labels: Sequence[str] | None = None) -> dict[str, float]:
  """Mean over the classes of the F1 of each; classes are the labels, else those in the targets.

  A class that is neither in the targets nor predicted is left out of the mean.
  """
  both = pairs(targets, predictions)
  scores = []
  for label in labels if labels is not None else sorted({target for target, _ in both}):
    seen = sum((t == label) + (p == label) for t, p in both)
    if seen:
      scores.append(2 * sum(t == p == label for t, p in both) / seen)
  return {"macro_f1": share(scores)}


def f1_binary(targets: Sequence[str], predictions: Sequence[str], *,
              labels: Sequence[str] | None = None, argument: str | None = None
              ) -> dict[str, float]:
  """F1 of one class: the `argument`, or of two labels the second one.

  Raises:
    UserError: the argument is no label, or there is none and not two labels.
  """
  positive = positive_class(labels, argument)
  hits, seen = 0, 0
  for target, prediction in pairs(targets, predictions):
    is_positive, predicted = target == positive, prediction == positive
    if labels is not None and prediction not in labels:
      predicted = not is_positive
    hits += is_positive and predicted
    seen += is_positive + predicted
  return {"f1": 2 * hits / seen if seen else 0.0}


def positive_class(labels: Sequence[str] | None, argument: str | None) -> str:
  """The class that F1 is of."""
  if argument is not None:
    if labels is not None and argument not in labels:
      raise UserError("F1 is asked of a class that is no label", found=repr(argument),
                      wanted="one of " + ", ".join(map(repr, labels)),
                      fix=nearest(argument, labels))
    return argument
  if labels is None or len(labels) != 2:
    raise UserError("the metric f1_binary needs a positive class",
                    found="no labels" if labels is None else f"{len(labels)} labels",
                    wanted="two labels, of which it takes the second, or the class",
                    fix="name the class: 'f1_binary:yes'")
  return labels[1]


def matthews(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Matthews' correlation, of any number of classes (Gorodkin 2004); 0 where it is not defined.

  It is cov(t, p) / sqrt(cov(t, t) cov(p, p)), where t and p are the classes' indicators, with the
  covariances of all classes added up.
  """
  both = pairs(targets, predictions)
  classes = sorted({text for pair in both for text in pair})
  confusion = np.zeros((len(classes), len(classes)))
  for target, prediction in both:
    confusion[classes.index(target), classes.index(prediction)] += 1
  rows, true, predicted = len(both), confusion.sum(axis=1), confusion.sum(axis=0)
  covariance = rows * np.trace(confusion) - true @ predicted
  scale = (rows**2 - true @ true) * (rows**2 - predicted @ predicted)
  return {"matthews": float(covariance / math.sqrt(scale)) if scale else 0.0}


def pearson(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Pearson's correlation of numbers; 0 where one side is constant."""
  return _correlation("pearson", targets, predictions)


def spearman(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Spearman's rank correlation of numbers; 0 where one side is constant."""
  return _correlation("spearman", targets, predictions)


def _correlation(name: str, targets: Sequence[str], predictions: Sequence[str]
                 ) -> dict[str, float]:
  from scipy import stats

  known = [number(target) for target in targets]
  if None in known:
    row = known.index(None)
    raise UserError(f"the metric {name} needs numbers as targets", found=repr(targets[row]),
                    wanted="a number, as text", fix="choose another metric for this task")
  guesses = [number(prediction) for prediction in predictions]
  values = [NOT_A_NUMBER if guess is None else guess for guess in guesses]
  function = stats.pearsonr if name == "pearson" else stats.spearmanr
  is_defined = len(set(known)) > 1 and len(set(values)) > 1
  if len(known) != len(values):
    raise ValueError(f"{len(values)} predictions, {len(known)} targets: one is longer")
  return {name: float(function(known, values).statistic) if is_defined else 0.0,
          "not_a_number": share([guess is None for guess in guesses])}


def number(text: str) -> float | None:
  """The finite number that a text is, or None."""
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def not_a_label(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
  """Share of the predictions that are none of the labels."""
  return {"not_a_label": share([p.strip() not in labels for p in predictions])}


def pairs(targets: Sequence[str], predictions: Sequence[str]) -> list[tuple[str, str]]:
  """Both without the space around them; a `ValueError` where they differ in number."""
  return [(t.strip(), p.strip()) for t, p in zip(targets, predictions, strict=True)]


def share(values: Sequence[float]) -> float:
  """The mean, 0 of nothing."""
  return sum(values) / len(values) if values else 0.0
