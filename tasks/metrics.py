"""Metrics by name, as task rows and METRICS name them.

A metric is a pure function of lists, `(targets, predictions, **wanted)`, to name -> number. Of
these keywords it gets the ones that it has:

  labels      of the task, or None
  argument    what stands after the colon of `f1_binary:yes`
  references  all right answers of each row
  groups      what belongs together (a question of MultiRC, a source with several references)
  row_labels  what each row is really labelled, where its target is not that (WSC)

`bind` makes of it what seqio wants, a function of (targets, predictions) whose targets may be texts
or `Target`s. With labels, the share of the predictions that are none is reported as `not_a_label`.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import answer_metrics, classification_metrics, overlap_metrics
from prompt_tuning.tasks.classification_metrics import not_a_label
from prompt_tuning.tasks.winograd import wsc

Metric = Callable[..., dict[str, float]]

METRICS: dict[str, Metric] = {function.__name__: function for function in (
  classification_metrics.accuracy, classification_metrics.macro_f1,
  classification_metrics.f1_binary, classification_metrics.matthews,
  classification_metrics.pearson, classification_metrics.spearman, wsc,
  answer_metrics.exact_match, answer_metrics.token_f1, answer_metrics.squad,
  answer_metrics.record, answer_metrics.multirc,
  overlap_metrics.rouge, overlap_metrics.bleu, overlap_metrics.bleu_uncased, overlap_metrics.nist,
  overlap_metrics.meteor, overlap_metrics.chrf, overlap_metrics.ter)}
# Judged by something else than the labels: a prediction need not be one.
_FREE_TEXT = (wsc,)


@dataclasses.dataclass(frozen=True)
class Target:
  """The target of a row that says more than its text.

  Attributes:
    text: the target.
    references: all right answers; none: the text is the one.
    group, label: as `spec.EXTRAS` says.
  """

  text: str
  references: tuple[str, ...] = ()
  group: str | None = None
  label: str | None = None

  @classmethod
  def parse(cls, text: str, extras: str) -> "Target":
    """Of a row whose extras are the JSON that `pack_extras` made."""
    found = json.loads(extras) if extras else {}
    return cls(text, tuple(found.get("references", ())), found.get("group"), found.get("label"))


def pack_extras(example: Mapping[str, Any]) -> str:
  """`references`, `group` and `label` of an example as one text; "" where it has none."""
  found: dict[str, Any] = {}
  if example.get("references"):
    found["references"] = [str(text) for text in example["references"]]
  for name in ("group", "label"):
    if example.get(name) is not None:
      found[name] = str(example[name])
  return json.dumps(found, ensure_ascii=False) if found else ""


def get(name: str) -> Metric:
  """The metric of that name; what follows a colon is its argument.

  Raises:
    UserError: there is none, or it takes no argument.
  """
  name, colon, argument = name.partition(":")
  if name not in METRICS:
    raise UserError(f"there is no metric {name!r}", found=name,
                    wanted="one of " + ", ".join(METRICS), fix=nearest(name, METRICS))
  if colon and "argument" not in inspect.signature(METRICS[name]).parameters:
    raise UserError(f"the metric {name!r} takes no argument", found=f"{name}:{argument}",
                    wanted=name, fix="leave out the colon and what follows")
  return METRICS[name]


def bind(name: str, labels: Sequence[str] | None) -> Metric:
  """The metric for one task, of (targets, predictions).

  Raises:
    UserError: as `get`, and where the argument is no label.
  """
  metric = get(name)
  argument = name.partition(":")[2] or None
  takes = set(inspect.signature(metric).parameters)
  if metric is classification_metrics.f1_binary:
    classification_metrics.positive_class(labels, argument)

  def bound(targets, predictions):
    rows = [target if isinstance(target, Target) else Target(target) for target in targets]
    wanted = {"labels": lambda: labels, "argument": lambda: argument,
              "references": lambda: _references(rows),
              "groups": lambda: _column(rows, "group", name),
              "row_labels": lambda: _column(rows, "label", name)}
    found = metric([row.text for row in rows], predictions,
                   **{key: value() for key, value in wanted.items() if key in takes})
    if labels is None or metric in _FREE_TEXT:
      return found
    return {**found, **not_a_label(predictions, labels)}

  bound.__name__ = name
  return bound


def _references(rows: Sequence[Target]) -> list[Sequence[str]] | None:
  if not any(row.references for row in rows):
    return None
  return [row.references or (row.text,) for row in rows]


def _column(rows: Sequence[Target], field: str, metric: str) -> list[str] | None:
  values = [getattr(row, field) for row in rows]
  if not any(value is not None for value in values):
    return None
  if None in values:
    raise UserError(f"some rows have no {field}", found=f"row {values.index(None)} has none",
                    wanted=f"a {field} for every row, or for none, to compute {metric}",
                    fix="correct what to_text makes of a row")
  return values
