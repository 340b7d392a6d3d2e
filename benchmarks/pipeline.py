"""How fast batches are made on one core, by kind of task, and how fast train steps take them.

  python -m benchmarks.pipeline DATA_DIR
  python -m benchmarks.pipeline DATA_DIR --kinds span_corruption --json pipeline.json

Batches come from `train_loop.train_data`, as `prompt-tuning train` has them. Of each kind

  files   real tokens a second from the files to token caches: reading, casting, tokenising. A
          finite task does so once; one that draws noise (`*`) does so anew in each epoch
  batches real tokens a second from token caches to arrays: order, trimming, padding or packing

Seconds are of processor time, of all threads together: so of one core, whatever else the machine
does. A step's tokens are its positions, as if none was padding: its need is not underrated.
"""

import argparse
import gzip
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.shapes import Shapes, theory_flop
from prompt_tuning import config as gin_config
from prompt_tuning import trees
from prompt_tuning.discrete import contexts
from prompt_tuning.host_memory import keep_freed_memory, return_unused_memory
from prompt_tuning.prompted import abstract_params, add_virtual_tokens
from prompt_tuning.task_setup import set_up
from prompt_tuning.train_config import TrainConfig
from prompt_tuning.train_loop import train_data
from prompt_tuning.train_state import make_train_step, new_state

TINY = "models/tiny.gin"
PROMPT = ("prompts/soft.gin", "runs/prompt_tune.gin")
BATCH = 32
TSV_ROWS = 10_000
SHOTS = 8
# T5 1.1 XXL, the prompt step of Lester et al. 2021: 512 tokens in, 100 vectors; SuperGLUE's labels.
XXL = Shapes(rows=32, inputs=512, prompt=100, targets=16, width=4096, heads=64, head_width=64,
             mlp=10240, layers=24)
CHIPS, CHIP_FLOPS, UTILISATION = 8, 197e12, 0.4


def settings(data: pathlib.Path, work: pathlib.Path) -> dict[str, tuple[tuple[str, ...], dict]]:
  """Kind -> gin files and macros."""
  sst2 = work / "sst2.tsv"
  if not sst2.exists():
    with gzip.open(data / "glue/SST-2/train.tsv.gz", "rt", encoding="utf-8") as file:
      sst2.write_text("".join(line for line, _ in zip(file, range(TSV_ROWS + 1), strict=False)))

  def task(name: str, inputs: int, targets: int, **macros: Any) -> tuple[tuple[str, ...], dict]:
    return PROMPT, {"MIXTURE_OR_TASK_NAME": name, **_lengths(inputs, targets), **macros}

  corpus = {"CORPUS": [str(data / "corpus/openstax_ccby_valid.txt.gz"),
                       str(data / "corpus/english_novels_pd_valid.txt.gz")],
            "VALIDATION_CORPUS": [str(data / "corpus/openstax_ccby_valid.txt.gz")],
            "run_config.TaskConfig.pack": True}
  return {
    "tsv": ((*PROMPT, "runs/your_data.gin"), {
      "TRAIN_FILE": str(sst2), "VALIDATION_FILE": str(sst2), "INPUTS": "{sentence}",
      "TARGETS": "{label}", "LABELS": ["0", "1"], **_lengths(88, 4)}),
    "glue": task("glue_rte", 256, 8),
    "super_glue": task("super_glue_wic", 128, 4),
    "table_to_text": task("e2e", 128, 96),
    "qa_windows": task("squadshifts_new_wiki", 256, 24, QA_WINDOW=100, QA_STRIDE=50,
                       TASK_SPLITS={"train": "validation[:2000]"}),
    "summaries": task("xsum", 512, 64, TASK_SPLITS={"train": "test"}),
    "mixture": ((*PROMPT, "runs/mixture.gin"), {
      "MIXTURE_TASKS": ["glue_rte", "glue_cola", "super_glue_wic"], **_lengths(256, 8)}),
    "span_corruption": (("runs/pretrain.gin", "prompts/none.gin"), {
      **corpus, "RATES": {"span_corruption": 1.0}, "OBJECTIVES": {}}),
    "lm_adaptation": (("runs/lm_adapt.gin", "prompts/none.gin"), {
      **corpus, "RATES": {"prefix_lm": 1.0}, "OBJECTIVES": {},
      "INITIAL_CHECKPOINT_PATH": "tiny"}),
  }


def _lengths(inputs: int, targets: int) -> dict[str, Any]:
  return {"TASK_FEATURE_LENGTHS": {"inputs": inputs, "targets": targets}}


def build(model: str, files: Sequence[str], macros: dict, work: pathlib.Path,
          bindings: Sequence[str] = ()) -> TrainConfig:
  """A run's configuration.

  Args:
    macros: name -> value.  bindings: further ones, as gin writes them.
  """
  everything = {"MODEL_DIR": str(work / "run"), "BATCH_SIZE": BATCH, "MAX_TRUNCATED_INPUTS": 1.0,
                "MAX_TRUNCATED_TARGETS": 1.0,
                "run_config.TaskConfig.cache_dir": str(work / "tokens")} | macros
  gin_config.clear()
  gin_config.load(["commands/train.gin", model, *files],
                  [*bindings, *(f"{name} = {value!r}" for name, value in everything.items())])
  return gin_config.build(TrainConfig)


def measure(name: str, settings_of: tuple[tuple[str, ...], dict], work: pathlib.Path,
            seconds: float, vocabulary: str, data_dir: str) -> dict[str, Any]:
  """One kind of pipeline.

  Args:
    seconds: of processor time for the batches, at least.
  """
  files, macros = settings_of
  shutil.rmtree(work / "tokens", ignore_errors=True)
  place = {} if "CORPUS" in macros else {"DATA_DIR": data_dir}
  config = build(TINY, files, macros | place | {
    "VOCABULARY": vocabulary, "interfaces.T5Config.vocab_size": 32128}, work)
  setup = set_up(config.task, config.model.vocabulary)
  train_data(config, setup, 0)  # Vocabulary, archives and TensorFlow's graphs are loaded once.
  shutil.rmtree(work / "tokens")
  began = time.process_time()
  data = train_data(config, setup, 0)
  from_files = time.process_time() - began
  caches = data.caches.values()
  tokens = sum(int(cache.lengths(feature).sum()) for cache in caches
               for feature in ("inputs", "targets"))
  data.at(0)  # Packing lays out an epoch when it is first asked for.
  # A new epoch of noise is made from the files anew: that is the other column.
  within = max(data.steps_per_epoch // 8, 1) if setup.stochastic else None
  began, steps, real, places = time.process_time(), 0, 0, 0
  while time.process_time() - began < seconds:
    batch = data.at(steps % within if within else steps)
    real += int((batch["encoder_input_tokens"] > 0).sum() + (batch["decoder_target_tokens"]
                                                             > 0).sum())
    places += batch["encoder_input_tokens"].size + batch["decoder_target_tokens"].size
    steps += 1
  took = time.process_time() - began
  result = {"task": config.task.name, "lengths": dict(config.task.feature_lengths),
            "stochastic": bool(setup.stochastic), "rows": data.examples_per_epoch,
            "files_tokens_per_s": tokens / from_files, "batch_tokens_per_s": real / took,
            "real_share": real / places, "batches_per_s": steps / took}
  if name == "glue":
    result["few_shot"] = few_shot(data, seconds)
  return result


def few_shot(data: Any, seconds: float) -> dict[str, Any]:
  """SHOTS nearest solved examples ahead of each question, as `prompt-tuning design` joins them."""
  (cache,) = data.caches.values()
  ids = [cache.ids("inputs", row) for row in range(1000)]
  solved = [np.concatenate([each[:-1], cache.ids("targets", row)])
            for row, each in enumerate(ids)]
  vectors = np.random.default_rng(0).normal(size=(len(ids), 256))
  began, real, done = time.process_time(), 0, 0
  while time.process_time() - began < seconds:
    chosen = contexts.nearest(vectors[done % 1000:][:32], vectors, SHOTS)
    for i, rows in enumerate(chosen):
      real += len(contexts.fit([solved[row] for row in rows], rows, ids[done % 1000 + i][:-1], 1,
                               1024).ids)
    done = (done + 32) % 992
  return {"tokens_per_s": real / (time.process_time() - began)}


def prepared(config: TrainConfig) -> tuple[Any, Any, Any, dict[str, Any]]:
  """A run's compiled step, its state, frozen weights, and rows without padding."""
  module = config.model.module()
  split = trees.plan_split(abstract_params(module), config.trainable)
  backbone = config.model.load_backbone(0, split)
  params = {"backbone": backbone, "prompt": config.model.start_prompt(backbone, 0)}
  trainable, frozen = split.split(params)
  transformation = config.optimizer.build(trainable)
  state = new_state(trainable, transformation)
  lengths, rows = config.task.feature_lengths, config.batch_size
  random = np.random.default_rng(0)
  inputs, targets = (random.integers(3, 4000, (rows, lengths[name])).astype(np.int32)
                     for name in ("inputs", "targets"))
  batch = jax.device_put({
    "encoder_input_tokens": add_virtual_tokens(inputs, module.num_virtual_tokens),
    "decoder_target_tokens": targets,
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_loss_weights": np.ones(targets.shape, np.float32)})
  function = make_train_step(module, split, config.optimizer, transformation, config.loss, 0)
  compiled = jax.jit(function, donate_argnums=0).lower(state, frozen, batch).compile()
  return compiled, state, frozen, batch


def step(model: str, macros: dict, work: pathlib.Path, repeats: int) -> dict[str, Any]:
  """The prompt step of a model on rows without padding; processor and wall seconds of a step."""
  config = build(model, PROMPT, macros | {"SCAN_LAYERS": False, "DTYPE": "float32"}, work)
  compiled, state, frozen, batch = prepared(config)
  return_unused_memory()
  found = []
  for _ in range(repeats + 1):
    began = time.process_time(), time.perf_counter()
    state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready((state, metrics))
    found.append((time.process_time() - began[0], time.perf_counter() - began[1]))
  cpu, wall = np.median(found[1:], axis=0).tolist()
  rows, lengths = config.batch_size, config.task.feature_lengths
  tokens = rows * sum(lengths.values())
  virtual = batch["encoder_input_tokens"].shape[1] - lengths["inputs"]
  return {"rows": rows, "lengths": dict(lengths), "prompt": virtual,
          "cpu_s": cpu, "wall_s": wall, "tokens_per_core_s": tokens / cpu,
          "tokens_per_s": tokens / wall}


def xxl() -> dict[str, Any]:
  """What T5 1.1 XXL's prompt step takes on v5e-8, by `shapes.theory_flop`."""
  flop = theory_flop(XXL, "prompt_step")
  seconds = flop / (CHIPS * CHIP_FLOPS * UTILISATION)
  return {"theory_tflop": flop / 1e12, "step_s": seconds,
          "tokens_per_s": XXL.rows * (XXL.inputs + XXL.targets) / seconds}


def table(found: dict[str, Any]) -> str:
  """Markdown: pipelines, then what takes their tokens."""
  lines = ["| kind | task, lengths | files | batches | of the places, real |",
           "|---|---|---|---|---|"]
  for name, row in found["pipelines"].items():
    lengths = " + ".join(map(str, row["lengths"].values()))
    mark = "*" if row["stochastic"] else ""
    lines.append(f"| {name}{mark} | {row['task']}, {lengths} | {row['files_tokens_per_s']:,.0f} | "
                 f"{row['batch_tokens_per_s']:,.0f} | {row['real_share']:.2f} |")
    if "few_shot" in row:
      lines.append(f"| few_shot | {row['task']}, {SHOTS} examples in 1,024 | | "
                   f"{row['few_shot']['tokens_per_s']:,.0f} | |")
  lines += ["", "| step | rows, prompt + inputs + targets | tokens/s of a core | wall, all cores |",
            "|---|---|---|---|"]
  for name, row in found["steps"].items():
    lengths = " + ".join(map(str, (row["prompt"], *row["lengths"].values())))
    lines.append(f"| {name} | {row['rows']}, {lengths} | {row['tokens_per_core_s']:,.0f} | "
                 f"{row['tokens_per_s']:,.0f} |")
  big = found["xxl"]
  lines.append(f"| T5 1.1 XXL on v5e-8, calculated | {XXL.rows}, {XXL.prompt} + {XXL.inputs} + "
               f"{XXL.targets} | | {big['tokens_per_s']:,.0f} |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("data", type=pathlib.Path, help="DATA_DIR")
  parser.add_argument("--kinds", nargs="*", help="only these; none: the steps alone")
  parser.add_argument("--seconds", type=float, default=3.0, help="of batches, a kind")
  parser.add_argument("--repeats", type=int, default=5, help="of steps; 0: no steps")
  parser.add_argument("--vocabulary", default="tiny", help="or a SentencePiece file, T5's say")
  parser.add_argument("--json", type=pathlib.Path)
  options = parser.parse_args()
  keep_freed_memory()
  with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    kinds = settings(options.data, work)
    chosen = kinds if options.kinds is None else {name: kinds[name] for name in options.kinds}
    found: dict[str, Any] = {"vocabulary": options.vocabulary, "pipelines": {
      name: measure(name, kind, work, options.seconds, options.vocabulary, str(options.data))
      for name, kind in chosen.items()}}
    base = {"MIXTURE_OR_TASK_NAME": "glue_rte"}
    found["steps"] = {} if not options.repeats else {
      "the shipped model": step(TINY, base | _lengths(96, 4) | {"PROMPT_LENGTH": 20}, work,
                                options.repeats),
      "T5 1.1 small": step("models/t5_1_1_small.gin", base | _lengths(256, 16) | {
        "PROMPT_LENGTH": 100, "BATCH_SIZE": 8, "VOCABULARY": "bytes",
        "INITIAL_CHECKPOINT_PATH": "random"}, work, options.repeats)}
    found["xxl"] = xxl()
  print(table(found))
  if options.json:
    options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
