"""Several tasks, or several prompts of a task, evaluated in the same batches.

The rows of all tasks go through one stream (`serving.py`), taken from the tasks in turn. Where a
task has several prompts every input is there once a prompt, one after the other in a batch, and the
report shows each prompt, their mean and standard deviation, and what they say together
(`ensembles.py`). A run that trained its backbone is a model of its own in the same stream, so the
same flags give an ensemble of models.

  eval_prompts_<split>.json               metrics by task
  predictions_<task>_<split>.jsonl        input, target and prediction (an ensemble's: of its mean
                                          probability, of texts of its vote)

Of generated text there is no loss here: `eval` of one prompt has it.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning import ensembles, hosts, prompt_bank, steering
from prompt_tuning.checkpoints import run_prompts
from prompt_tuning.disk import check_local, check_writable, write_text
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.evaluate import EvalSettings, Evaluator, Result
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompt_bank import Bank
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.run_dir import environment
from prompt_tuning.serving import Row, Server
from prompt_tuning.tasks import registry, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedEvalConfig:
  """One evaluation of several prompts.

  Attributes:
    model: that serves them.
    task: lengths and limits of all tasks; the data of the task of its name. Over files it is the
      first prompt's; of further ones the run says its own.
    tasks: TASKS, name -> `TaskConfig` of tasks over files that no run says.
    eval_settings: split, batch size, examples.
    prompts: (task, source) pairs (`prompt_bank.py`).
    output_dir: OUTPUT_DIR, or None: no files.
    seed: RANDOM_SEED, of a backbone with random weights.
  """

  model: ModelConfig
  task: TaskConfig
  tasks: Mapping[str, TaskConfig] = dataclasses.field(default_factory=dict)
  eval_settings: EvalSettings
  prompts: tuple[tuple[str, str], ...]
  output_dir: str | None = None
  seed: int = 0

  def __post_init__(self):
    if self.output_dir is not None:
      check_local(self.output_dir, "OUTPUT_DIR")
    names = {name for name, _ in self.prompts}
    for name in self.tasks:
      if name not in names:
        raise UserError("TASKS name a task that has no prompt", found=name,
                        wanted="one of " + ", ".join(sorted(names)), fix=nearest(name, names))

  def task_of(self, name: str) -> TaskConfig:
    """Where a task's rows come from.

    Raises:
      UserError: nobody says.
    """
    if name in self.tasks:
      return self.tasks[name]
    first = self.prompts[0][0]
    # A task over files has a name that says nothing: it is the first prompt's, as that is called.
    if name == (first if self.task.source is not None and self._is_nobodys(first) else
                self.task.name):
      return self.task
    if not self._is_nobodys(name):
      # A source makes one task, of its own name.
      return dataclasses.replace(self.task, name=name, source=None)
    own = self._own_task(name)
    if own is None:
      raise UserError(f"There are no rows to evaluate {name!r} on",
                      found="no such task, and no run of that name that has files of its own",
                      wanted="a name that `prompt-tuning tasks` lists, or a task over files in "
                      "TASKS",
                      fix=f"{nearest(name, table.names())}; docs/serving.md shows TASKS")
    return own

  def _is_nobodys(self, name: str) -> bool:
    return name not in self.tasks and not registry.knows(name, self.task.module)

  def _own_task(self, name: str) -> TaskConfig | None:
    """The files that the runs of a name were trained on, if they were on any."""
    runs = {run: source for each, source in self.prompts
            if each == name and (run := run_prompts.run_of(source)) is not None}
    found = {source: task for run, source in runs.items()
             if (task := prompt_bank.task_of_run(str(run))).source is not None}
    for source, task in found.items():
      if task.source != next(iter(found.values())).source:
        raise UserError(f"The runs of {name!r} are of different files", found=f"{source}, and "
                        f"{next(iter(found))}", wanted="one task for a name",
                        fix=f"give them names of their own, or say the task in TASKS[{name!r}]")
    own = next(iter(found.values()), None)
    return None if own is None else dataclasses.replace(
      own, feature_lengths=self.task.feature_lengths)


@dataclasses.dataclass(frozen=True)
class TaskReport:
  """Attributes:
    sources: of its prompts.
    members: the result of each.
    together: metrics of their ensembles, by name; {} of one prompt.
    result: of the one prompt, or of the ensemble.
  """

  sources: tuple[str, ...]
  members: tuple[Result, ...]
  together: dict[str, dict[str, float]]
  result: Result

  def summary(self) -> dict[str, Any]:
    """What the files and the screen show."""
    if len(self.members) == 1:
      return {"prompt": self.sources[0], "metrics": self.result.metrics}
    values = {name: [m.metrics[name] for m in self.members] for name in self.members[0].metrics}
    return {"prompts": list(self.sources), "metrics": [m.metrics for m in self.members],
            "mean": {name: statistics.fmean(x) for name, x in values.items()},
            "standard_deviation": {name: statistics.stdev(x) for name, x in values.items()},
            "ensembles": self.together}


@dataclasses.dataclass(frozen=True)
class MixedReport:
  """Attributes: tasks: by name.  groups: how many kinds of batches there were.  files: written."""

  tasks: dict[str, TaskReport]
  groups: int
  files: list[pathlib.Path]


def evaluate_mixed(config: MixedEvalConfig) -> MixedReport:
  """Checks, loads, evaluates, writes.

  Raises:
    UserError: a setting, a file or the data is wrong.
  """
  partitioner = Partitioner.make(config.model.layout)
  partitioner.layout.check(config.model.backbone)
  bank = prompt_bank.read_bank(config.model, config.prompts)
  plain = dataclasses.replace(config.model, prompt=None, template=None)
  evaluators = {name: Evaluator(plain, config.task_of(name), config.eval_settings)
                for name in bank.tasks}
  for name, evaluator in evaluators.items():
    if evaluator.method == "loss":
      raise UserError(f"Task {name!r} is neither ranked nor generated", found="a task of losses",
                      wanted="labels, or metrics of texts",
                      fix="evaluate it alone, with --gin.METHOD=\"'loss'\"")
    if evaluator.of_windows:
      raise UserError(f"Task {name!r} has an answer a window, not a question",
                      found="QA_WINDOW with --prompt", wanted="whole contexts",
                      fix="evaluate it alone, or leave QA_WINDOW out")
    for group, row in bank.tasks[name]:
      evaluator.check_prompt(bank.groups[group].prompts[row].method)
  if config.output_dir is not None and hosts.is_first():
    check_writable(config.output_dir, "OUTPUT_DIR")
  server = Server(bank=bank, params=bank.load(config.seed, partitioner),
                  lengths=config.task.feature_lengths,
                  batch_size=config.eval_settings.batch_size, partitioner=partitioner)
  answers = _answer(bank, server, evaluators)
  reports = {}
  for name, evaluator in evaluators.items():
    reports[name] = _report(bank, server, name, evaluator, answers[name])
  files = [] if config.output_dir is None or not hosts.is_first() else _write(config, reports)
  return MixedReport(reports, len(bank.groups), files)


def _answer(bank: Bank, server: Server,
            evaluators: Mapping[str, Evaluator]) -> dict[str, list[list[np.ndarray]]]:
  """Task -> a list a row -> the answer with each prompt."""
  by_task = []
  for name, evaluator in evaluators.items():
    inputs, labels = evaluator.requests()
    by_task.append([(name, [Row(ids, group, (row,), labels) for group, row in bank.tasks[name]])
                    for ids in inputs])
  stream = [item for turn in itertools.zip_longest(*by_task) for item in turn if item is not None]
  found = server([row for _, rows in stream for row in rows])
  answers: dict[str, list[list[np.ndarray]]] = {name: [] for name in evaluators}
  for name, rows in stream:
    answers[name].append([next(found) for _ in rows])
  return answers


def _report(bank: Bank, server: Server, name: str, evaluator: Evaluator,
            answers: list[list[np.ndarray]]) -> TaskReport:
  places = bank.tasks[name]
  sources = tuple(bank.groups[group].prompts[row].source for group, row in places)
  by_prompt = list(zip(*answers, strict=True))
  if evaluator.method == "rank":
    members = tuple(evaluator.ranked(np.stack(scores)) for scores in by_prompt)
    if len(members) == 1:
      return TaskReport(sources, members, {}, members[0])
    together = evaluator.ensembles(members)
    # Log-probabilities that are renormalised already stand for scores.
    mean = ensembles.label_values(np.stack([m.log_probs for m in members]))["mean_probability"]
    return TaskReport(sources, members, together, evaluator.ranked(np.log(mean)))
  texts = [[evaluator.text(ids) for ids in made] for made in by_prompt]
  members = tuple(evaluator.generated(made) for made in texts)
  if len(members) == 1:
    return TaskReport(sources, members, {}, members[0])
  voted = evaluator.generated([ensembles.most_common(row) for row in zip(*texts, strict=True)])
  together = {"majority_vote": voted.metrics}
  if len({group for group, _ in places}) == 1:
    together["mean_probability"] = _token_mean(server, evaluator, places).metrics
  return TaskReport(sources, members, together, voted)


def _token_mean(server: Server, evaluator: Evaluator,
                places: Sequence[tuple[int, int]]) -> Result:
  """Texts from the mean of the prompts' next-token distributions."""
  steered = dataclasses.replace(server, steering=steering.Mean(len(places)))
  prompts = tuple(row for _, row in places)
  rows = [Row(ids, places[0][0], prompts) for ids in evaluator.requests()[0]]
  return evaluator.generated([evaluator.text(ids) for ids in steered(rows)])


def _write(config: MixedEvalConfig, reports: Mapping[str, TaskReport]) -> list[pathlib.Path]:
  folder, split = pathlib.Path(config.output_dir), config.eval_settings.split
  about = {"split": split, "backbone": config.model.initial_checkpoint_path,
           "tasks": {name: report.summary() for name, report in reports.items()},
           **environment(config.seed)}
  files = [folder / f"eval_prompts_{split}.json"]
  write_text(files[0], json.dumps(about, indent=2, sort_keys=True) + "\n")
  for name, report in reports.items():
    files.append(folder / f"predictions_{re.sub(r'[^A-Za-z0-9_.]+', '_', name)}_{split}.jsonl")
    write_text(files[-1], report.result.lines())
  return files
