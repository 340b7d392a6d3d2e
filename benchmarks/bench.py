"""Ours, PEFT and the matmul peak of the moment, in one run on the same shapes.

  make bench        T5 1.1 small; a table, and one JSON object on the last line
  python -m benchmarks.bench --shapes tiny --without-peft

For every job our side, PEFT and a process that multiplies squares take turns, so that whatever
else the machine does hits all of them; each number is the best of its turns. `ratio` is PEFT's
time over ours, `fraction_of_peak` our matrix products a second over the best square product of the
same turns. Our side starts as the `prompt-tuning` command does (`prompt_tuning/host_memory.py`),
PEFT as it is. docs/performance.md has the findings.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks.shapes import JOBS, TINY, Shapes, theory_flop

ROOT = Path(__file__).resolve().parent.parent


class Worker:
  """A side of the benchmark, in its own process."""

  def __init__(self, side: str, job: str, shapes: Shapes, threads: int):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    self._process = subprocess.Popen(
      [sys.executable, "-m", "benchmarks.worker", side, job,
       json.dumps(dataclasses.asdict(shapes)), str(threads)],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
      env=environment | {"JAX_PLATFORMS": "cpu"})
    self.prepared = self._read()
    self.runs: list[dict[str, float]] = []

  def run(self) -> None:
    print(file=self._process.stdin, flush=True)
    self.runs.append(self._read())

  def best(self, name: str = "seconds") -> float:
    return min(run[name] for run in self.runs)

  def close(self) -> float:
    """Ends the process; the most memory that it held, in GB."""
    self._process.stdin.close()
    peak = self._read()["peak_gb"]
    self._process.wait()
    return peak

  def _read(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit("a side of the benchmark died; its message is above")
    return json.loads(line)


def measure(job: str, shapes: Shapes, peak: Worker, *, rounds: int, threads: int,
            with_peft: bool) -> dict:
  """One job: every number that is reported of it."""
  peak.runs.clear()
  ours = Worker("ours", job, shapes, threads)
  peft = Worker("peft", job, shapes, threads) if with_peft else None
  for _ in range(rounds):
    for worker in (peak, ours, peft):
      if worker is not None:
        worker.run()
  peak_gflops = max(run["gflops"] for run in peak.runs)
  matmul = ours.prepared["matmul_gflop"]
  found = {"ours_s": ours.best(), "peft_s": None, "ratio": None,
           "fraction_of_peak": matmul / ours.best() / peak_gflops, "matmul_gflop": matmul,
           "theory_gflop": theory_flop(shapes, job) / 1e9, "peak_gflops": peak_gflops,
           "compile_s": ours.prepared["compile_s"], "ours_gb": ours.close()}
  sides = {"ours": ours} | ({} if peft is None else {"peft": peft})
  if peft is not None:
    found |= {"peft_s": peft.best(), "ratio": peft.best() / ours.best(), "peft_gb": peft.close()}
  if job == "decode":
    for name, side in sides.items():
      prefill = side.best("prefill_s")
      found |= {f"{name}_prefill_s": prefill,
                f"{name}_token_s": (side.best() - prefill) / shapes.decode_tokens,
                f"{name}_tokens_per_s": shapes.rows * shapes.decode_tokens / side.best()}
  return found


def table(results: dict[str, dict]) -> str:
  """The results, a job a column."""
  names = list(dict.fromkeys(name for found in results.values() for name in found))
  lines = [f"{'':20}" + "".join(f"{job:>14}" for job in results)]
  for name in names:
    cells = [found.get(name) for found in results.values()]
    lines.append(f"{name:20}" + "".join(
      f"{'' if cell is None else format(cell, '.4g'):>14}" for cell in cells))
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, dict]:
  parser = argparse.ArgumentParser(description="Times ours against PEFT and the matmul peak.")
  parser.add_argument("--shapes", choices=("small", "tiny"), default="small")
  parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
  parser.add_argument("--rounds", type=int, default=8, help="turns of every side (8)")
  parser.add_argument("--threads", type=int, default=2, help="of every side (2)")
  parser.add_argument("--without-peft", action="store_true", help="needs no PyTorch")
  parser.add_argument("--scan-layers", action="store_true", help="our layers in one loop")
  options = parser.parse_args(argv)
  shapes = dataclasses.replace(Shapes() if options.shapes == "small" else TINY,
                               scan_layers=options.scan_layers)
  peak = Worker("peak", "peak", shapes, options.threads)
  results = {job: measure(job, shapes, peak, rounds=options.rounds, threads=options.threads,
                          with_peft=not options.without_peft) for job in options.jobs}
  peak.close()
  print(f"{_processor()}, {options.threads} threads, best of {options.rounds} turns, float32")
  print(table(results))
  print(json.dumps(results))
  return results


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()


if __name__ == "__main__":
  main()
