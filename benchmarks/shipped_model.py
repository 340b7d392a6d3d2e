"""What prompts learn on the shipped model: data sets x methods x seeds, each run by the commands.

  python benchmarks/outside_data.py DATA_DIR runs/outside
  python benchmarks/shipped_model.py runs/outside runs/results --shard 0/2 &
  python benchmarks/shipped_model.py runs/outside runs/results --shard 1/2
  python benchmarks/shipped_model.py runs/outside runs/results --table

A run is a folder and a `.json` beside it; finished runs are not repeated, a stopped one resumes.
The best step is chosen on validation rows; test rows are evaluated once, at the end.
"""

import argparse
import collections
import contextlib
import csv
import json
import pathlib
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from prompt_tuning import host_memory, hosts, main

SEEDS = (0, 1, 2)
STEPS, EVAL_PERIOD = 400, 200

OUTSIDE = {
  "sst2": {"INPUTS": "{sentence}", "TARGETS": "{chosen}", "LABELS": ["enemy", "praise"],
           "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 2}},
  "agnews": {"INPUTS": "{text}", "TARGETS": "{label}",
             "LABELS": ["world", "sports", "business", "science"],
             "TASK_FEATURE_LENGTHS": {"inputs": 112, "targets": 4}, "MAX_TRUNCATED_INPUTS": 0.15},
  "rte": {"INPUTS": "{hypothesis} {premise}", "TARGETS": "{label}", "LABELS": ["yes", "no"],
          "TASK_FEATURE_LENGTHS": {"inputs": 128, "targets": 2}, "MAX_TRUNCATED_INPUTS": 0.3},
  "e2e": {"INPUTS": "{meaning}", "TARGETS": "{text}",
          "TASK_FEATURE_LENGTHS": {"inputs": 88, "targets": 72},
          "MAX_TRUNCATED_TARGETS": 0.01},
}
# Chosen by the loss, which costs less than decoding; decoded once, on the test rows.
GENERATED = ("e2e", "docstring_summary")
GENERATED_FLAGS = ["--gin.evaluate.EvalSettings.method='loss'",
                   "--gin.evaluate.EvalSettings.max_examples=256"]
DOCSTRINGS = {
  "docstring_library": {"TASK_FEATURE_LENGTHS": {"inputs": 100, "targets": 8}},
  "docstring_summary": {"TASK_FEATURE_LENGTHS": {"inputs": 100, "targets": 40},
                        "MAX_TRUNCATED_TARGETS": 0.01},
}
PROMPT = ["--gin_file=prompts/soft.gin", "--gin_file=inits/sampled_vocab.gin",
          "--gin.PROMPT_LENGTH=20", "--gin.LEARNING_RATE=0.1"]
PREFIX = ["--gin_file=prompts/prefix.gin", "--gin.PROMPT_LENGTH=10", "--gin.PREFIX_HIDDEN=64",
          "--gin.LEARNING_RATE=0.003"]
METHODS = {
  "prompt": PROMPT,
  "prompt, random backbone": PROMPT,
  "prefix": PREFIX,
  "prefix, random backbone": PREFIX,
  "model tuning": ["--gin_file=prompts/none.gin", "--gin_file=runs/model_tune.gin",
                   "--gin.LEARNING_RATE=0.01"],
}
# SST-2's prompts want thousands of steps and a rate that falls.
PROMPT_RUN = {"sst2": ["--gin_file=runs/adamw_tune.gin", "--gin.TRAIN_STEPS=2500",
                       "--gin.EVAL_PERIOD=250"]}
SHORT_RUN = [f"--gin.TRAIN_STEPS={STEPS}", f"--gin.EVAL_PERIOD={EVAL_PERIOD}"]
FROZEN = "frozen, no prompt"
MAJORITY = "majority"


def cells() -> Iterator[tuple[str, str, int]]:
  """(data set, method, seed); the telling ones first."""
  for seed in SEEDS:
    for dataset in (*DOCSTRINGS, *OUTSIDE):
      if not seed:
        yield dataset, FROZEN, 0
      for method in METHODS:
        yield dataset, method, seed


def task_flags(dataset: str, folder: pathlib.Path) -> list[str]:
  """The settings of a data set, as a user gives them."""
  if dataset in DOCSTRINGS:
    settings = {"MIXTURE_OR_TASK_NAME": dataset, **DOCSTRINGS[dataset]}
    return flags(settings)
  files = {f"{split.upper()}_FILE": str(folder / f"{dataset}_{short}.tsv") for split, short in (
    ("train", "train"), ("validation", "valid"), ("test", "test"))}
  settings = {**files, **OUTSIDE[dataset]}
  return ["--gin_file=runs/your_data.gin",
          *flags(settings)]


def flags(settings: Mapping[str, Any]) -> list[str]:
  return [f"--gin.{name}={value!r}" for name, value in settings.items()]


def run(dataset: str, method: str, seed: int, folder: pathlib.Path, out: pathlib.Path,
        backbone: str) -> None:
  """One cell: trains, evaluates on the test split, writes its `.json`."""
  name = "_".join([dataset, *method.replace(",", "").split(), str(seed)])
  record = out / f"{name}.json"
  if record.is_file():
    return
  out.mkdir(parents=True, exist_ok=True)
  began = time.monotonic()
  model_dir = out / name
  start = "random" if "random" in method else backbone
  common = ["--gin_file=models/tiny.gin", f"--gin.INITIAL_CHECKPOINT_PATH={start!r}",
            *task_flags(dataset, folder), f"--gin.RANDOM_SEED={seed}"]
  training = ["train", *common, *METHODS.get(method, ()), f"--gin.MODEL_DIR={str(model_dir)!r}",
             "--gin.SCAN_LAYERS=False", *_run_flags(dataset, method)]
  if dataset in GENERATED:
    training += GENERATED_FLAGS
  if method == FROZEN:
    training = ["eval", *common, "--gin_file=prompts/none.gin", "--gin_file=runs/eval.gin",
               "--gin.SPLIT='test'", f"--gin.OUTPUT_DIR={str(model_dir)!r}"]
    command(training, out / f"{name}.log")
  else:
    command(training, out / f"{name}.log")
    command(["eval", f"--gin.MODEL_DIR={str(model_dir)!r}", "--gin.SPLIT='test'"],
             out / f"{name}.log")
  result = json.loads(next(model_dir.glob("eval_*_test.json")).read_text())
  metrics = dict(result["metrics"])
  predictions = next(model_dir.glob("predictions_*_test.jsonl"))
  if dataset == "e2e":
    metrics["bleu_all_references"] = multi_reference_bleu(
      predictions, folder / "e2e_references.json")
  elif dataset not in GENERATED:
    targets = collections.Counter(json.loads(line)["target"]
                                  for line in lines_of(predictions))
    metrics["majority"] = targets.most_common(1)[0][1] / targets.total()
  record.write_text(json.dumps({
    "dataset": dataset, "method": method, "seed": seed, "metrics": metrics,
    "seconds": round(time.monotonic() - began, 1), "command": " ".join(training)}, indent=2) + "\n")
  print(f"{name}: {metrics}", flush=True)


def _run_flags(dataset: str, method: str) -> list[str]:
  if method == "model tuning":
    return SHORT_RUN
  if method.startswith("prefix"):
    return ["--gin_file=runs/adamw_tune.gin", *SHORT_RUN]
  return PROMPT_RUN.get(dataset, ["--gin_file=runs/prompt_tune.gin", *SHORT_RUN])


def command(arguments: list[str], log: pathlib.Path) -> None:
  """One command, in this process: its imports take longer than a short evaluation."""
  with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
    code = main.main(arguments)
  if code == hosts.STOPPED:
    raise SystemExit(f"told to stop; the same command goes on with it: see {log}")
  if code:
    raise SystemExit(f"prompt-tuning {arguments[0]} failed ({code}): see {log}")


def is_finished(model_dir: pathlib.Path) -> bool:
  """Whether a run has come to its end; a summary is there from its start on."""
  summary = model_dir / "summary.json"
  return summary.is_file() and json.loads(summary.read_text()).get("interrupted") is False


def multi_reference_bleu(predictions: pathlib.Path, references: pathlib.Path) -> float:
  """Corpus BLEU (sacrebleu, 13a) of one prediction an input against all its references."""
  import sacrebleu

  known = json.loads(references.read_text())
  rows = [json.loads(line) for line in lines_of(predictions)]
  texts = [known[row["input"].strip()] for row in rows]
  longest = max(map(len, texts))
  streams = [[t[i] if i < len(t) else None for t in texts] for i in range(longest)]
  return float(sacrebleu.corpus_bleu([row["prediction"] for row in rows], streams).score)


def lines_of(path: pathlib.Path) -> list[str]:
  """Of a file of JSON lines: no `splitlines`, since JSON leaves U+0085 as it is."""
  return path.read_text().rstrip("\n").split("\n")


# The metric that a table shows of each data set.
SHOWN = {"e2e": "bleu_all_references", "docstring_summary": "loss"}


def table(out: pathlib.Path) -> None:
  """Prints mean and standard deviation over the seeds as Markdown, and writes `results.csv`."""
  records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
  with open(out / "results.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(("dataset", "method", "seed", "metric", "value", "seconds"))
    for record in records:
      for metric, value in record["metrics"].items():
        writer.writerow((record["dataset"], record["method"], record["seed"], metric, value,
                         record["seconds"]))
  values: dict[tuple[str, str], list[float]] = {}
  for record in records:
    shown = record["metrics"].get(SHOWN.get(record["dataset"], "accuracy"))
    values.setdefault((record["dataset"], record["method"]), []).append(shown)
  methods = [MAJORITY, FROZEN, *METHODS]
  for record in records:
    if record["method"] == FROZEN and "majority" in record["metrics"]:
      values[record["dataset"], MAJORITY] = [record["metrics"]["majority"]]
  print("| data set, test rows (metric) | " + " | ".join(methods) + " |")
  print("|---" * (len(methods) + 1) + "|")
  for dataset in (*OUTSIDE, *DOCSTRINGS):
    row = [mean_and_deviation(values.get((dataset, method), ())) for method in methods]
    print(f"| {dataset} ({SHOWN.get(dataset, 'accuracy')}) | " + " | ".join(row) + " |")


def mean_and_deviation(values) -> str:
  """As a table shows them: mean ± deviation (number), or that there is none."""
  values = [value for value in values if value is not None]
  if not values:
    return "not run"
  spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.3f}{spread} ({len(values)})"


def run_all() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("data", type=pathlib.Path, help="what outside_data.py wrote")
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--backbone", default="tiny")
  parser.add_argument("--only", default="",
                      help="part of `data set, method`")
  parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell")
  parser.add_argument("--table", action="store_true", help="print what is there")
  options = parser.parse_args()
  if options.table:
    table(options.out)
    return
  host_memory.keep_freed_memory()
  index, count = map(int, options.shard.split("/"))
  chosen = [cell for cell in cells() if options.only in ", ".join(cell[:2])]
  for cell in chosen[index::count]:
    run(*cell, options.data, options.out, options.backbone)
    # Compiled programs of a run are of no use to the next one.
    jax.clear_caches()


if __name__ == "__main__":
  run_all()
