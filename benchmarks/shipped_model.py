"""What prompts learn on the shipped model: data sets x methods x seeds, each run by the commands.

  python benchmarks/outside_data.py DATA_DIR runs/outside
  python benchmarks/shipped_model.py runs/outside runs/results --shard 0/2 &
  python benchmarks/shipped_model.py runs/outside runs/results --shard 1/2
  python benchmarks/shipped_model.py runs/outside runs/results --table

A run is a folder and a `.json` beside it; finished runs are not repeated, a stopped one resumes.
The best step is chosen on validation rows; test rows are evaluated once, at the end.
"""

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

SEEDS = (0, 1, 2)
STEPS, EVAL_PERIOD = 400, 100

OUTSIDE = {
  "sst2": {"INPUTS": "{sentence}", "TARGETS": "{label}", "LABELS": ["bad", "good"],
           "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 2}},
  "agnews": {"INPUTS": "{text}", "TARGETS": "{label}",
             "LABELS": ["world", "sports", "business", "science"],
             "TASK_FEATURE_LENGTHS": {"inputs": 112, "targets": 4}, "MAX_TRUNCATED_INPUTS": 0.15},
  "rte": {"INPUTS": "{hypothesis} {premise}", "TARGETS": "{label}", "LABELS": ["yes", "no"],
          "TASK_FEATURE_LENGTHS": {"inputs": 128, "targets": 2}, "MAX_TRUNCATED_INPUTS": 0.3},
  "e2e": {"INPUTS": "{meaning}", "TARGETS": "{text}",
          "TASK_FEATURE_LENGTHS": {"inputs": 80, "targets": 72},
          "run_config.TaskConfig.max_truncated_targets": 0.01},
}
DOCSTRINGS = {
  "docstring_library": {"TASK_FEATURE_LENGTHS": {"inputs": 100, "targets": 8}},
  "docstring_summary": {"TASK_FEATURE_LENGTHS": {"inputs": 100, "targets": 40}},
}
PROMPT = ["--gin_file=prompts/soft.gin", "--gin_file=runs/prompt_tune.gin",
          "--gin.PROMPT_LENGTH=20"]
METHODS = {
  "prompt": [*PROMPT, "--gin.LEARNING_RATE=0.3"],
  "prompt, random backbone": [*PROMPT, "--gin.LEARNING_RATE=0.3",
                              "--gin.INITIAL_CHECKPOINT_PATH=random"],
  "model tuning": ["--gin_file=prompts/none.gin", "--gin_file=runs/model_tune.gin",
                   "--gin.LEARNING_RATE=0.01"],
}
FROZEN = "frozen, no prompt"


def cells() -> Iterator[tuple[str, str, int]]:
  """(data set, method, seed); the cheap and the telling ones first."""
  for seed in SEEDS:
    for dataset in (*OUTSIDE, *DOCSTRINGS):
      if not seed:
        yield dataset, FROZEN, 0
      for method in METHODS:
        yield dataset, method, seed


def task_flags(dataset: str, folder: pathlib.Path) -> list[str]:
  """The settings of a data set, as a user gives them."""
  if dataset in DOCSTRINGS:
    settings = {"MIXTURE_OR_TASK_NAME": dataset, **DOCSTRINGS[dataset]}
    return [f"--gin.{name}={value}" for name, value in settings.items()]
  files = {f"{split.upper()}_FILE": str(folder / f"{dataset}_{short}.tsv") for split, short in (
    ("train", "train"), ("validation", "valid"), ("test", "test"))}
  settings = {**files, **OUTSIDE[dataset]}
  return ["--gin_file=runs/your_data.gin",
          *(f"--gin.{name}={value}" for name, value in settings.items())]


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
  common = ["--gin_file=models/tiny.gin", f"--gin.INITIAL_CHECKPOINT_PATH={backbone}",
            *task_flags(dataset, folder), f"--gin.RANDOM_SEED={seed}"]
  command = ["train", *common, *METHODS.get(method, ()), f"--gin.MODEL_DIR={model_dir}",
             f"--gin.TRAIN_STEPS={STEPS}", f"--gin.EVAL_PERIOD={EVAL_PERIOD}",
             "--gin.SCAN_LAYERS=False"]
  if method == FROZEN:
    command = ["eval", *common, "--gin_file=prompts/none.gin", "--gin_file=runs/eval.gin",
               "--gin.SPLIT=test", f"--gin.OUTPUT_DIR={model_dir}"]
    _command(command, out / f"{name}.log")
  else:
    _command(command, out / f"{name}.log")
    _command(["eval", f"--gin.MODEL_DIR={model_dir}", "--gin.SPLIT=test"], out / f"{name}.log")
  result = json.loads(next(model_dir.glob("eval_*_test.json")).read_text())
  metrics = dict(result["metrics"])
  if dataset == "e2e":
    metrics["bleu_all_references"] = multi_reference_bleu(
      next(model_dir.glob("predictions_*_test.jsonl")), folder / "e2e_references.json")
  record.write_text(json.dumps({
    "dataset": dataset, "method": method, "seed": seed, "metrics": metrics,
    "seconds": round(time.monotonic() - began, 1), "command": " ".join(command)}, indent=2) + "\n")
  print(f"{name}: {metrics}", flush=True)


def _command(arguments: list[str], log: pathlib.Path) -> None:
  with open(log, "a") as file:
    subprocess.run([sys.executable, "-m", "prompt_tuning", *arguments], check=True, stdout=file,
                   stderr=subprocess.STDOUT)


def multi_reference_bleu(predictions: pathlib.Path, references: pathlib.Path) -> float:
  """Corpus BLEU (sacrebleu, 13a) of one prediction an input against all its references."""
  import sacrebleu

  known = json.loads(references.read_text())
  rows = [json.loads(line) for line in predictions.read_text().splitlines()]
  texts = [known[row["input"].strip()] for row in rows]
  longest = max(map(len, texts))
  streams = [[t[i] if i < len(t) else None for t in texts] for i in range(longest)]
  return float(sacrebleu.corpus_bleu([row["prediction"] for row in rows], streams).score)


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
  methods = [FROZEN, *METHODS]
  print("| data set (metric) | " + " | ".join(methods) + " |")
  print("|---" * (len(methods) + 1) + "|")
  for dataset in (*OUTSIDE, *DOCSTRINGS):
    row = [_mean(values.get((dataset, method), ())) for method in methods]
    print(f"| {dataset} ({SHOWN.get(dataset, 'accuracy')}) | " + " | ".join(row) + " |")


def _mean(values) -> str:
  values = [value for value in values if value is not None]
  if not values:
    return "not run"
  spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.3f}{spread} ({len(values)})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("data", type=pathlib.Path, help="what outside_data.py wrote")
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--backbone", default="tiny")
  parser.add_argument("--only", help="part of a data set's name")
  parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell")
  parser.add_argument("--table", action="store_true", help="print what is there")
  options = parser.parse_args()
  if options.table:
    table(options.out)
    return
  index, count = map(int, options.shard.split("/"))
  chosen = [cell for cell in cells() if options.only is None or options.only in cell[0]]
  for cell in chosen[index::count]:
    run(*cell, options.data, options.out, options.backbone)


if __name__ == "__main__":
  main()
