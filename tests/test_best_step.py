"""Which evaluation is the best: one that is no number never is."""

import math
from types import SimpleNamespace

import pytest

from prompt_tuning.train_loop import Trainer


def best_step(*scores):
  """The step that a run of these accuracies and losses ends with."""
  stands_in = SimpleNamespace(evaluator=SimpleNamespace(score=lambda metrics: metrics))
  record = {"score": None, "best_step": None, "worse": 0}
  for step, score in enumerate(scores):
    Trainer._is_better(stands_in, record, SimpleNamespace(metrics=list(score)), step)
  return record["best_step"], record["worse"]


@pytest.mark.parametrize("scores, wanted", [
  ([(-0.5,), (-0.4,), (-0.6,)], (1, 1)),
  ([(-0.5,), (math.nan,), (-0.6,)], (0, 2)),
  ([(0.9, -0.1), (0.9, math.nan)], (0, 1)),
  ([(math.nan,), (-3.0,)], (1, 0)),
  ([(math.nan,), (math.nan,)], (0, 1))])
def test_what_is_no_number_is_never_better(scores, wanted):
  assert best_step(*scores) == wanted
