"""How long a step waits for a new epoch of noised rows: made ahead, and made when it is needed.

  python -m benchmarks.next_epoch DATA_DIR --step 0.05

Span corruption of DATA_DIR's held-out corpus, as `runs/pretrain.gin` has it. A step is a pause of
so many seconds, in which the processor is free, as it is beside an accelerator. The longest wait
for a batch of the second epoch, and what an epoch takes to make, on this machine.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import TypeVar

from benchmarks import pipeline
from prompt_tuning import batches
from prompt_tuning.prefetch import Prefetcher
from prompt_tuning.task_setup import set_up
from prompt_tuning.train_loop import train_data

T = TypeVar("T")


def longest_wait(data: pathlib.Path, step: float, ahead: float) -> tuple[float, float, int]:
  """Seconds of the longest wait, seconds to make the first epoch, steps of an epoch."""
  batches.AHEAD = ahead
  with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    config = pipeline.build(pipeline.TINY, *pipeline.settings(data, work)["span_corruption"], work)
    began = time.monotonic()
    made = train_data(config, set_up(config.task, config.model.vocabulary), 0)
    first = time.monotonic() - began
    steps = made.steps_per_epoch
    longest = 0.0
    with Prefetcher(made.at, stop=steps + 20) as prefetched:
      for number, _ in enumerate(_timed(prefetched, waits := [])):
        if number >= steps // 2:
          longest = max(longest, waits[-1])
        time.sleep(step)
    made.close()
  return longest, first, steps


def _timed(items: Iterator[T], waits: list[float]) -> Iterator[T]:
  """The items; adds the seconds that each was waited for."""
  while True:
    began = time.monotonic()
    try:
      item = next(items)
    except StopIteration:
      return
    waits.append(time.monotonic() - began)
    yield item


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("data", type=pathlib.Path, help="the folder that holds corpus/")
  parser.add_argument("--step", type=float, default=0.05, help="seconds")
  options = parser.parse_args()
  # One step ahead is as good as when it is needed.
  for name, ahead in (("ahead", batches.AHEAD), ("when it is needed", 0.0)):
    longest, first, steps = longest_wait(options.data, options.step, ahead)
    print(f"{name}: an epoch of {steps} steps takes {first:.1f} s to make; the longest wait is "
          f"{longest:.2f} s, of {steps * options.step:.0f} s of steps", flush=True)


if __name__ == "__main__":
  main()
