"""`prompt-tuning plan`: its flags, and what they run."""

import argparse
import json
import os
import pathlib

from prompt_tuning import config
from prompt_tuning.disk import cache_home
from prompt_tuning.errors import UserError

# A compiler that meets no chip: it asks no metadata server, and shares libtpu with other processes.
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `plan`."""
  parser.add_argument("--topology", required=True, metavar="NAME",
                      help="v5e-8, v4-8, v5p-8, v6e-4, h100-8, ...; v5e-16x2 is two slices")
  parser.add_argument("--program", default="train", choices=("train", "decode"),
                      help="the train step, or greedy decoding of one batch")
  parser.add_argument("--auto", action="store_true",
                      help="try layouts and remat policies, and recommend the fastest that fits")
  parser.add_argument("--dtypes", metavar="A,B", help="FROZEN_DTYPEs for --auto to try")
  parser.add_argument("--margin", type=float, default=0.1, metavar="SHARE",
                      help="memory that --auto leaves free (0.1)")
  parser.add_argument("--memory_gib", type=float, default=8.0, metavar="GIB",
                      help="of this machine, for compilers that run in parallel (8)")
  parser.add_argument("--no_cache", action="store_true", help="compile again what was compiled")
  parser.add_argument("--json", action="store_true", help="JSON instead of text")


def prepare() -> None:
  """Sets what has to be set before jax is imported."""
  os.environ.update(_ENVIRONMENT)


def run(options: argparse.Namespace) -> int:
  """Plans what the loaded gin files describe; exit code 1 where it does not fit."""
  from prompt_tuning.plan import report, search
  from prompt_tuning.plan.program import PlanConfig
  from prompt_tuning.plan.row import compile_row
  from prompt_tuning.plan.topologies import find
  if not 0.0 <= options.margin < 1.0:
    raise UserError("--margin is not a share", found=options.margin, wanted="0 <= share < 1",
                    fix="--margin=0.1")
  topology = find(options.topology)
  settings = config.build(PlanConfig)
  cache = None if options.no_cache else _cache_folder()
  if options.auto:
    dtypes = (options.dtypes or settings.model.frozen_dtype).split(",")
    found = search.search(settings, options.program, topology, cache=cache, dtypes=dtypes,
                          margin=options.margin, memory_gib=options.memory_gib)
    if options.json:
      print(json.dumps({"best": found.best and found.best.as_json(),
                        "rows": [row.as_json() for row in found.rows],
                        "skipped": found.skipped}, indent=2))
    else:
      report.show_search(found, topology)
    return 0 if found.best else 1
  row = compile_row(settings, options.program, topology, cache)
  if options.json:
    print(json.dumps(row.as_json(), indent=2))
  else:
    report.show_row(row)
  return 0 if row.fits else 1


def _cache_folder() -> pathlib.Path:
  return cache_home() / "plans"
