"""Evaluates every task of a mixture by its own metrics, and averages those of a benchmark.

A mixture is trained as one stream but judged task by task: `eval` on `super_glue` ranks BoolQ's
labels, decodes ReCoRD's answers, and ends with SuperGLUE's average. A task with a second test set
of that split (`validation_mismatched` of MNLI) is evaluated on both.
"""

import dataclasses

from prompt_tuning.eval_run import EvalConfig, Report, evaluate_runs
from prompt_tuning.task_setup import set_up
from prompt_tuning.tasks import benchmark_averages
from prompt_tuning.tasks.spec import TaskSpec
from prompt_tuning.tasks.variants import Variant

SECOND = "mismatched"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Attributes:
    reports: what was asked (task, split) and what came of it.
    averages: benchmark -> its score, or None and the tasks that it lacks.
  """

  reports: list[tuple[EvalConfig, Report]]
  averages: dict[str, tuple[float | None, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class Given:
  """A TASK_SOURCE that is a row itself."""

  row: TaskSpec

  def spec(self) -> TaskSpec:
    return self.row


def evaluate(config: EvalConfig) -> Evaluation:
  """Evaluates a task, or each task of a mixture.

  Raises:
    UserError: a setting, a file or the data is wrong; a task lacks the split.
  """
  configs = parts(config)
  reports = evaluate_runs(configs)
  return Evaluation(list(zip(configs, reports, strict=True)),
                    averages(configs, reports) if len(configs) > 1 else {})


def parts(config: EvalConfig) -> list[EvalConfig]:
  """One evaluation a task; METHOD = 'loss' takes the mixture as one stream."""
  setup = set_up(config.task, config.model.vocabulary)
  if len(setup.parts) == 1 or config.eval_settings.method == "loss":
    return [config]
  found = []
  for name, row in setup.rows.items():
    # The rows are varied already: TASKLESS must not take off a second prefix.
    task = dataclasses.replace(config.task, name=setup.names[name], variant=Variant(),
                               source=None if row is None else Given(row))
    split = config.eval_settings.split
    second = f"{split}_{SECOND}"
    for each in (split, second) if second in setup.parts[name].splits else (split,):
      found.append(dataclasses.replace(
        config, task=task, mixture=config.task, eval_settings=dataclasses.replace(
          config.eval_settings, split=each)))
  return found


def averages(configs: list[EvalConfig], reports: list[Report]
             ) -> dict[str, tuple[float | None, tuple[str, ...]]]:
  """The scores of the benchmarks that the tasks' names begin with."""
  results = {config.task.name + (f"_{SECOND}" if config.eval_settings.split.endswith(SECOND)
                                 else ""): report.result.metrics
             for config, report in zip(configs, reports, strict=True)}
  found = {}
  for benchmark in benchmark_averages.BENCHMARKS:
    of_it = {name: metrics for name, metrics in results.items()
             if name.startswith(f"{benchmark}_")}
    if of_it:
      found[benchmark] = benchmark_averages.average(benchmark, of_it)
  return found
