"""A mixture is judged as its tasks are one by one; the benchmark's average is the tasks' mean."""

import dataclasses

import pytest
from small_models import model, save_backbone, save_prompt

from prompt_tuning import eval_mixture
from prompt_tuning.errors import UserError
from prompt_tuning.eval_run import EvalConfig, evaluate_runs
from prompt_tuning.evaluate import EvalSettings, Evaluator
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec

LABELS = {"one": ("yes", "no"), "two": ("a", "b", "c")}


@dataclasses.dataclass(frozen=True)
class Rows:
  """Labelled rows, in an order or backwards."""

  labels: tuple[str, ...]
  count: int
  backwards: bool = False
  splits: tuple[str, ...] = ("validation", "validation_mismatched")

  def rows(self, split):
    count = self.count - split.endswith("mismatched")
    found = [{"inputs": f"row {i}", "targets": self.labels[i * i % len(self.labels)]}
             for i in range(count)]
    return iter(found[::-1] if self.backwards else found)

  def fingerprint(self):
    return f"{self.labels} {self.count} {self.backwards}"


@dataclasses.dataclass(frozen=True)
class Mixed:
  """A mixture of both tasks, each with a second test set; its `name` makes it one of its own."""

  name: str
  order: tuple[str, ...] = ("one", "two")
  backwards: bool = False

  def task(self, key):
    splits = ("validation", "validation_mismatched") if key == "two" else ("validation",)
    source = Rows(LABELS[key], 7, self.backwards, splits)
    return TaskSpec(name=f"{self.name}_{key}", source=source, to_text=dict, labels=LABELS[key],
                    metrics=("accuracy", "macro_f1"))

  def spec(self):
    tasks = tuple(map(self.task, self.order))
    return MixtureSpec(name=self.name, tasks=tasks, rates={task.name: 1.0 for task in tasks})


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mixture")
  save_prompt(folder / "prompt.npy")
  save_backbone(folder / "backbone")  # read for each evaluation: random ones are compiled

  def config(name, source, **settings):
    task = TaskConfig(name=name, feature_lengths={"inputs": 8, "targets": 5}, source=source,
                      cache_dir=str(folder / "tokens"))
    return EvalConfig(model=model(initial_checkpoint_path=str(folder / "backbone")), task=task,
                      prompt_file=str(folder / "prompt.npy"),
                      eval_settings=EvalSettings(batch_size=4, **settings))

  return config


def of(evaluation):
  """(task without the mixture's name, split) -> metrics."""
  return {(config.task.name.rpartition("_")[2], config.eval_settings.split): report.result.metrics
          for config, report in evaluation.reports}


def test_each_task_as_by_itself_in_any_order(evaluate):
  both = Mixed("glue")
  found = eval_mixture.evaluate(evaluate("glue", both))
  metrics = of(found)
  assert list(metrics) == [("one", "validation"), ("two", "validation"),
                           ("two", "validation_mismatched")]
  for key, split in metrics:
    task = both.task(key)
    alone, = evaluate_runs([evaluate(task.name, eval_mixture.Given(task), split=split)])
    assert alone.result.metrics == metrics[key, split]
    assert alone.result.metrics["examples"] == 7 - split.endswith("mismatched")
  # Neither the order of the tasks nor that of their rows matters.
  again = of(eval_mixture.evaluate(evaluate("turned", Mixed("turned", ("two", "one"), True))))
  assert again.keys() == metrics.keys()
  for name, values in metrics.items():
    assert again[name] == pytest.approx(values, abs=1e-6)
  # Tasks that no benchmark knows leave its own ones missing, by name.
  score, missing = found.averages["glue"]
  assert score is None and missing == tuple(eval_mixture.benchmark_averages.BENCHMARKS["glue"])


def test_the_loss_takes_the_mixture_as_one_stream(evaluate):
  found = eval_mixture.evaluate(evaluate("glue_loss", Mixed("glue_loss"), method="loss"))
  (_, report), = found.reports
  assert report.result.metrics["examples"] == 14 and found.averages == {}


def test_a_mixture_as_one_stream_is_not_decoded(evaluate):
  """`eval` judges task by task; training would judge all rows by the first task's metrics."""
  config = evaluate("glue_decoded", Mixed("glue_decoded"), method="decode")
  with pytest.raises(UserError, match="metrics of their own"):
    Evaluator(config.model, config.task, config.eval_settings)


def test_the_average_is_that_of_the_benchmark(evaluate, monkeypatch):
  """A benchmark of these two tasks: one metric, and the mean of a metric on two test sets."""
  wanted = {"glue": {"one": (("one", "accuracy"),),
                     "two": (("two", "macro_f1"), ("two_mismatched", "macro_f1"))}}
  monkeypatch.setattr(eval_mixture.benchmark_averages, "BENCHMARKS", wanted)
  found = eval_mixture.evaluate(evaluate("glue", Mixed("glue")))
  metrics = of(found)
  two = [metrics["two", split]["macro_f1"] for split in ("validation", "validation_mismatched")]
  score, missing = found.averages["glue"]
  assert missing == () and score == pytest.approx(
    (metrics["one", "validation"]["accuracy"] + sum(two) / 2) / 2)
