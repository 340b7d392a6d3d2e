"""Metrics by name: (targets, predictions), lists of texts -> name -> number.

Texts are compared after `strip()`. Shares (accuracy, F1) are between 0 and 1; ROUGE and BLEU are
between 0 and 100, as they are published. With labels, predictions that are none of them are
wrong, and their share is reported as `not_a_label`.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Sequence

from prompt_tuning.errors import UserError, nearest

Metric = Callable[..., dict[str, float]]


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Share of the predictions that equal their target."""
  return {"accuracy": _share(_equal(targets, predictions))}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Share that equals the target after SQuAD's normalisation: no case, marks and articles."""
  return {"exact_match": _share([_normalise(t) == _normalise(p) for t, p in
                                 _pairs(targets, predictions)])}


def token_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Mean F1 of the normalised words that target and prediction share (SQuAD's F1)."""
  return {"token_f1": _share([_word_f1(_normalise(t).split(), _normalise(p).split())
                              for t, p in _pairs(targets, predictions)])}


def macro_f1(targets: Sequence[str], predictions: Sequence[str], *,
             labels: Sequence[str] | None = None) -> dict[str, float]:
  """Mean over the classes of the F1 of each; classes are the labels, else those in the targets.

  A class that is neither in the targets nor predicted is left out of the mean.
  """
  pairs = _pairs(targets, predictions)
  scores = []
  for label in labels if labels is not None else sorted({target for target, _ in pairs}):
    hits = sum(t == p == label for t, p in pairs)
    seen = sum((t == label) + (p == label) for t, p in pairs)
    if seen:
      scores.append(2 * hits / seen)
  return {"macro_f1": _share(scores)}


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, 0 to 100."""
  from rouge_score import rouge_scorer

  kinds = ("rouge1", "rouge2", "rougeL")
  scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
  scores = [scorer.score(t, p) for t, p in _pairs(targets, predictions)]
  return {kind: 100 * _share([score[kind].fmeasure for score in scores]) for kind in kinds}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Corpus BLEU of sacrebleu (13a tokenisation, exponential smoothing), 0 to 100."""
  import sacrebleu

  pairs = _pairs(targets, predictions)
  if not pairs:
    return {"bleu": 0.0}
  score = sacrebleu.corpus_bleu([p for _, p in pairs], [[t for t, _ in pairs]])
  return {"bleu": float(score.score)}


METRICS: dict[str, Metric] = {function.__name__: function for function in (
  accuracy, exact_match, token_f1, macro_f1, rouge, bleu)}


def get(name: str) -> Metric:
  """The metric of that name.

  Raises:
    UserError: there is none.
  """
  if name not in METRICS:
    raise UserError(f"there is no metric {name!r}", found=name,
                    wanted="one of " + ", ".join(METRICS), fix=nearest(name, METRICS))
  return METRICS[name]


def bind(name: str, labels: Sequence[str] | None) -> Metric:
  """The metric with a task's labels filled in; it adds `not_a_label` where there are labels."""
  metric = get(name)

  @functools.wraps(metric)
  def bound(targets, predictions):
    if labels is None:
      return metric(targets, predictions)
    known = {"labels": labels} if metric is macro_f1 else {}
    return {**metric(targets, predictions, **known), **not_a_label(predictions, labels)}

  del bound.__wrapped__  # seqio reads the signature: it is (targets, predictions)
  return bound


def not_a_label(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
  """Share of the predictions that are none of the labels."""
  return {"not_a_label": _share([p.strip() not in labels for p in predictions])}


def _pairs(targets: Sequence[str], predictions: Sequence[str]) -> list[tuple[str, str]]:
  return [(t.strip(), p.strip()) for t, p in zip(targets, predictions, strict=True)]


def _equal(targets: Sequence[str], predictions: Sequence[str]) -> list[bool]:
  return [t == p for t, p in _pairs(targets, predictions)]


def _share(values: Sequence[float]) -> float:
  return sum(values) / len(values) if values else 0.0


def _normalise(text: str) -> str:
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(target: list[str], prediction: list[str]) -> float:
  if not target or not prediction:
    return float(target == prediction)
  shared = sum((collections.Counter(target) & collections.Counter(prediction)).values())
  return 2 * shared / (len(target) + len(prediction))
