"""What `eval --prompt` shows: a row a prompt, and the rows of what they say together."""

import os
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning.mixed_eval import MixedReport, TaskReport

_LAST = 40


def show(report: MixedReport) -> None:
  """A table a task."""
  console = Console()
  for name, task in report.tasks.items():
    console.print(table(name, task))
  batches = "one kind of batch" if report.groups == 1 else f"{report.groups} kinds of batches"
  prompts = sum(len(task.members) for task in report.tasks.values())
  print(f"{prompts} prompts of {len(report.tasks)} tasks, in {batches}.")
  for file in report.files:
    print(f"Wrote {file}")


def table(name: str, task: TaskReport) -> Table:
  """The metrics of one task."""
  shown = list(task.members[0].metrics)
  result = Table(title=name)
  result.add_column("prompt")
  for metric in shown:
    result.add_column(metric, justify="right")

  def add(label: str, metrics: Mapping[str, float]) -> None:
    result.add_row(escape(label[-_LAST:]), *(
      f"{metrics[metric]:.4g}" if metric in metrics else "" for metric in shown))

  for source, member in zip(distinct(task.sources), task.members, strict=True):
    add(source, member.metrics)
  if len(task.members) > 1:
    summary = task.summary()
    result.add_section()
    add("mean", summary["mean"])
    add("standard deviation", summary["standard_deviation"])
    for how, metrics in task.together.items():
      add(how.replace("_", " "), metrics)
  return result


def distinct(sources: Sequence[str]) -> list[str]:
  """The names without the folders that all start with: a narrow table cuts their ends off."""
  common = os.path.commonprefix(list(sources)) if len(sources) > 1 else ""
  start = common.rfind("/") + 1
  return [source[start:] for source in sources]
