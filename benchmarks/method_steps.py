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

WIDTH = 256  # D of the shipped model
MACROS = {"TRAIN_STEPS": 1, "BATCH_SIZE": 16, "SCAN_LAYERS": False, "LEARNING_RATE": 0.01,
          "MIXTURE_OR_TASK_NAME": "docstring_library",
          "TASK_FEATURE_LENGTHS": {"inputs": 100, "targets": 8}}


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
    # Two sources, as `methods.py` has them; what is in them costs nothing.
    sources = [f"{folder}/{name}.npy" for name in ("one", "two")]
    for source in sources:
      np.save(source, np.zeros((20, WIDTH), np.float32))
    flags, rates = every["ATTEMPT"]
    every["ATTEMPT"] = ([*flags, f"--gin.SOURCE_PROMPTS={sources!r}"], rates)
    for name, (flags, _) in every.items():
      files, given = files_and_bindings(flags)
      bindings, _ = gin_config.split_gin_flags(given)
      steps[name] = list(pipeline.prepared(pipeline.build(
        pipeline.TINY, files, MACROS, pathlib.Path(folder), bindings)))
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
