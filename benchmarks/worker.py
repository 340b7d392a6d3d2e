"""One side of the benchmark in a process of its own: its peak memory and its threads are its own.

  python -m benchmarks.worker {ours,peft,peak} JOB SHAPES_JSON THREADS

Speaks lines of JSON: first what the set-up found out, then one object a line that it reads (the
seconds of one run), and at the end of its input the most memory that it held.
"""

import json
import os
import resource
import sys


def main(side: str, job: str, shapes_json: str, threads: str) -> None:
  # Before anything that makes a thread pool is imported: XLA asks the scheduler how many it may.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(threads)])
  os.environ["OMP_NUM_THREADS"] = threads
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Whatever a library prints is no answer.

  def answer(values: dict) -> None:
    print(json.dumps(values), file=answers, flush=True)

  from benchmarks.shapes import Shapes
  shapes = Shapes(**json.loads(shapes_json))
  if side == "peft":
    from benchmarks import peft_jobs as jobs
  else:
    from prompt_tuning.host_memory import keep_freed_memory
    keep_freed_memory()  # As the `prompt-tuning` command does.
    from benchmarks import our_jobs as jobs
  prepared, run = jobs.prepare(job, shapes, int(threads))
  run()
  answer(prepared)
  for _ in sys.stdin:
    answer(run())
  answer({"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9})


if __name__ == "__main__":
  main(*sys.argv[1:])
