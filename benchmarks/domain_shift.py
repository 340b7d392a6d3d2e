"""Does a prompt carry over to other data better than a tuned model (Lester et al. 2021, section 5)?

  python -m benchmarks.domain_shift runs/shift --shifts docstrings sst2 mr
  python -m benchmarks.domain_shift runs/shift --table

Each cell trains on a shift's source (`gin_configs/papers/shift_NAME.gin`) and evaluates once on the
source's own held-out rows and on the other data; the best step is chosen on the first 256 rows of
the source's validation split (SST-2 has no other labelled rows: its own number is optimistic).
Defaults are what a laptop bears, on the shipped model; with `--flags` the same cells run on a real
T5. Finished cells are not repeated.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax

from benchmarks.shipped_model import command, flags, is_finished, lines_of, mean_and_deviation
from prompt_tuning import host_memory


@dataclasses.dataclass(frozen=True)
class Shift:
  """Attributes:
    metric: what the table shows.
    targets: (task, split)s that are evaluated; the first is the source itself.
    settings: of both commands on the shipped model.
    changes: task -> settings of its evaluation, where two data sets name their classes differently
      or are cut differently.
    file: of gin_configs/papers, where it is not `shift_<name>.gin`.
    flags: of training on the shipped model, besides.
    steps: of training on the shipped model, where 200 would take too long.
  """

  metric: str
  targets: tuple[tuple[str, str], ...]
  settings: dict = dataclasses.field(default_factory=dict)
  changes: dict = dataclasses.field(default_factory=dict)
  file: str | None = None
  flags: tuple[str, ...] = ()
  steps: int | None = None


MRQA = ("bioasq", "drop", "duorc", "race", "re", "textbookqa")
_PARAPHRASES = {"glue_mrpc": {"TASK_LABELS": None},
                "glue_qqp": {"TASK_LABELS": {"not_duplicate": "not_equivalent",
                                             "duplicate": "equivalent"}}}
# What fits the shipped model: half of an article's beginning, chosen by the loss.
_LONG = ("--gin.BATCH_SIZE=16", "--gin.evaluate.EvalSettings.method='loss'")
_SHORT = {"TASK_FEATURE_LENGTHS": {"inputs": 88, "targets": 4}}
SHIFTS = {
  "docstrings": Shift("accuracy",
                      (("docstring_kind_seen", "test"), ("docstring_kind_unseen", "test")),
                      {"TASK_FEATURE_LENGTHS": {"inputs": 96, "targets": 4}}),
  "sst2": Shift("accuracy", (("glue_sst2", "validation"), ("mr", "test")), _SHORT),
  "mr": Shift("accuracy", (("mr", "test"), ("glue_sst2", "validation")), _SHORT),
  "squad": Shift("f1", (("squad", "validation"),
                        *((f"mrqa_{name}", "validation") for name in MRQA))),
  "qqp": Shift("f1", (("glue_qqp", "validation"), ("glue_mrpc", "validation")),
               changes=_PARAPHRASES),
  "mrpc": Shift("f1", (("glue_mrpc", "validation"), ("glue_qqp", "validation")),
                changes=_PARAPHRASES),
  "webnlg": Shift("bleu", (("webnlg", "test_seen"), ("webnlg", "test_unseen"))),
  "xsum": Shift("rougeL", (("xsum", "test"), ("cnn_dailymail", "test"))),
  # Of the published sets, what fits into a repository's folder: 1,000 test rows of XSum, cut.
  "xsum_sample": Shift(
    "rougeL", (("xsum", "test"), ("cnn_dailymail", "test")),
    {"TASK_FEATURE_LENGTHS": {"inputs": 192, "targets": 40}, "TASK_SPLITS": {
      "train": "test[:800]", "validation": "test[800:900]", "test": "test[900:]"},
     "MAX_TRUNCATED_TARGETS": 1.0},
    {"cnn_dailymail": {"TASK_SPLITS": None}}, "shift_xsum", _LONG, 100),
  # Questions about new articles of Wikipedia, then about old ones (SQuAD's, by way of XQuAD).
  "new_wiki": Shift(
    "f1", (("squadshifts_new_wiki", "test"), ("xquad_en", "validation")),
    {"MIXTURE_OR_TASK_NAME": "squadshifts_new_wiki",
     "TASK_FEATURE_LENGTHS": {"inputs": 256, "targets": 24}, "TASK_SPLITS": {
       "train": "validation[:7000]", "validation": "validation[7000:7200]",
       "test": "validation[7200:7500]"}, "MAX_TRUNCATED_TARGETS": 1.0},
    {"xquad_en": {"TASK_SPLITS": {"validation": "validation[:300]"}}}, "shift_squad", _LONG, 100),
}
SEEDS = (0, 1, 2)
SMALL = ["--gin_file=models/tiny.gin", "--gin.SCAN_LAYERS=False"]
# All seeds of prompts in one run, each with the rows of its own order.
METHODS = {
  "prompt tuning": ["--gin_file=prompts/soft.gin", "--gin_file=runs/prompt_tune.gin",
                    "--gin_file=inits/sampled_vocab.gin", "--gin.PROMPT_LENGTH=20",
                    "--gin.LEARNING_RATE=0.1", f"--gin.N_PROMPTS={len(SEEDS)}",
                    "--gin.OWN_ROWS=True"],
  "model tuning": ["--gin_file=prompts/none.gin", "--gin_file=runs/model_tune.gin",
                   "--gin.LEARNING_RATE=0.01"],
}


def cells(names: list[str]) -> list[tuple[str, str, int | None]]:
  """(shift, method, seed); None stands for all seeds at once."""
  prompts = [(name, "prompt tuning", None) for name in names]
  return prompts + [(name, "model tuning", seed) for seed in SEEDS for name in names]


def run(name: str, method: str, seed: int | None, out: pathlib.Path, steps: int,
        extra: list[str]) -> None:
  """One cell: trains on the source, evaluates everywhere, writes a `.json` a seed."""
  folder = out / f"{name}_{method.split()[0]}_{'all' if seed is None else seed}"
  if (folder / "results.json").is_file():
    return
  out.mkdir(parents=True, exist_ok=True)
  began, log = time.process_time(), folder.with_suffix(".log")
  shift = SHIFTS[name]
  model = extra or SMALL
  settings = [f"--gin_file=papers/{shift.file or f'shift_{name}'}.gin"]
  if not extra:
    settings += [*flags(shift.settings), *shift.flags, "--gin.BEST_METRICS=None"]
    steps = shift.steps or steps
  command(["train", *model, *settings, *METHODS[method], f"--gin.MODEL_DIR={str(folder)!r}",
           f"--gin.RANDOM_SEED={seed or 0}", f"--gin.TRAIN_STEPS={steps}",
           f"--gin.EVAL_PERIOD={steps // 2}", "--gin.evaluate.EvalSettings.max_examples=256"], log)
  if not is_finished(folder):
    raise SystemExit(f"{folder.name} was told to stop; the same command goes on with it")
  trained = time.process_time() - began
  results = []
  for each in SEEDS if seed is None else (seed,):
    prompt = str(folder / f"members/{each}/prompt.npy")
    own = [f"--gin.PROMPT_FILE={prompt!r}"] if seed is None else []
    for task, split in shift.targets:
      place = folder / f"on_{task}_{split}_{each}"
      decoded = {"evaluate.EvalSettings.method": "auto"} if shift.flags else {}
      changes = decoded | shift.changes.get(task, {})
      command(["eval", f"--gin.MODEL_DIR={str(folder)!r}", *own, *flags(changes),
               f"--gin.SPLIT={split!r}",
               f"--gin.MIXTURE_OR_TASK_NAME={task!r}", f"--gin.OUTPUT_DIR={str(place)!r}"], log)
      metrics = json.loads(next(place.glob("eval_*.json")).read_text())["metrics"]
      results.append({"shift": name, "method": method, "seed": each, "task": task, "split": split,
                      "metrics": metrics, "majority": _majority(place)})
  (folder / "results.json").write_text(json.dumps({
    "results": results, "steps": steps, "train_cpu_seconds": round(trained, 1),
    "cpu_seconds": round(time.process_time() - began, 1)}, indent=2) + "\n")
  print(folder.name, [round(r["metrics"][shift.metric], 3) for r in results], flush=True)


def _majority(place: pathlib.Path) -> float | None:
  """Accuracy of the most frequent target."""
  lines = lines_of(next(place.glob("predictions_*.jsonl")))
  targets = [json.loads(line)["target"] for line in lines]
  return max(map(targets.count, set(targets))) / len(targets) if len(set(targets)) < 9 else None


def table(out: pathlib.Path, names: list[str]) -> str:
  """Mean and standard deviation over the seeds as Markdown; what was not run says so."""
  found: dict[tuple, dict[str, list[float]]] = {}
  majorities: dict[tuple, float | None] = {}
  for path in sorted(out.glob("*/results.json")):
    for row in json.loads(path.read_text())["results"]:
      key = (row["shift"], row["task"], row["split"])
      value = row["metrics"][SHIFTS[row["shift"]].metric]
      found.setdefault(key, {}).setdefault(row["method"], []).append(value)
      majorities[key] = row["majority"]
  lines = ["| trained on | evaluated on | metric | majority | " + " | ".join(METHODS) + " |",
           "|---|---|---|---|" + "---|" * len(METHODS)]
  for name in names:
    for task, split in SHIFTS[name].targets:
      key = (name, task, split)
      majority = majorities.get(key)
      lines.append(f"| {SHIFTS[name].targets[0][0]} | {task}, {split} | {SHIFTS[name].metric} | "
                   f"{'' if majority is None else f'{majority:.3f}'} | "
                   + " | ".join(mean_and_deviation(found.get(key, {}).get(method, []))
                                for method in METHODS) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--shifts", nargs="+", default=["docstrings", "sst2", "mr"], choices=SHIFTS)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[],
                      help="of another model, such as --gin_file=models/t5_1_1_base.gin ...; last")
  parser.add_argument("--table", action="store_true", help="print what is there")
  options = parser.parse_args()
  if options.table:
    print(table(options.out, options.shifts))
    return
  host_memory.keep_freed_memory()
  for cell in cells(options.shifts):
    run(*cell, options.out, options.steps, options.flags)
    jax.clear_caches()


if __name__ == "__main__":
  main()
