"""Every method on the shipped model: learning rates chosen on validation rows, then three seeds.

  python benchmarks/outside_data.py DATA_DIR runs/outside
  python -m benchmarks.methods runs/outside runs/methods --shard 0/2 &
  python -m benchmarks.methods runs/outside runs/methods --shard 1/2
  python -m benchmarks.methods runs/outside runs/methods --table

A method's rate is the one of its three that does best on the validation split with seed 0, or of up
to two more where the best is the first or the last. With it the seeds 1 and 2 are run, and the test
split is evaluated once a seed. E2E with 500 and 50 training rows has E2E's validation rows, and
takes the rate that was found on them with all rows. A run is a folder; finished runs are not
repeated, a stopped one resumes. What a cell found goes to `--rows`, and a cell that is there is not
run; `--rows benchmarks/methods_rows --table` prints the numbers of docs/methods.md.
"""

import argparse
import contextlib
import io
import json
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks import shipped_model
from prompt_tuning import host_memory, main

# `e2e_500` and `e2e_50` are E2E with so many training rows.
TASKS = ("docstring_library", "e2e", "sst2", "e2e_500", "e2e_50")
SEEDS = (0, 1, 2)
STEPS, EVAL_PERIOD, BATCH_SIZE = 300, 150, 16
# Of text, whose steps take three times as long.
E2E_STEPS = 150

LADDER = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FURTHER = 2
PROMPT_RATES = (0.03, 0.1, 0.3)
TUNING_RATES = (0.003, 0.01, 0.03)
# AdamW's, for what a method computes its vectors with and for light modules.
WEIGHT_RATES = (0.001, 0.003, 0.01)
LABELS = {"sst2": ("enemy", "praise")}


def _method(file: str, *flags: str, rates: Sequence[float] = PROMPT_RATES,
            run: str = "runs/prompt_tune.gin") -> tuple[list[str], Sequence[float]]:
  return [f"--gin_file=prompts/{file}.gin", f"--gin_file={run}", *flags], rates


ADAMW = "runs/adamw_tune.gin"
LENGTH = "--gin.PROMPT_LENGTH=20"
VOCABULARY = "--gin_file=inits/sampled_vocab.gin"
METHODS = {
  "model tuning": _method("none", run="runs/model_tune.gin", rates=TUNING_RATES),
  "last decoder layer": _method("none", "--gin.TRAINABLE=('decoder/layers_1/.*',)",
                                run="runs/model_tune.gin", rates=TUNING_RATES),
  "embeddings": _method("none", "--gin.TRAINABLE=('token_embedder/.*',)",
                        run="runs/model_tune.gin", rates=TUNING_RATES),
  "norms only": _method("none", "--gin.TRAINABLE=('.*/scale',)", run="runs/model_tune.gin",
                        rates=TUNING_RATES),
  "soft prompt": _method("soft", LENGTH, VOCABULARY),
  "soft prompt after the input": _method("soft", LENGTH, VOCABULARY,
                                         "--gin.PROMPT_TEMPLATE='{inputs}{prompt}'"),
  "soft prompt on both sides": _method(
    "soft", LENGTH, VOCABULARY, "--gin.PROMPT_TEMPLATE='{prompt:10}{inputs}{prompt:10}'"),
  "prefix": _method("prefix", "--gin.PROMPT_LENGTH=10", "--gin.PREFIX_HIDDEN=64",
                    run=ADAMW, rates=WEIGHT_RATES),
  "prefix, no MLP": _method("prefix", "--gin.PROMPT_LENGTH=10", "--gin.PREFIX_HIDDEN=None",
                            run=ADAMW, rates=WEIGHT_RATES),
  "P-tuning": _method("ptuning", LENGTH, run=ADAMW, rates=WEIGHT_RATES),
  "P-tuning, MLP": _method("ptuning", LENGTH, "--gin.PROMPT_ENCODER='mlp'", run=ADAMW,
                           rates=WEIGHT_RATES),
  "deep prompts": _method("deep", LENGTH, VOCABULARY),
  "deep prompts, added": _method("deep", LENGTH, VOCABULARY, "--gin.DEEP_MODE='add'"),
  "multitask prompt, one task": _method("multitask", LENGTH, VOCABULARY),
  "ATTEMPT": _method("attempt", LENGTH, VOCABULARY, run=ADAMW, rates=WEIGHT_RATES),
  "low-rank prompt": _method("low_rank", LENGTH, VOCABULARY),
  "residual prompt": _method("residual", LENGTH, VOCABULARY, run=ADAMW,
                             rates=WEIGHT_RATES),
  "LoRA": _method("lora", run=ADAMW, rates=WEIGHT_RATES),
  "IA3": _method("ia3", run=ADAMW, rates=WEIGHT_RATES),
  "adapters": _method("adapter", run=ADAMW, rates=WEIGHT_RATES),
  "soft prompt + LoRA": _method("combined", LENGTH, VOCABULARY, run=ADAMW, rates=WEIGHT_RATES),
}
ONLY_CLASSES = {"WARP": _method("warp", LENGTH, VOCABULARY)}


def cells() -> Iterator[tuple[str, str]]:
  """(task, method)."""
  for task in TASKS:
    for method in METHODS | (ONLY_CLASSES if task in LABELS else {}):
      yield task, method


def run_cell(task: str, method: str, data: pathlib.Path, out: pathlib.Path,
             rows: pathlib.Path) -> None:
  """The search, then the seeds; writes `<rows>/<task>/<method>.json`."""
  flags, rates = (METHODS | ONLY_CLASSES)[method]
  record = rows / task / f"{method.replace(' ', '_')}.json"
  if record.is_file():
    return
  if method == "ATTEMPT":
    flags = [*flags, f"--gin.SOURCE_PROMPTS={_sources(task, out, rows)!r}"]
  if method in ONLY_CLASSES:
    flags = [*flags, f"--gin.CLASS_LABELS={list(LABELS[task])!r}"]
  sizes = _sizes(flags)
  metric, sign = ("loss", -1) if _is_e2e(task) else ("accuracy", 1)
  searched: dict[float, float] = {}

  def search(rate: float) -> float:
    """Trains with a rate; the best of all so far."""
    found = _train(task, flags, rate, 0, data, out / task / f"{method}-{rate}-0")
    searched[rate] = found["best"][metric]
    return max(searched, key=lambda rate: sign * searched[rate])

  whole = rows / _data_set(task) / record.name
  if task.startswith("e2e_") and whole.is_file():
    best = json.loads(whole.read_text())["rate"]
  else:
    for rate in rates:
      best = search(rate)
    for _ in range(FURTHER):
      step = (best == max(searched)) - (best == min(searched))
      if step:
        best = search(LADDER[LADDER.index(best) + step])
  runs = []
  for seed in SEEDS:
    folder = out / task / f"{method}-{best}-{seed}"
    summary = _train(task, flags, best, seed, data, folder)
    shipped_model.command(["eval", f"--gin.MODEL_DIR={str(folder)!r}", "--gin.SPLIT='test'"],
                          folder.with_name(folder.name + ".log"))
    metrics = dict(json.loads(next(folder.glob("eval_*_test.json")).read_text())["metrics"])
    if _is_e2e(task):
      metrics["bleu_all_references"] = shipped_model.multi_reference_bleu(
        next(folder.glob("predictions_*_test.jsonl")), data / "e2e_references.json")
    runs.append({"seed": seed, "metrics": metrics, "steps": summary["steps"],
                 "seconds": summary["seconds"]["steps"]})
  record.parent.mkdir(parents=True, exist_ok=True)
  record.write_text(json.dumps({
    "task": task, "method": method, "flags": flags, "rates": searched, "rate": best, "runs": runs,
    "trained_parameters": sizes["trained_parameters"], "served_bytes": sizes["served_bytes"]},
    indent=2) + "\n")
  print(f"{task}, {method}: {[run['metrics'] for run in runs]}", flush=True)


def _sources(task: str, out: pathlib.Path, rows: pathlib.Path) -> list[str]:
  """Runs of the soft prompt on the two other data sets, seed 0."""
  found = []
  for other in sorted({_data_set(name) for name in TASKS} - {_data_set(task)}):
    rate = json.loads((rows / other / "soft_prompt.json").read_text())["rate"]
    found.append(str(out / other / f"soft prompt-{rate}-0"))
  return found


def _train(task: str, flags: Sequence[str], rate: float, seed: int, data: pathlib.Path,
           folder: pathlib.Path) -> dict[str, Any]:
  """One `prompt-tuning train`; its summary."""
  summary = folder / "summary.json"
  steps = E2E_STEPS if _is_e2e(task) else STEPS
  if not (summary.is_file() and json.loads(summary.read_text()).get("steps") == steps):
    shipped_model.command(
      ["train", "--gin_file=models/tiny.gin", *flags, *_task_flags(task, data),
       f"--gin.LEARNING_RATE={rate}", f"--gin.RANDOM_SEED={seed}", f"--gin.TRAIN_STEPS={steps}",
       f"--gin.EVAL_PERIOD={EVAL_PERIOD}", f"--gin.BATCH_SIZE={BATCH_SIZE}",
       "--gin.evaluate.EvalSettings.max_examples=256", "--gin.SCAN_LAYERS=False",
       f"--gin.MODEL_DIR={str(folder)!r}"], folder.with_name(folder.name + ".log"))
    # Compiled programs of a run are of no use to the next one.
    jax.clear_caches()
  return json.loads(summary.read_text())


def _data_set(task: str) -> str:
  return "e2e" if _is_e2e(task) else task


def _is_e2e(task: str) -> bool:
  return task.startswith("e2e")


def _task_flags(task: str, data: pathlib.Path) -> list[str]:
  if not _is_e2e(task):
    return shipped_model.task_flags(task, data)
  flags = shipped_model.task_flags("e2e", data) + shipped_model.GENERATED_FLAGS
  _, _, rows = task.partition("_")
  return [*flags, f"--gin.TRAIN_FILE={str(data / f'e2e_train_{rows}.tsv')!r}"] if rows else flags


def _sizes(flags: Sequence[str]) -> dict[str, Any]:
  """What `prompt-tuning info` says."""
  wanted = [flag for flag in flags if not flag.startswith("--gin_file=runs/")]
  if "--gin_file=prompts/none.gin" in flags and not any("TRAINABLE" in flag for flag in flags):
    wanted.append("--gin.TRAINABLE=('.*',)")
  with contextlib.redirect_stdout(io.StringIO()) as shown:
    main.main(["info", "--gin_file=models/tiny.gin", "--gin.SCAN_LAYERS=False", *wanted, "--json"])
  return json.loads(shown.getvalue())


def table(rows: pathlib.Path) -> None:
  """Prints the Markdown table of what is there."""
  records = [json.loads(path.read_text()) for path in rows.glob("*/*.json")]
  found = {(record["task"], record["method"]): record for record in records}
  tasks = [task for task in TASKS if any(task == known for known, _ in found)]
  print("| method | trained | served bytes | " + " | ".join(
    f"{task} | rate | step" for task in tasks) + " |")
  print("|---" * (3 + 3 * len(tasks)) + "|")
  for method in METHODS | ONLY_CLASSES:
    row_of = {task: found.get((task, method)) for task in tasks}
    known = next(filter(None, row_of.values()), None)
    size = f"{known['trained_parameters']:,} | {known['served_bytes']:,}" if known else " | "
    print(f"| {method} | {size} | " + " | ".join(
      f"{_score(row)} | {row['rate']} | {_relative_time(row, found)}" if row else "not run | | "
      for row in row_of.values()) + " |")


def _relative_time(record: dict[str, Any], found: dict[tuple[str, str], dict[str, Any]]) -> str:
  """A step's, in steps of the soft prompt on the same task."""
  soft = found.get((record["task"], "soft prompt"))
  return f"{_step_time(record) / _step_time(soft):.2f}" if soft else ""


def _score(record: dict[str, Any]) -> str:
  name = "bleu_all_references" if _is_e2e(record["task"]) else "accuracy"
  values = [run["metrics"][name] for run in record["runs"]]
  return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _step_time(record: dict[str, Any]) -> float:
  return statistics.median(run["seconds"] / run["steps"] for run in record["runs"])


def run_all() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("data", type=pathlib.Path, help="what outside_data.py wrote")
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--rows", type=pathlib.Path,
                      help="folder of what the cells found; by default OUT/rows")
  parser.add_argument("--only", default="", help="part of `task, method`")
  parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell")
  parser.add_argument("--table", action="store_true", help="print what is there")
  options = parser.parse_args()
  found = options.rows or options.out / "rows"
  if options.table:
    table(found)
    return
  host_memory.keep_freed_memory()
  index, count = map(int, options.shard.split("/"))
  chosen = [cell for cell in cells() if options.only in ", ".join(cell)]
  for cell in chosen[index::count]:
    (options.out / cell[0]).mkdir(parents=True, exist_ok=True)
    run_cell(*cell, options.data, options.out, found)


if __name__ == "__main__":
  run_all()
