"""Runs one cell of a grid in this process, as the command itself would.

  train       trains or resumes, then evaluates the best step on the test split
  eval        evaluates the plain model on the test split
  autoprompt  searches or resumes; the best trigger on the test split
  recover     vectors of one length for the sentences of one file, a row a seed

Of a run of several prompts every prompt is evaluated, and their ensembles.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from prompt_tuning import config, eval_mixture, trained_model, trees
from prompt_tuning.checkpoints import run_prompts
from prompt_tuning.discrete.autoprompt import AutoPrompt
from prompt_tuning.discrete.autoprompt_config import AutoPromptConfig
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.eval_run import EvalConfig, Report, evaluate_runs
from prompt_tuning.evaluate import Evaluator, Result
from prompt_tuning.experiments import results
from prompt_tuning.experiments.grid import Cell, Grid, files_and_bindings, folder_of
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import abstract_params
from prompt_tuning.recovery import RecoverConfig, recover
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.run_dir import RunDir, environment
from prompt_tuning.task_setup import splits
from prompt_tuning.train import TrainConfig, train
from prompt_tuning.trees import Split

Row = dict[str, Any]


Settings = TrainConfig | EvalConfig | AutoPromptConfig | RecoverConfig


def build(grid: Grid, cell: Cell) -> Settings:
  """The cell's configuration, checked as far as that goes without data and weights.

  Raises:
    UserError: as the command itself.
  """
  files, flags = files_and_bindings(cell.flags)
  bindings, _ = config.split_gin_flags(flags)
  folder = str(folder_of(grid, cell))
  if cell.command == "train":
    config.load(["commands/train.gin", *files], [*bindings, f"MODEL_DIR = {folder!r}"])
    return config.build(TrainConfig)
  if cell.command == "autoprompt":
    config.load(["commands/autoprompt.gin", *files],
                [*bindings, f"TEST_SPLIT = {grid.test_split!r}", f"MODEL_DIR = {folder!r}"])
    return config.build(AutoPromptConfig)
  if cell.command == "recover":
    config.load(["commands/recover.gin", *files], [*bindings, f"MODEL_DIR = {folder!r}"])
    return _one_row_a_seed(cell, config.build(RecoverConfig))
  config.load(["commands/eval.gin", *files],
              [*bindings, f"SPLIT = {grid.test_split!r}", f"OUTPUT_DIR = {folder!r}"])
  return config.build(EvalConfig)


def check_test_split(grid: Grid, settings: Settings) -> None:
  """Whether the task has the split that the cell is tested on, once it has trained.

  Raises:
    UserError: it has not, or its files are wrong.
  """
  # A test by flags of its own may be on other data.
  elsewhere = any(name in flag for flag in grid.eval_flags
                  for name in ("TASK_", "TEST_FILE", "DATA_FROM"))
  if grid.test_split is None or isinstance(settings, RecoverConfig) or elsewhere:
    return
  for name, known in splits(settings.task, settings.model.vocabulary).items():
    if grid.test_split not in known:
      raise UserError(f"The task {name!r} has no split {grid.test_split!r} to be tested on",
                      found=", ".join(known), wanted=f"TEST_SPLIT = {grid.test_split!r}",
                      fix="give a TEST_FILE; or set TEST_SPLIT = 'validation', or None to test "
                      "nothing, in the grid file")


def _on_another_task(grid: Grid, cell: Cell, task: str) -> EvalConfig:
  """An evaluation of the plain model on another task than the cell's own."""
  flags = (*cell.flags, f"--gin.MIXTURE_OR_TASK_NAME={task}", "--gin.TASK_SOURCE=None",
           *grid.flags_on(task, cell.choices))
  found = build(grid, dataclasses.replace(cell, flags=flags))
  assert isinstance(found, EvalConfig)
  return found


def _one_row_a_seed(cell: Cell, settings: RecoverConfig) -> RecoverConfig:
  lists = {"SENTENCES": settings.sentences, "VECTORS": settings.vectors,
           "BACKBONES": settings.backbones}
  for name, values in lists.items():
    if len(values) != 1:
      raise UserError(f"{cell.name} recovers several things", found=f"{name} = {values!r}",
                      wanted="one of each in a cell, so that a row is a seed",
                      fix=f"make an axis of them, each choice with a {name} of its own")
  return settings


def run(grid: Grid, cell: Cell) -> dict[str, Any] | None:
  """The record of a cell; None: the run was told to stop, and can be resumed.

  Raises:
    UserError: as the command itself.
  """
  began, cpu_began = time.monotonic(), time.process_time()
  settings = build(grid, cell)
  # Compiled programs of one run are of no use to the next.
  jax.clear_caches()
  if isinstance(settings, EvalConfig):
    found = _evaluated(grid, cell, settings)
  elif isinstance(settings, AutoPromptConfig):
    found = _searched(settings, config.operative())
  elif isinstance(settings, RecoverConfig):
    found = _recovered(settings, config.operative())
  else:
    trained = _trained(grid, cell, settings, config.operative())
    if trained is None:
      return None
    found = trained
  about = environment(
    settings.seeds[0] if isinstance(settings, RecoverConfig) else settings.seed)
  # A run that was stopped before remembers the time of its steps.
  seconds = max(time.monotonic() - began, found.pop("earlier", 0.0))
  return {"status": results.DONE, "seconds": round(seconds, 1),
          "cpu_seconds": round(time.process_time() - cpu_began, 1), "device": about["device"],
          "versions": "; ".join(f"{name} {version}" for name, version in about["versions"].items()),
          "commit": results.commit(), "backbone_parameters": _backbone(settings.model), **found}


def _evaluated(grid: Grid, cell: Cell, settings: EvalConfig) -> dict[str, Any]:
  rows: list[Row] = []
  curve: list[Row] = []
  for task in (None, *grid.also_on):
    one = settings if task is None else _on_another_task(grid, cell, task)
    parts = eval_mixture.parts(one)
    for name, part, report in zip(_names(task, parts), parts, evaluate_runs(parts), strict=True):
      rows.append({"evaluated_on": name, **_numbers(grid, cell, name, report)})
      curve += [{"step": 0, "split": "/".join(filter(None, (name, part.eval_settings.split))),
                 "metric": metric, "value": value}
                for metric, value in report.result.metrics.items()]
  return {"trained_parameters": 0, "steps": 0, "rows": rows, "curve": curve}


def _searched(settings: AutoPromptConfig, operative: str) -> dict[str, Any]:
  """A trigger is words: no parameters are trained."""
  summary = AutoPrompt(settings, operative).run()
  scores = {split: found["accuracy"] for split, found in summary["results"]["found"].items()}
  row = {"metric": "accuracy", "validation": scores[settings.split],
         "best_step": summary["best_step"]}
  if settings.test_split is not None:
    row |= {"test": scores[settings.test_split],
            "majority": summary["majority"][settings.test_split]}
  return {"trained_parameters": 0, "steps": summary["steps"], "rows": [row],
          "curve": RunDir(settings.model_dir).metrics()}


def _recovered(settings: RecoverConfig, operative: str) -> dict[str, Any]:
  """Nothing is chosen among the sentences, so what is said again is a test."""
  rows = [{"seed": row["seed"], "metric": "exact_match", "test": row["exact_match"]}
          for row in recover(settings, operative)]
  return {"trained_parameters": settings.vectors[0] * settings.model.backbone.emb_dim,
          "steps": settings.train_steps, "rows": rows,
          "curve": RunDir(settings.model_dir).metrics()}


def _trained(grid: Grid, cell: Cell, settings: TrainConfig,
             operative: str) -> dict[str, Any] | None:
  outcome = train(settings, operative)
  if outcome.interrupted:
    return None
  summary = outcome.summary
  del outcome  # The tests load the weights they need: those of the training would lie beside them.
  several = settings.members is not None
  table = summary["table"] if several else [
    {**(summary["best"] or {}), "best_step": summary["best_step"]}]
  # Text may be judged by its loss while training, and decoded once, at the end: no validation then.
  wanted = grid.metrics.get(cell.choices.get("task", ""), main_metric(table[0]))
  metric = wanted if wanted in table[0] or grid.test_split is not None else (
    _metric(grid, cell, None, table[0]))
  # The task's own seed column is the choice's name.
  rows: list[Row] = [{"validation": row.get(metric), "metric": metric,
                      "best_step": row["best_step"],
                      **({"seed": row["seed"]} if several else {})} for row in table]
  if grid.test_split is not None:
    for task in (None, *grid.also_on):
      tested = _tests(grid, cell, task, settings, rows[:len(table)])
      if task is None:
        joined = [_joined(row, more) for row, more in zip(rows, tested, strict=False)]
        rows = joined + tested[len(rows):]
      else:
        rows += tested
  curve = [point for point in RunDir(settings.model_dir).metrics()
           if not point["split"].startswith("train") or (
             point["split"] == "train" and point["metric"] == "loss")]
  count: int = summary["trained"]["parameters"]
  return {"trained_parameters": count // (len(table) if several else 1),
          "earlier": summary["seconds"]["steps"], "steps": summary["steps"], "rows": rows,
          "curve": curve}


def _tests(grid: Grid, cell: Cell, task: str | None, settings: TrainConfig,
           trained: Sequence[Row]) -> list[Row]:
  """A row a trained prompt (or model), and one an ensemble, on the test rows of a task."""
  folder = pathlib.Path(settings.model_dir)
  files, flags = files_and_bindings(grid.filled(grid.eval_flags, cell.choices))
  bindings, _ = config.split_gin_flags(flags)
  several = settings.members is not None
  other = [] if task is None else [f"MIXTURE_OR_TASK_NAME = {task!r}", "TASK_SOURCE = None",
                                   *config.split_gin_flags(grid.flags_on(task, cell.choices))[0]]
  config.load(["commands/eval.gin", str((folder / "config.gin").absolute()), *files],
              [*bindings, *other, f"SPLIT = {grid.test_split!r}",
               f"MODEL_DIR = {None if several else str(folder)!r}"])
  parts = eval_mixture.parts(config.build(EvalConfig))
  names = _names(task, parts)
  if not several:
    return [{"evaluated_on": name, **_numbers(grid, cell, name, report)}
            for name, report in zip(names, evaluate_runs(parts), strict=True)]
  paths = [str(file) for file in run_prompts.members_of(folder)]
  model = trained_model.find(parts[0].model, None, paths[0])
  partitioner = Partitioner.make(model.config.layout)
  evaluators = [Evaluator(model.config, part.task, part.eval_settings, model.prompt_ids,
                          partitioner) for part in parts]
  params = model.load(parts[0].seed, partitioner)
  found: list[list[Result]] = [[] for _ in parts]
  for path in paths:
    params["prompt"] = jax.device_put(model.config.load_prompt(path), partitioner.replicated)
    for evaluator, results_of in zip(evaluators, found, strict=True):
      results_of.append(evaluator({}, params, Split({})))
  rows = []
  for name, evaluator, results_of in zip(names, evaluators, found, strict=True):
    majority = evaluator.majority() if evaluator.method == "rank" else None
    own = [{"seed": row["seed"], "evaluated_on": name,
            **_numbers(grid, cell, name, Report(result, majority, [], {}))}
           for row, result in zip(trained, results_of, strict=True)]
    metric = own[0]["metric"]
    rows += own + [{**own[0], "seed": None, "ensemble": ensemble, "test": metrics[metric]}
                   for ensemble, metrics in evaluator.ensembles(results_of).items()
                   if metric in metrics]
  return rows


def _names(task: str | None, parts: Sequence[EvalConfig]) -> list[str | None]:
  """What `evaluated_on` says of each: nothing of a cell's own task that is no mixture."""
  return [task] if len(parts) == 1 else [part.task.name for part in parts]


def _joined(trained: Row, tested: Row) -> Row:
  """One row; a mixture is judged by its loss while it trains, and each task by its own metric."""
  same = trained["metric"] == tested["metric"]
  return trained | tested | ({} if same else {"validation": None})


def _numbers(grid: Grid, cell: Cell, task: str | None, report: Report) -> Row:
  metrics = report.result.metrics
  metric = _metric(grid, cell, task, metrics)
  return {"metric": metric, "test": metrics[metric],
          "majority": (report.majority or {}).get(metric)}


def _metric(grid: Grid, cell: Cell, task: str | None, metrics: Mapping[str, Any]) -> str:
  name = grid.metrics.get(task or cell.choices.get("task", ""), main_metric(metrics))
  if name not in metrics:
    raise UserError(f"METRICS asks {cell.name} for a metric that it has not", found=name,
                    wanted="one of " + ", ".join(metrics), fix=nearest(name, metrics))
  return name


def main_metric(metrics: Mapping[str, Any]) -> str:
  """The metric of a task that METRICS does not name."""
  return "accuracy" if "accuracy" in metrics else "loss"


def _backbone(model: ModelConfig) -> int:
  plain = dataclasses.replace(model, prompt=None, template=None)
  return trees.count(abstract_params(plain.module())["backbone"])
