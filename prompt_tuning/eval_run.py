"""Evaluates what was trained on one split of one task, and leaves the result in files.

  eval_<task>_<split>.json           metrics, and where the parameters came from
  predictions_<task>_<split>.jsonl   input, target and prediction, a row a line

They go to OUTPUT_DIR, or into the run's MODEL_DIR. A run's metrics.csv gets the metrics too, if
they are of what it trained, in its own settings; otherwise the files in MODEL_DIR have a name of
their own, `eval_<task>_<split>_<digits>.json`, and say which settings differ.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from prompt_tuning import hosts, trained_model
from prompt_tuning.disk import check_local, check_writable, write_text
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings, Evaluator, Result
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.run_config import RANDOM, ModelConfig, TaskConfig
from prompt_tuning.run_dir import RunDir, describe, differences, environment
from prompt_tuning.trees import Split

# Of a task, what its numbers depend on besides its name.
_OF_TASK = ("feature_lengths", "leading_sentinel", "variant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """One evaluation.

  Attributes:
    model, task, eval_settings: what, on which data, how.
    mixture: the mixture that the task is a part of (`eval_mixture.py`), or None.
    model_dir: MODEL_DIR of the run that trained the model, or None.
    prompt_file: PROMPT_FILE, or None.
    output_dir: OUTPUT_DIR; None: MODEL_DIR, or no files at all.
    seed: RANDOM_SEED of the run, for a backbone with random weights.
  """

  model: ModelConfig
  task: TaskConfig
  eval_settings: EvalSettings
  mixture: TaskConfig | None = None
  model_dir: str | None = None
  prompt_file: str | None = None
  output_dir: str | None = None
  seed: int = 0

  def __post_init__(self):
    if self.output_dir is not None:
      check_local(self.output_dir, "OUTPUT_DIR")


@dataclasses.dataclass(frozen=True)
class Report:
  """Attributes:
    result: metrics and predictions.
    majority: metrics of always predicting the most frequent label; None without labels.
    files: what was written.
    counts: rows of the split, and how many were left out or lose their end.
    differs: settings that are not those of the run in MODEL_DIR -> (its own, these); with any,
      its metrics.csv is left as it was.
  """

  result: Result
  majority: dict[str, float] | None
  files: list[pathlib.Path]
  counts: dict[str, int | None]
  differs: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)


def evaluate_runs(configs: Sequence[EvalConfig]) -> list[Report]:
  """Evaluates tasks or splits: checks all, loads weights once, evaluates, writes.

  Args:
    configs: alike but for task and split.

  Raises:
    UserError: a setting, a file or the data is wrong.
  """
  config = configs[0]
  output = config.output_dir or config.model_dir
  if output is not None and pathlib.Path(output).is_file():
    raise UserError("OUTPUT_DIR is a file", found=output, wanted="a folder",
                    fix="give another --gin.OUTPUT_DIR")
  trained = trained_model.find(config.model, config.model_dir, config.prompt_file)
  partitioner = Partitioner.make(config.model.layout)
  partitioner.layout.check(trained.config.backbone)
  evaluators = [Evaluator(trained.config, each.task, each.eval_settings, trained.prompt_ids,
                          partitioner) for each in configs]
  if output is not None and hosts.is_first():
    check_writable(output, "OUTPUT_DIR")
  params = trained.load(config.seed, partitioner)
  return [_evaluate(each, trained, evaluator, params)
          for each, evaluator in zip(configs, evaluators, strict=True)]


def _evaluate(config: EvalConfig, trained: trained_model.TrainedModel, evaluator: Evaluator,
              params: Any) -> Report:
  output = config.output_dir or config.model_dir
  result = evaluator({}, params, Split({}))
  majority = evaluator.majority() if evaluator.method == "rank" else None
  differs = {} if config.model_dir is None else _differs(config)
  report = Report(result, majority, [], evaluator.report.counts(), differs)
  if not hosts.is_first():
    return report
  if output is not None:
    report.files.extend(_write(pathlib.Path(output), config, trained, report))
  if config.model_dir is not None and not differs:
    _log(config, result)
    report.files.append(pathlib.Path(config.model_dir) / "metrics.csv")
  return report


def _write(folder: pathlib.Path, config: EvalConfig, trained: trained_model.TrainedModel,
           report: Report) -> list[pathlib.Path]:
  result = report.result
  name = re.sub(r"[^A-Za-z0-9_.]+", "_", f"{config.task.name}_{config.eval_settings.split}")
  if report.differs and config.output_dir is None:
    name += "_" + hashlib.sha256(repr(sorted(report.differs.items())).encode()).hexdigest()[:8]
  about: dict[str, Any] = {
    "task": config.task.name, "split": config.eval_settings.split, "metrics": result.metrics,
    "data": report.counts, "max_examples": config.eval_settings.max_examples,
    "frozen_dtype": config.model.frozen_dtype,
    "backbone": trained.config.initial_checkpoint_path, "prompt_file": trained.prompt_file,
    "differs_from_the_run": {key: {"run": run, "here": here}
                             for key, (run, here) in report.differs.items()},
    **environment(config.seed)}
  files = [folder / f"eval_{name}.json"]
  write_text(files[0], json.dumps(about, indent=2, sort_keys=True) + "\n")
  if result.predictions:
    files.append(folder / f"predictions_{name}.jsonl")
    write_text(files[1], result.lines())
  return files


def _differs(config: EvalConfig) -> dict[str, tuple[Any, Any]]:
  """The settings by which a number is not one of the run: of other weights, rows or texts."""
  run = json.loads((pathlib.Path(config.model_dir or "") / "settings.json").read_text())
  asked = config.mixture or config.task
  task, now = run.get("task", {}), describe(asked)
  found = differences(
    {"model": run.get("model"), "task": {name: task.get(name) for name in _OF_TASK}},
    {"model": describe(config.model), "task": {name: now[name] for name in _OF_TASK}})
  if asked.name == task.get("name"):
    sources = differences({"task": {"source": task.get("source")}},
                          {"task": {"source": now["source"]}})
    # The run may have had no file of this split.
    found |= {key: pair for key, pair in sources.items() if pair[0] is not None}
  if config.prompt_file is not None:
    found["prompt_file"] = (None, config.prompt_file)
  if config.model.initial_checkpoint_path == RANDOM and run.get("seed") != config.seed:
    found["seed"] = (run.get("seed"), config.seed)
  own = run.get("eval_settings") or {}
  ours = describe(config.eval_settings)
  for name, default in (("max_examples", None), ("method", "auto")):
    # Numbers of one split must be comparable with those of the training; other splits have none.
    # Text may be judged by its loss while training, and decoded once.
    free = own.get("split") != ours["split"] or (name, own.get(name)) == ("method", "loss")
    if ours[name] != own.get(name, default) and not (free and ours[name] == default):
      found[f"eval_settings.{name}"] = (own.get(name), ours[name])
  return found


def _log(config: EvalConfig, result: Result) -> None:
  """Adds the metrics to metrics.csv; evaluating again adds nothing that is there."""
  run = RunDir(config.model_dir)
  settings = json.loads((run.path / "settings.json").read_text())
  own_task = settings.get("task", {}).get("name") == config.task.name
  split = config.eval_settings.split
  split = split if own_task else f"{config.task.name}/{split}"
  step = trained_model.trained_step(config.model_dir)
  known = {(r["step"], r["split"], r["metric"], r["value"]) for r in run.metrics()}
  new = {name: value for name, value in result.metrics.items()
         if (step, split, name, value) not in known}
  if new:
    run.log(step, split, new)
  run.close()
