"""What `design` and `autoprompt` print around their runs."""

import pathlib
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning import config
from prompt_tuning.native_logs import quiet_imports


def design(arguments: Any) -> int:
  """`prompt-tuning design`: the table of spreads, and where everything is."""
  arguments.load("design")
  with quiet_imports():
    from prompt_tuning.discrete.design import DesignConfig, spread
    from prompt_tuning.discrete.design import design as run
    from prompt_tuning.prompt_figures import draw_spread
  settings = config.build(DesignConfig)
  rows, majority = run(settings, config.operative())
  folder = pathlib.Path(settings.model_dir)
  draw_spread(rows, majority, folder / "spread.png")
  table = Table(title=f"{settings.task.name}, {settings.split}: accuracy over templates, "
                f"verbalisers and seeds (majority class {majority:.3f})")
  for name in ("shots", "choice", "scoring", "n", "mean", "sd", "worst", "best", "left out"):
    table.add_column(name, justify="left" if name in ("choice", "scoring") else "right")
  for row in spread(rows):
    sd = "" if row["sd"] == "" else f"{row['sd']:.3f}"
    table.add_row(str(row["shots"]), row["choice"], row["scoring"], str(row["prompts"]),
                  f"{row['mean']:.3f}", sd, f"{row['worst']:.3f}", f"{row['best']:.3f}",
                  str(row["left_out"]))
  Console().print(table)
  best = max(rows, key=lambda row: row["accuracy"])
  Console().print(f"best: {best['accuracy']:.3f} with {escape(repr(best['template']))}, words "
                  f"{escape(best['words'])}, chosen on these very rows", highlight=False)
  print(f"Wrote results.csv (every prompt), spread.csv, spread.png and summary.json to {folder}.")
  return 0


def autoprompt(arguments: Any) -> int:
  """`prompt-tuning autoprompt`: the trigger, and its scores beside those of other prompts."""
  arguments.load("autoprompt")
  with quiet_imports():
    from prompt_tuning.discrete.autoprompt import AutoPrompt
    from prompt_tuning.discrete.autoprompt_config import AutoPromptConfig
    from prompt_tuning.prompt_figures import draw_lines
  settings = config.build(AutoPromptConfig)
  search = AutoPrompt(settings, config.operative())
  summary = search.run()
  folder = pathlib.Path(settings.model_dir)
  names = ["search rows", *summary["majority"]]
  table = Table(title=f"{settings.task.name}: accuracy (loss)")
  table.add_column("prompt")
  for name in names:
    table.add_column(name, justify="right")
  table.add_row("majority class", "", *(f"{value:.3f}" for value in summary["majority"].values()))
  for prompt, results in summary["results"].items():
    table.add_row(prompt, *(f"{results[name]['accuracy']:.3f} ({results[name]['loss']:.3f})"
                            for name in names))
  console = Console()
  console.print(table)
  found = search.described()
  console.print(f"trigger of step {summary['best_step']}: {escape(' '.join(found['pieces']))}",
                highlight=False)
  for label, texts in found["classes"].items():
    console.print(f"{escape(label)}: {escape(', '.join(texts))}", highlight=False)
  files = "prompt.npy, trigger.json, summary.json"
  if search.state.swaps:
    points = [(swap["step"], min(swap["before"], swap["after"]), 0.0)
              for swap in search.state.swaps]
    draw_lines({"search rows": points}, "step", "loss", folder / "loss.png")
    files += ", swaps.csv, loss.png"
  print(f"Wrote {files} to {folder}.")
  print("Start a soft prompt from it:  prompt-tuning train --gin_file=inits/from_file.gin "
        f"--gin.INITIAL_PROMPT_FILE={folder / 'prompt.npy'} ...")
  return 0
