"""Which evaluation is the best: by BEST_METRICS; one that is no number never is."""

import math
from types import SimpleNamespace

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.selection import Selection
from prompt_tuning.train_config import TrainConfig
from prompt_tuning.train_loop import Trainer


def best_step(*scores):
  """The step that a run of these accuracies and losses ends with."""
  stands_in = SimpleNamespace(selection=SimpleNamespace(score=lambda metrics: metrics))
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


def an_evaluator(method, *names):
  return SimpleNamespace(method=method, metric_names=lambda: sorted(names))


RANKED = an_evaluator("rank", "accuracy", "f1", "label_loss", "loss")
DECODED = an_evaluator("decode", "em", "f1", "loss", "ter")


@pytest.mark.parametrize("evaluator, given, worse, better", [
  (RANKED, None, {"accuracy": 0.5, "label_loss": 0.2}, {"accuracy": 0.6, "label_loss": 0.9}),
  (RANKED, None, {"accuracy": 0.5, "label_loss": 0.2}, {"accuracy": 0.5, "label_loss": 0.1}),
  (RANKED, ("f1", "accuracy"), {"accuracy": 0.9, "f1": 0.2, "label_loss": 0.1},
   {"accuracy": 0.7, "f1": 0.5, "label_loss": 0.9}),
  (RANKED, ("label_loss",), {"accuracy": 0.9, "label_loss": 0.2},
   {"accuracy": 0.1, "label_loss": 0.1}),
  (DECODED, None, {"f1": 60.0, "loss": 1.1}, {"f1": 50.0, "loss": 1.0}),
  (DECODED, ("ter",), {"ter": 0.9, "loss": 1.0}, {"ter": 0.8, "loss": 1.1}),
  (DECODED, ("f1",), {"f1": 50.0, "loss": 1.0}, {"f1": 60.0, "loss": 1.1}),
  (DECODED, ("f1", "em"), {"f1": 50.0, "em": 40.0, "loss": 1.0},
   {"f1": 49.0, "em": 42.0, "loss": 1.1})])
def test_what_is_chosen_by(evaluator, given, worse, better):
  selection = Selection.of(given, evaluator)
  assert selection.score(better) > selection.score(worse)


def test_value_and_name():
  selection = Selection.of(("f1", "em"), DECODED)
  assert (selection.name, selection.value({"f1": 50.0, "em": 40.0, "loss": 1.0})) == ("f1 + em", 45)


@pytest.mark.parametrize("given, message", [
  (("exact",), "wanted: one of em, f1, loss, ter"), (("examples",), "one of em, f1, loss"),
  (("f1", "loss"), "leave out loss"), (("f1", "ter"), "leave out ter")])
def test_metrics_that_cannot_choose(given, message):
  with pytest.raises(UserError) as found:
    Selection.of(given, DECODED)
  assert message in str(found.value)


def config(**settings):
  task = SimpleNamespace(pack=False)
  return TrainConfig(model=SimpleNamespace(prompt=None), task=task, optimizer=None, model_dir="x",
                     train_steps=1, batch_size=1, **settings)


def test_settings():
  assert config(best_metrics="f1").best_metrics == ("f1",)
  assert config(best_metrics=["f1", "em"]).best_metrics == ("f1", "em")
  with pytest.raises(UserError, match="BEST_METRICS is empty"):
    config(best_metrics=())
  with pytest.raises(UserError, match="best_metrics without eval_settings"):
    config(best_metrics=("f1",), eval_settings=None)
