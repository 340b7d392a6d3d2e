"""Metrics of question answering: SQuAD's, ReCoRD's and MultiRC's; shares between 0 and 1.

Answers are compared after SQuAD's normalisation: without case, punctuation and articles
(Rajpurkar et al. 2016, section 6.1). Of several right answers the best one counts.
"""

import collections
import re
import string
from collections.abc import Hashable, Sequence

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.classification_metrics import f1_binary, pairs, share

References = Sequence[Sequence[str]]


def exact_match(targets: Sequence[str], predictions: Sequence[str], *,
                references: References | None = None) -> dict[str, float]:
  """Share that equals a right answer after normalisation."""
  return {"exact_match": share(_exact(targets, predictions, references))}


def token_f1(targets: Sequence[str], predictions: Sequence[str], *,
             references: References | None = None) -> dict[str, float]:
  """Mean of the best F1 of the normalised words that an answer and the prediction share."""
  return {"token_f1": share(_f1(targets, predictions, references))}


def squad(targets: Sequence[str], predictions: Sequence[str], *,
          references: References | None = None) -> dict[str, float]:
  """SQuAD's exact match `em` and word-overlap `f1`."""
  return {"em": share(_exact(targets, predictions, references)),
          "f1": share(_f1(targets, predictions, references))}


def record(targets: Sequence[str], predictions: Sequence[str], *,
           references: References | None = None, groups: Sequence[Hashable] | None = None
           ) -> dict[str, float]:
  """ReCoRD's `em` and `f1`: as SQuAD's, each query once.

  Where rows repeat a query (one row an answer), its first prediction is judged by the answers of
  all its rows.
  """
  _, chosen, answers = first_of_group(targets, predictions, references, groups)
  return squad([texts[0] for texts in answers], chosen, references=answers)


def multirc(targets: Sequence[str], predictions: Sequence[str], *,
            groups: Sequence[Hashable] | None = None, labels: Sequence[str] | None = None
            ) -> dict[str, float]:
  """MultiRC's `f1a`, over all answers, and `em`: questions of which every answer is judged right.

  Raises:
    UserError: the rows do not say which question they are of.
  """
  if groups is None:
    raise UserError("the metric multirc needs the question of each row", found="rows without group",
                    wanted="`group` in what to_text makes of a row",
                    fix="add it, or choose f1_binary and accuracy")
  is_right: dict[Hashable, bool] = {}
  for (target, prediction), group in zip(pairs(targets, predictions), groups, strict=True):
    is_right[group] = is_right.get(group, True) and target == prediction
  return {"f1a": f1_binary(targets, predictions, labels=labels)["f1"],
          "em": share(list(is_right.values()))}


def first_of_group(targets: Sequence[str], predictions: Sequence[str],
                   references: References | None, groups: Sequence[Hashable] | None,
                   ) -> tuple[list[int], list[str], list[list[str]]]:
  """Rows of one group as one: (the first row, its prediction, the right answers of all rows).

  Without groups each row stands for itself; without references its target is the right answer.
  """
  merged: dict[Hashable, tuple[int, str, list[str]]] = {}
  for row, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
    answers = list(references[row]) if references is not None else []
    key = row if groups is None else ("group", groups[row])
    _, _, known = merged.setdefault(key, (row, prediction, []))
    known += [text for text in answers or [target] if text not in known]
  values = list(merged.values())
  return [v[0] for v in values], [v[1] for v in values], [v[2] for v in values]


def normalise(text: str) -> str:
  """SQuAD's normalisation."""
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _exact(targets: Sequence[str], predictions: Sequence[str],
           references: References | None) -> list[float]:
  return [float(any(normalise(answer) == normalise(prediction) for answer in answers))
          for answers, prediction in _judged(targets, predictions, references)]


def _f1(targets: Sequence[str], predictions: Sequence[str],
        references: References | None) -> list[float]:
  return [max(_word_f1(normalise(answer).split(), normalise(prediction).split())
              for answer in answers)
          for answers, prediction in _judged(targets, predictions, references)]


def _judged(targets: Sequence[str], predictions: Sequence[str], references: References | None
            ) -> list[tuple[list[str], str]]:
  _, chosen, answers = first_of_group(targets, predictions, references, None)
  return list(zip(answers, chosen, strict=True))


def _word_f1(target: list[str], prediction: list[str]) -> float:
  if not target or not prediction:
    return float(target == prediction)
  shared = sum((collections.Counter(target) & collections.Counter(prediction)).values())
  return 2 * shared / (len(target) + len(prediction))
