"""The demo: tunes a prompt for the shipped frozen T5 on real text, and says what it learned.

It is the `train` command with the settings of `demo_flags()`, which it prints, and evaluations
on the test split around it.
"""

import dataclasses
import pathlib

import numpy as np
from rich.console import Console
from rich.table import Table

from prompt_tuning import config, hosts
from prompt_tuning.evaluate import EvalSettings, Evaluator, Result
from prompt_tuning.prompt_measures import nearest_words
from prompt_tuning.tasks import table
from prompt_tuning.train import Outcome, TrainConfig, train
from prompt_tuning.trees import Split

GIN_FILES = ("models/tiny.gin", "prompts/soft.gin", "inits/class_labels.gin",
             "runs/prompt_tune.gin")
# A backbone this small learns little of harder tasks in a few minutes (docs/results.md).
TASK = "docstring_kind_seen"
MODEL_DIR = "runs/demo"
SHOWN_EXAMPLES, SHOWN_VECTORS = 5, 5


def demo_flags(model_dir: str) -> list[str]:
  """The settings, as a user of `prompt-tuning train` gives them."""
  labels = list(table.spec(TASK).labels)
  settings = {"MODEL_DIR": model_dir, "MIXTURE_OR_TASK_NAME": TASK,
              "TASK_FEATURE_LENGTHS": "{'inputs': 96, 'targets': 4}", "CLASS_LABELS": str(labels),
              "PROMPT_LENGTH": 20, "LEARNING_RATE": 0.1, "TRAIN_STEPS": 800,
              "EVAL_PERIOD": 200, "BATCH_SIZE": 32}
  return [f"--gin.{name}={value}" for name, value in settings.items()]


def run(model_dir: str | None = None) -> int:
  """Trains (or resumes), evaluates on the test split, prints the table; the exit code."""
  console = Console()
  target = model_dir or MODEL_DIR
  flags = demo_flags(target)
  shown = [f"--gin_file={name}" for name in GIN_FILES]
  # Lists and dictionaries hold spaces and single quotes.
  shown += [flag.replace("=", '="', 1) + '"' if " " in flag else flag for flag in flags]
  console.print("[bold]Prompt-tuning the shipped frozen T5[/bold]. The same as:")
  console.print("  prompt-tuning train " + " \\\n    ".join(shown), highlight=False, markup=False,
                soft_wrap=True)
  config.load(["commands/train.gin", *GIN_FILES], config.split_gin_flags(flags)[0])
  settings = config.build(TrainConfig)
  outcome = train(settings, config.operative())
  if outcome.interrupted:
    console.print("Stopped. `make demo` resumes.")
    return hosts.STOPPED
  show(console, settings, outcome)
  return 0


def show(console: Console, settings: TrainConfig, outcome: Outcome) -> None:
  """Evaluates on the test split and prints what was learned."""
  test = EvalSettings(split="test")
  nothing = Split({})
  backbone = outcome.params["backbone"]
  plain = Evaluator(dataclasses.replace(settings.model, prompt=None), settings.task, test)
  prompted = Evaluator(settings.model, settings.task, test)
  frozen = plain({}, {"backbone": backbone}, nothing)
  learned = prompted({}, outcome.params, nothing)

  rows = Table(title=f"{TASK}, test split")
  for column in ("", "accuracy", "examples"):
    rows.add_column(column, justify="left" if not column else "right")
  for name, metrics in (("majority class", plain.majority()),
                        ("frozen T5, no prompt", frozen.metrics),
                        ("frozen T5, learned prompt", learned.metrics)):
    rows.add_row(name, f"{metrics['accuracy']:.3f}", f"{metrics['examples']:.0f}")
  console.print(rows)
  _show_predictions(console, learned)
  _show_words(console, settings, backbone, outcome)
  trained = outcome.summary["trained"]
  console.print(f"Trained {trained['parameters']:,} of "
                f"{trained['parameters'] + outcome.summary['frozen']['parameters']:,} parameters "
                f"({trained['share']:.2%}).", highlight=False)
  folder = pathlib.Path(settings.model_dir)
  console.print(f"The run is in {folder}: prompt.npy, metrics.csv, loss.png, summary.json.",
                highlight=False)


def _show_predictions(console: Console, result: Result) -> None:
  rows = Table(title="some predictions of the test split")
  for column in ("text", "target", "predicted"):
    rows.add_column(column)
  for i in np.linspace(0, len(result.targets) - 1, SHOWN_EXAMPLES).astype(int):
    text = " ".join(result.inputs[i].split())
    rows.add_row(text[:60] + ("..." if len(text) > 60 else ""), result.targets[i],
                 result.predictions[i])
  console.print(rows)


def _show_words(console: Console, settings: TrainConfig, backbone, outcome: Outcome) -> None:
  table_of_prompt = outcome.params["prompt"]["embedding"]
  tokenizer = settings.model.tokenizer()
  rows = Table(title="nearest words of some prompt vectors (cosine)")
  rows.add_column("vector", justify="right")
  rows.add_column("words")
  words = nearest_words(np.asarray(table_of_prompt)[:SHOWN_VECTORS],
                        np.asarray(backbone["token_embedder"]["embedding"]), tokenizer.piece, 5)
  for i, near in enumerate(words):
    rows.add_row(str(i), ", ".join(f"{word} {cosine:.2f}" for word, cosine in near))
  console.print(rows)
