"""Controlled generation over the strength: attribute, perplexity, distinct-n (docs/control.md).

  python -m benchmarks.control_study runs/control_study
  python -m benchmarks.control_study runs/control_study --figure docs/control

Trains three prompts on docstrings (`control_text.py`): of both classes, of the wanted one, of the
other; fits an attribute model on the first; then continues the starts of test docstrings of the
OTHER class. Everything is sampled, row by row with the same random numbers at every strength.

  attribute prompt  `Experts` without an anti-expert: strength 1 is the wanted class's prompt alone
  experts           wanted minus other
  discriminator, pplm   with the attribute model

The share of the wanted class is by a judge that was fitted on other modules; perplexity is that of
the frozen model without any prompt, of what was written given its start. Finished trainings are
not repeated. The second form draws the figure from the CSV.
"""

import argparse
import csv
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import control_text, shipped_model
from benchmarks.control_text import OTHER, WANTED
from prompt_tuning import config, control, host_memory, prompt_bank
from prompt_tuning.generation import Decoding
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.serving import Row, Server

SEEDS = (0, 1, 2)
STRENGTHS = (0.0, 1.0, 4.0, 0.5, 2.0, 0.25)
LENGTHS = {"inputs": 32, "targets": 56}
WRITTEN = 32
STEPS = 120
DECODING = Decoding(strategy="sample", top_p=0.9, min_length=WRITTEN)
COLUMNS = ("control", "strength", "seed", "attribute", "perplexity", "distinct_1", "distinct_2",
           "distinct_3", "changed", "seconds")
SHOWN = ("attribute", "perplexity", "distinct_1", "distinct_2", "distinct_3")


def train(folder: pathlib.Path) -> None:
  """The prompts and the attribute model, by the commands."""
  control_text.write(folder / "data")
  for name in ("all", WANTED, OTHER):
    if shipped_model.is_finished(folder / name):
      continue
    shipped_model.command([
      "train", "--gin_file=models/tiny.gin", "--gin_file=prompts/soft.gin",
      "--gin_file=inits/sampled_vocab.gin", "--gin_file=runs/prompt_tune.gin",
      *_data(folder, name, "{start}", "{rest}", LENGTHS), *shipped_model.flags({
        "PROMPT_LENGTH": 20, "LEARNING_RATE": 0.1, "TRAIN_STEPS": STEPS, "EVAL_PERIOD": STEPS // 2,
        "BATCH_SIZE": 16, "evaluate.EvalSettings.method": "loss", "SCAN_LAYERS": False,
        "MAX_TRUNCATED_TARGETS": 0.5, "MAX_TRUNCATED_INPUTS": 0.2,
        "evaluate.EvalSettings.max_examples": 64, "MODEL_DIR": str(folder / name)})],
      folder / f"{name}.log")
  if not (folder / "attribute.npz").is_file():
    shipped_model.command([
      "attribute", f"--gin_file={folder / 'all' / 'config.gin'}",
      *_data(folder, "all", "{start} {rest}", "{kind}",
             {"inputs": LENGTHS["inputs"] + LENGTHS["targets"], "targets": 4}),
      *shipped_model.flags({
        "LABELS": [WANTED, OTHER], "CONTEXT_TOKENS": 14, "MAX_EXAMPLES": 1200,
        "MAX_TRUNCATED_INPUTS": 0.5, "MODEL_DIR": str(folder / "all"),
        "OUTPUT_FILE": str(folder / "attribute.npz")})], folder / "attribute.log")


def _data(folder: pathlib.Path, name: str, inputs: str, targets: str,
          lengths: dict[str, int]) -> list[str]:
  files = {f"{split.upper()}_FILE": str(folder / "data" / f"{name}_{split}.tsv")
           for split in ("train", "validation")}
  return ["--gin_file=runs/your_data.gin", *shipped_model.flags(
    {**files, "INPUTS": inputs, "TARGETS": targets, "TASK_FEATURE_LENGTHS": lengths})]


def controls(folder: pathlib.Path, strength: float) -> dict[str, tuple[Any, tuple[str, ...]]]:
  """Name -> the steering, as `infer` makes it, and the prompts that it reads."""
  attribute = {"attribute_model": str(folder / "attribute.npz"), "attribute": WANTED,
               "strength": strength}
  wanted, other = str(folder / WANTED), str(folder / OTHER)
  return {
    "attribute prompt": (control.Experts(expert=wanted, strength=strength), ("all", WANTED)),
    "experts": (control.Experts(expert=wanted, anti_expert=other, strength=strength),
                ("all", WANTED, OTHER)),
    "discriminator": (control.Discriminator(**attribute, candidates=10), ("all",)),
    "pplm": (control.Gradients(**attribute), ("all",))}


class Writer:
  """Continues the starts, and reads continuations for their perplexity."""

  def __init__(self, folder: pathlib.Path, count: int):
    config.load(["commands/model.gin", "models/tiny.gin", "prompts/none.gin"],
                ["SCAN_LAYERS = False"])
    model = config.build(ModelConfig)
    bank = prompt_bank.read_bank(model, [
      *((name, str(folder / name / "prompt.npy")) for name in ("all", WANTED, OTHER)),
      ("plain", prompt_bank.NO_PROMPT)])
    self._tokenizer = model.tokenizer()
    self._prompts = {name: place for name, (place,) in bank.tasks.items()}
    self._inputs = [np.array([*self._tokenizer.encode(start), self._tokenizer.eos_id], np.int32)
                    for start in control_text.starts(count)]
    self._server = Server(bank=bank, params=bank.load(0), batch_size=count * 3,
                          lengths={**LENGTHS, "targets": WRITTEN}, decoding=DECODING,
                          limits=DECODING.limits(self._tokenizer, WRITTEN))

  def write(self, steering: Any, prompts: Sequence[str], seed: int) -> np.ndarray:
    """`[starts, WRITTEN]` ids."""
    server = dataclasses.replace(self._server, steering=steering, seed=seed)
    read = tuple(self._prompts[name][1] for name in prompts)
    return np.stack(list(server([Row(ids, 0, read) for ids in self._inputs])))

  def measure(self, written: np.ndarray, judge: control_text.Judge) -> dict[str, float]:
    texts = [self._tokenizer.decode(ids.tolist()) for ids in written]
    _, plain = self._prompts["plain"]
    scores = np.stack(list(self._server([Row(start, 0, (plain,), ids[None])
                                         for start, ids in zip(self._inputs, written,
                                                               strict=True)])))
    return {"attribute": float(judge(texts).mean()),
            "perplexity": float(np.exp(-scores.sum() / (written != 0).sum())),
            **{f"distinct_{n}": control_text.distinct(texts, n) for n in (1, 2, 3)}}

  def text(self, ids: np.ndarray) -> str:
    return self._tokenizer.decode(ids.tolist())


def study(folder: pathlib.Path, count: int) -> None:
  """Writes `control.csv` a row at a time and, of the first starts, `texts.tsv`.

  Rows that are there are kept: they belong to the same `count`.
  """
  train(folder)
  judge, writer = control_text.judge(), Writer(folder, count)
  print(f"judge: {judge.accuracy:.3f} of the validation rows right", flush=True)
  target = folder / "control.csv"
  if not target.is_file():
    target.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
  with target.open(encoding="utf-8", newline="") as file:
    done = {(row["control"], float(row["strength"]), int(row["seed"]))
            for row in csv.DictReader(file)}
  # Seeds outermost: a study that is stopped has fewer of them, and all controls.
  for seed in SEEDS:
    plain = writer.write(None, ("all",), seed)
    for strength in STRENGTHS:
      for name, (settings, prompts) in controls(folder, strength or 1.0).items():
        if (name, strength, seed) in done:
          continue
        # At 0 `infer` steers nothing; here even the compiled steering is run, with a 0 in it.
        steering = dataclasses.replace(settings.steering(), strength=jnp.float32(strength))
        began = time.perf_counter()
        ids = writer.write(steering, prompts, seed)
        row = {"control": name, "strength": strength, "seed": seed,
               "seconds": round(time.perf_counter() - began, 2), **writer.measure(ids, judge),
               "changed": float((ids != plain).any(axis=1).mean())}
        with target.open("a", newline="", encoding="utf-8") as file:
          csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        with (folder / "texts.tsv").open("a", encoding="utf-8") as file:
          file.writelines(f"{name}\t{strength}\t{seed}\t{' '.join(writer.text(x).split())}\n"
                          for x in ids[:5])
        print(row, flush=True)


def table(rows: Sequence[dict[str, str]]) -> dict[tuple[str, float], dict[str, list[float]]]:
  """(control, strength) -> column -> its values over the seeds."""
  found: dict[tuple[str, float], dict[str, list[float]]] = {}
  for row in rows:
    cell = found.setdefault((row["control"], float(row["strength"])), {})
    for name in (*SHOWN, "changed"):
      cell.setdefault(name, []).append(float(row[name]))
  return dict(sorted(found.items()))


def _deviation(values: Sequence[float]) -> float:
  return statistics.stdev(values) if len(values) > 1 else 0.0


def show(cells: dict[tuple[str, float], dict[str, list[float]]]) -> None:
  print("| control | strength | " + " | ".join(name.replace("_", "-") for name in SHOWN) + " |")
  print("|---" * (len(SHOWN) + 2) + "|")
  for (name, strength), cell in cells.items():
    values = [f"{statistics.fmean(cell[x]):.2f} ± {_deviation(cell[x]):.2f}" for x in SHOWN]
    print(f"| {name} | {strength:g} | " + " | ".join(values) + " |")


def draw(cells: dict[tuple[str, float], dict[str, list[float]]], path: pathlib.Path) -> None:
  """Attribute against perplexity along the strength; attribute and distinct-2 over the strength."""
  from matplotlib import pyplot as plt

  from prompt_tuning.plots import save
  figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
  names = list(dict.fromkeys(name for name, _ in cells))
  for name, marker in zip(names, "osD^", strict=True):
    own = {strength: {x: statistics.fmean(values) for x, values in cell.items()}
           for (owner, strength), cell in cells.items() if owner == name}
    strengths = [str(f"{x:g}") for x in own]
    style = {"marker": marker, "markersize": 4, "label": name}
    axes[0].plot([x["perplexity"] for x in own.values()],
                 [x["attribute"] for x in own.values()], **style)
    axes[1].plot(strengths, [x["attribute"] for x in own.values()], **style)
    axes[2].plot(strengths, [x["distinct_2"] for x in own.values()], **style)
  axes[0].set_xscale("log")
  for axis, x, y in zip(axes, ("perplexity (log scale)", "strength", "strength"),
                        ("share of the wanted class", "share of the wanted class", "distinct-2"),
                        strict=True):
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
  axes[1].legend(frameon=False, fontsize=8)
  save(figure, path)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--starts", type=int, default=32)
  parser.add_argument("--figure", type=pathlib.Path, metavar="FOLDER",
                      help="only show the table, and draw `control.png` there beside the CSV")
  options = parser.parse_args()
  if options.figure is None:
    host_memory.keep_freed_memory()
    study(options.folder, options.starts)
    return
  source = options.folder / "control.csv"
  with source.open(encoding="utf-8", newline="") as file:
    cells = table(list(csv.DictReader(file)))
  show(cells)
  options.figure.mkdir(parents=True, exist_ok=True)
  target = options.figure / "control.csv"
  if target.resolve() != source.resolve():
    target.write_bytes(source.read_bytes())
  draw(cells, options.figure / "control.png")


if __name__ == "__main__":
  main()
