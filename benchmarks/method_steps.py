"""What a step of every method takes, in steps of the soft prompt on the same rows.

  python -m benchmarks.method_steps

The methods and settings of `benchmarks/methods.py` on the shipped model: 16 rows of 100 and 8
tokens, without padding. All steps are compiled first, then take turns, so that whatever else the
machine does slows all of them alike; medians over the rounds. GFLOP are the matrix products that
the compiled step holds.
"""

import argparse
import pathlib
import tempfile
import time

import jax
import numpy as np

from benchmarks import methods, pipeline
from prompt_tuning import config as gin_config
from prompt_tuning.experiments.grid import files_and_bindings
from prompt_tuning.host_memory import keep_freed_memory
from prompt_tuning.plan.hlo import matmul_flop
from prompt_tuning.train_config import TrainConfig

ROWS, LENGTHS, RATE = 16, {"inputs": 100, "targets": 8}, 0.01


def settings(flags: list[str], work: pathlib.Path) -> TrainConfig:
  files, bindings = files_and_bindings([*flags, f"--gin.LEARNING_RATE={RATE}"])
  given, _ = gin_config.split_gin_flags(bindings)
  gin_config.clear()
  gin_config.load(["commands/train.gin", pipeline.TINY, *files], [
    *given, f"MODEL_DIR = {str(work)!r}", "TRAIN_STEPS = 1", f"BATCH_SIZE = {ROWS}",
    "SCAN_LAYERS = False", "MIXTURE_OR_TASK_NAME = 'docstring_library'",
    f"TASK_FEATURE_LENGTHS = {LENGTHS}"])
  return gin_config.build(TrainConfig)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=20)
  options = parser.parse_args()
  keep_freed_memory()
  every = dict(methods.METHODS)
  for name, (flags, rates) in methods.ONLY_CLASSES.items():
    every[name] = ([*flags, f"--gin.CLASS_LABELS={list(methods.LABELS['sst2'])!r}"], rates)
  steps, gflop = {}, {}
  with tempfile.TemporaryDirectory() as folder:
    for name, (flags, _) in every.items():
      steps[name] = list(pipeline.prepared(settings(flags, pathlib.Path(folder))))
      gflop[name] = matmul_flop(steps[name][0].as_text()) / 1e9
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(options.rounds + 1):
    for name, (function, state, frozen, batch) in steps.items():
      began = time.process_time()
      steps[name][1], metrics = function(state, frozen, batch)
      jax.block_until_ready((steps[name][1], metrics))
      seconds[name].append(time.process_time() - began)
  soft = np.median(seconds["soft prompt"][1:])
  print("| method | GFLOP | processor s | of the soft prompt's |\n|---|---|---|---|")
  for name, found in seconds.items():
    median = np.median(found[1:])
    print(f"| {name} | {gflop[name]:.1f} | {median:.3f} | {median / soft:.2f} |")


if __name__ == "__main__":
  main()
