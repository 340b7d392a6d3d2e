"""Flags and body of `prompt-tuning sweep`; imports nothing heavy before it runs."""

import argparse
import pathlib
from collections.abc import Callable

from prompt_tuning import config
from prompt_tuning.errors import UserError


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--list", action="store_true", help="show the runs, their state and commands")
  parser.add_argument("--only", action="append", default=[], metavar="PATTERN",
                      help="only runs with this in their name (* and ? are wild); repeatable")
  parser.add_argument("--shard", default="0/1", metavar="i/n",
                      help="part i of n, from 0: n machines take one each")
  parser.add_argument("--collect", action="store_true",
                      help="run nothing: make the CSV files and figures of what is done")
  parser.add_argument("--draw", metavar="CSV", help="only draw the figures of a results.csv")
  parser.add_argument("--published", action="store_true",
                      help="show the papers' numbers in the figures of --draw too")
  parser.add_argument("--output_dir", metavar="FOLDER", help="where --draw puts them")


def run(options: argparse.Namespace, load: Callable[[], None]) -> int:
  """One command line.

  Args:
    load: loads the gin files of the command line.
  """
  if options.draw is not None:
    from prompt_tuning.experiments import plots
    table = pathlib.Path(options.draw)
    folder = pathlib.Path(options.output_dir or table.parent / "figures")
    for path in plots.draw_all(table, folder, overlay=options.published):
      print(f"Wrote {path}")
    return 0
  shard = _shard(options.shard)
  load()
  from prompt_tuning.native_logs import quiet_imports
  with quiet_imports():
    from prompt_tuning.experiments import sweep
  from prompt_tuning.experiments.grid import Grid
  grid = config.build(Grid)
  part = sweep.Part(tuple(options.only), shard)
  if options.list:
    sweep.listing(grid, part)
    return 0
  if options.collect:
    sweep.collect(grid)
    return 0
  return sweep.sweep(grid, part)


def _shard(text: str) -> tuple[int, int]:
  try:
    index, count = map(int, text.split("/"))
  except ValueError:
    raise UserError("--shard cannot be read", found=text, wanted="i/n, such as 0/4",
                    fix="give two whole numbers, i from 0 to n-1") from None
  return index, count
