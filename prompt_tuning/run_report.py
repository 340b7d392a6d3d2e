"""What `train` and `eval` print around a run: what it starts from, what came of it."""

import pathlib
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning.eval_mixture import Evaluation
from prompt_tuning.eval_run import EvalConfig, Report
from prompt_tuning.info import show_bytes
from prompt_tuning.train import Outcome, TrainConfig

_SHOWN = 5


def started(summary: Mapping[str, Any]) -> None:
  """A table of what was restored, initialised, trained and frozen."""
  table = Table(title=f"task {summary['task']}, on {summary['device']}")
  table.add_column("")
  table.add_column("parameters", justify="right")
  table.add_column("size", justify="right")
  table.add_column("from")
  made = summary["initialised"]
  rows = [("restored", summary["restored"], str(summary["backbone"]["from"])),
          ("initialised", _sum(made["backbone"], made["prompt"]), _made(made)),
          ("trained", summary["trained"], f"{summary['trained']['share']:.3%} of all"),
          ("frozen", summary["frozen"], "")]
  for name, size, note in rows:
    note = note if size["parameters"] else ""
    table.add_row(name, f"{size['parameters']:,}", show_bytes(size["bytes"]), escape(note))
  console = Console()
  console.print(table)
  for stack in summary["trained"]["sliced_stacks"]:
    console.print(f"TRAINABLE takes some layers of the {stack}, which is scanned: a step computes "
                  "the weight gradients of all its layers. With SCAN_LAYERS=False and patterns "
                  f"such as '{stack}/layers_0/.*' it computes no others.", highlight=False,
                  markup=False)
  data = summary["data"]
  console.print(f"{data['rows']:,} training rows, {data['epochs']:.2f} epochs", highlight=False)
  for task, splits in data["by_task"].items():
    for split, counts in splits.items():
      lost = losses(counts)
      if lost:
        console.print(f"{task}, {split}: of {counts['rows']:,} rows, {lost}", highlight=False,
                      markup=False)
  if summary["resumed_at"] is not None:
    console.print(f"Resuming at step {summary['resumed_at']}.", highlight=False)


def losses(counts: Mapping[str, int | None]) -> str:
  """What a split lost before it reached the model, in words; "" where it is whole."""
  words = {"long_inputs": "inputs lose their end", "long_targets": "targets lose their end",
           "unusable": "more could not be used and were left out",
           "short_contexts": "have fewer solved examples in front than FEW_SHOT"}
  return ", ".join(f"{counts[name]:,} {text}" for name, text in words.items() if counts[name])


def ended(config: TrainConfig, outcome: Outcome) -> None:
  """Where the run was left, its best metrics, and what to do next."""
  console = Console()
  if outcome.interrupted:
    print(f"Stopped at step {outcome.step} of {config.train_steps}, and saved. The same command "
          "resumes.")
    return
  best = outcome.summary["best"]
  if best is not None:
    console.print(metrics_table(
      f"best evaluation, step {outcome.summary['best_step']}", best))
  if "table" in outcome.summary:
    console.print(prompts_table(outcome.summary))
  folder = pathlib.Path(config.model_dir)
  names = [name for name in ("prompt.npy", "prompt.safetensors", "backbone", "members",
                             "members.csv", "learning_rates.png", "metrics.csv", "loss.png",
                             "summary.json", "config.gin") if (folder / name).exists()]
  print(f"The run is in {folder}: {', '.join(names)}")
  print(f"Evaluate:  prompt-tuning eval --gin.MODEL_DIR={folder}")
  print(f"Predict:   prompt-tuning infer --gin.MODEL_DIR={folder} --gin.INPUT_FILE=lines.txt")


def evaluated(evaluation: Evaluation) -> None:
  """Each task's metrics, some predictions and the files; then a benchmark's average."""
  for config, report in evaluation.reports:
    _evaluated(config, report)
  for name, (score, missing) in evaluation.averages.items():
    print(f"{name}: no average without {', '.join(missing)}" if score is None else
          f"{name}: average {score:.4g}")


def _evaluated(config: EvalConfig, report: Report) -> None:
  settings = config.eval_settings
  console = Console()
  console.print(metrics_table(f"{config.task.name}, {settings.split}", report.result.metrics,
                              report.majority))
  rows = list(zip(report.result.inputs, report.result.targets, report.result.predictions,
                  strict=True))[:_SHOWN]
  if rows:
    table = Table(title="the first predictions")
    for column in ("input", "target", "prediction"):
      table.add_column(column)
    for row in rows:
      table.add_row(*(escape(_short(text)) for text in row))
    console.print(table)
  lost = losses(report.counts)
  if lost:
    print(f"Of {report.counts['rows']:,} rows, {lost}.")
  for file in report.files:
    print(f"Wrote {file}")
  if report.differs:
    print(f"Not in the run's metrics.csv: it has other settings of {', '.join(report.differs)}.")


def prompts_table(summary: Mapping[str, Any]) -> Table:
  """A row a prompt of many that were trained at once; then their mean and their ensembles."""
  mean, deviation = summary["mean"], summary["standard_deviation"]
  shown = [name for name in mean if name not in ("examples", "not_a_label")]
  table = Table(title=f"{len(summary['table'])} prompts, each at its best step; the best is "
                f"{summary['best_member']}")
  for column in ("prompt", "seed", "rate", "step", *shown):
    table.add_column(column, justify="right")
  for row in summary["table"]:
    note = "" if row["diverged"] is None else f" (diverged at {row['diverged']})"
    table.add_row(f"{row['member']}{note}", str(row["seed"]), f"{row['learning_rate']:.4g}",
                  str(row["best_step"]), *(f"{row[name]:.4g}" for name in shown))
  table.add_section()
  table.add_row("mean ± sd", "", "", "",
                *(f"{mean[name]:.4g} ± {deviation[name]:.2g}" for name in shown))
  for name, metrics in summary["ensembles"].items():
    table.add_row(name.replace("_", " "), "", "", "", *(
      f"{metrics[metric]:.4g}" if metric in metrics else "" for metric in shown))
  return table


def metrics_table(title: str, metrics: Mapping[str, float],
                  majority: Mapping[str, float] | None = None) -> Table:
  """A row a metric; beside it that of the majority class, where there is one."""
  table = Table(title=title)
  table.add_column("metric")
  table.add_column("value", justify="right")
  if majority:
    table.add_column("majority class", justify="right")
  for name, value in metrics.items():
    other = [] if not majority else [f"{majority[name]:.4g}" if name in majority else ""]
    table.add_row(name, f"{value:.4g}" if name != "examples" else f"{value:.0f}", *other)
  return table


def _sum(*sizes: Mapping[str, int]) -> dict[str, int]:
  return {name: sum(size[name] for size in sizes) for name in ("parameters", "bytes")}


def _made(made: Mapping[str, Mapping[str, int]]) -> str:
  return " and ".join(name for name in ("backbone", "prompt") if made[name]["parameters"])


def _short(text: str) -> str:
  text = " ".join(text.split())
  return text[:57] + "..." if len(text) > 60 else text
