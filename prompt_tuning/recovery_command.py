"""What `prompt-tuning recover` prints."""

import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from prompt_tuning import config
from prompt_tuning.native_logs import quiet_imports


def recover(arguments: Any) -> int:
  arguments.load("recover")
  with quiet_imports():
    from prompt_tuning import recovery
    from prompt_tuning.prompt_figures import draw_lines
  settings = config.build(recovery.RecoverConfig)
  table = recovery.means(recovery.recover(settings, config.operative()))
  shown = Table(title=f"sentences said again, mean ± sd over {len(settings.seeds)} seeds")
  for name in ("domain", "backbone", "vectors", "exact match", "BLEU", "loss a token"):
    shown.add_column(name, justify="left" if name in ("domain", "backbone") else "right")
  lines: dict[str, list[tuple[float, float, float]]] = {}
  for row in table:
    shown.add_row(row["domain"], row["backbone"], str(row["vectors"]), *(
      f"{row[name]:.{digits}f} ± {row[name + '_sd']:.{digits}f}"
      for name, digits in (("exact_match", 3), ("bleu", 1), ("loss", 3))))
    lines.setdefault(f"{row['domain']}, {row['backbone']}", []).append(
      (row["vectors"], row["exact_match"], row["exact_match_sd"]))
  Console().print(shown)
  folder = pathlib.Path(settings.model_dir)
  draw_lines(lines, "vectors a sentence", "exact match", folder / "recovery.png")
  print(f"Wrote results.csv, recovery.png, summary.json and vectors/ to {folder}.")
  return 0
