"""Metrics of a user's own seqio task, called as seqio's evaluator calls them.

A postprocessor gets the text of a target (`is_target=True`) or of a prediction (`is_target=False`)
and the row with all of its features; metric functions of targets and predictions get its results.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

from prompt_tuning.data import dataset_of
from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)


class SeqioMetrics:
  """The metrics of the first rows of one task and split."""

  def __init__(self, task: Any, split: str, limit: int, targets: Sequence[str], *,
               use_cached: bool = False):
    """Args:
      limit: how many rows.
      targets: their texts, for a task that does not keep its own.

    Raises:
      UserError: none of the task's metrics is of texts.
    """
    check(task)
    self._task, self._rows = task, None
    self._targets: list[Any] = list(targets)
    if task.postprocessor is not None:
      dataset = dataset_of(task, split, None, use_cached)
      self._rows = list(itertools.islice(dataset.as_numpy_iterator(), limit))
      self._targets = [
        task.postprocess_fn(_text(row.get("targets_pretokenized", text)), example=row,
                            is_target=True)
        for row, text in zip(self._rows, targets, strict=True)]

  def __call__(self, predictions: Sequence[str]) -> dict[str, float]:
    """The metrics of the texts that were generated for the first rows."""
    made: list[Any] = list(predictions)
    if self._rows is not None:
      made = [self._task.postprocess_fn(text, example=row, is_target=False)
              for row, text in zip(self._rows, made, strict=False)]
    values: dict[str, float] = {}
    for metric in self._task.predict_metric_fns:
      found = metric(targets=self._targets[:len(made)], predictions=made)
      values |= {name: _number(self._task.name, name, value) for name, value in found.items()}
    return values


def check(task: Any) -> None:
  """Whether texts are enough for a task's metrics.

  Raises:
    UserError: all of them want something else.
  """
  other = [getattr(each, "__name__", repr(each))
           for each in (*task.score_metric_fns, *task.predict_with_aux_metric_fns)]
  # The others of them wrap metric_fns.
  objects = len(task.metric_objs) - len(task.metric_fns)
  other += [type(each).__name__ for each in task.metric_objs[:objects]]
  if other and not task.predict_metric_fns:
    raise UserError(f"No metric of the task {task.name!r} is of texts",
                    found=", ".join(other) + ": of scores, of auxiliary values, or metric_objs",
                    wanted="metric_fns with the arguments (targets, predictions)",
                    fix="add one to the task, or set EvalSettings.method = 'loss'")
  if other:
    log.warning("%s: not measured, as they are not of targets and predictions: %s", task.name,
                ", ".join(other))


def _text(value: bytes | str) -> str:
  return value.decode("utf-8") if isinstance(value, bytes) else value


def _number(task: str, name: str, value: Any) -> float:
  value = getattr(value, "value", value)  # seqio.metrics.Scalar
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    raise UserError(f"The metric {name!r} of {task!r} is no number", found=type(value).__name__,
                    wanted="numbers by name", fix="let the metric function return them") from error
