"""Layers, sizes, and what may be imported where (docs/architecture.md), read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file imports only from rows above its own; a folder stands for every file in it.
ROWS = (
  ("0", "prompt_tuning", "gin_configs", "errors"),
  ("0", "gin_files"),
  ("0", "gin_names"),
  ("0", "interfaces", "trees", "config"),
  ("1a", "cluster"),
  ("1a", "hosts"),
  ("1a", "disk", "host_memory", "layouts", "checkpoints.leaves"),
  ("1a", "checkpoints.hub", "checkpoints.npy_files", "checkpoints.pickled",
   "checkpoints.method_files"),
  ("1a", "checkpoints.npz_files", "checkpoints.peft"),
  ("1a", "checkpoints.prompt_files", "checkpoints.run_prompts"),
  ("1a", "constraints"),
  ("1a", "partitioning", "quantization", "losses", "decoding", "prompts.initializers"),
  ("1a", "prompts.method", "prompts.projections"),
  ("1b", "layers"),
  ("2", "prompts.soft"),
  ("2", "prompts.tables"),
  ("2", "t5", "prompts"),
  ("3", "prompted"),
  ("4a", "tasks"),
  ("4b", "optimizers", "token_cache", "prefetch", "placement"),
  ("4b", "train_state", "converter"),
  ("4b", "checkpoints.architecture", "checkpoints.safetensors_file", "checkpoints.stacking",
   "checkpoints.leaf_table", "checkpoints.storage", "checkpoints.zstandard_frames"),
  ("4b", "checkpoints.zarr_arrays", "checkpoints.t5x_names"),
  ("4b", "checkpoints.flax_msgpack", "checkpoints.hf_names"),
  ("4b", "checkpoints.hf_files"),
  ("4b", "checkpoints.hf_export"),
  ("4b", "checkpoints.hf", "checkpoints.mesh_tf"),
  ("4b", "checkpoints", "packing"),
  ("4b", "checkpoints.formats"),
  ("4b", "checkpoints.loading"),
  ("4b", "sources"),
  ("4b", "batches"),
  ("4b", "data"),
  ("4b", "run_config", "members", "distillation"),
  ("4b", "task_setup"),
  ("5a", "plots", "progress", "scoring", "generation", "steering", "ensembles", "examples",
   "native_logs", "info", "task_listing", "trained_model", "convert", "seqio_metrics"),
  ("5a", "run_dir", "evaluate", "prompt_bank", "convert_report", "merge"),
  ("5a", "attribute_model", "serving"),
  ("5a", "control"),
  ("5a", "infer", "mixed_eval"),
  ("5a", "eval_run"),
  ("5a", "eval_mixture"),
  ("5a", "labelled_rows", "cells", "prompt_figures", "discrete.templates", "discrete.words",
   "discrete.search", "discrete.contexts", "discrete"),
  ("5a", "discrete.design", "discrete.autoprompt_config", "recovery"),
  ("5a", "discrete.autoprompt"),
  ("5a", "discrete.commands", "recovery_command"),
  ("5b", "selection", "train_config"),
  ("5b", "train_loop"),
  ("5b", "member_run"),
  ("5b", "train"),
  ("5c", "plan.gpu_targets", "plan.hlo", "plan.theory"),
  ("5c", "plan", "plan.topologies"),
  ("5c", "plan.program"),
  ("5c", "plan.row"),
  ("5c", "plan.search"),
  ("5c", "plan.report"),
  ("5c", "plan.command"),
  ("5c", "t5x_bridge"),
  ("5c", "t5x_bridge.names", "t5x_bridge.command"),
  ("5c", "t5x_bridge.module"),
  ("5c", "t5x_bridge.checkpoint", "t5x_bridge.datasets"),
  ("5c", "t5x_bridge.model", "t5x_bridge.optimizer"),
  ("6", "transfer"),
  ("6", "prompt_measures", "prompt_reading"),
  ("6", "inspection", "run_report", "prompts_report", "experiments.grid",
   "experiments.published"),
  ("6", "experiments.results"),
  ("6", "experiments.series", "experiments.runner", "experiments.status"),
  ("6", "experiments.plots"),
  ("6", "experiments.sweep"),
  ("6", "experiments.command"),
  ("6", "experiments"),
  ("6", "demo"),
  ("7", "macro_help", "run_settings"),
  ("7", "command_line"),
  ("7", "commands"),
  ("7", "main"),
  ("7", "__main__"),
)
LAYER_0 = {name for layer, *names in ROWS if layer == "0" for name in names}
# Layers 0 to 3 and the train step.
WITHOUT_TENSORFLOW = [name for layer, *names in ROWS if layer in ("0", "1a", "1b", "2", "3")
                      for name in names] + ["optimizers", "train_state", "prompts.soft"]
TENSORFLOW_FILES = {"data", "evaluate", "checkpoints.mesh_tf", "t5x_bridge.datasets"}


def module_name(path):
  """`prompt_tuning/prompts/soft.py` -> `prompts.soft`; `tasks/spec.py` -> `tasks.spec`."""
  parts = list(path.relative_to(ROOT).with_suffix("").parts)
  parts = parts[:-1] if parts[-1] == "__init__" else parts
  return ".".join(parts[1:] if parts[0] == "prompt_tuning" and len(parts) > 1 else parts)


SOURCES = {module_name(path): path for folder in ("prompt_tuning", "tasks", "gin_configs")
           for path in sorted((ROOT / folder).rglob("*.py"))}
ALL_FILES = [path for folder in ("prompt_tuning", "tasks", "gin_configs", "tests", "benchmarks",
                                 "tpu_scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


def row_of(name):
  """The row that lists the file, or the closest folder around it; None: it is listed nowhere."""
  while name:
    for row, (_, *names) in enumerate(ROWS):
      if name in names:
        return row
    name = name.rpartition(".")[0]
  return None


def test_the_document_names_every_file():
  document = (ROOT / "docs/architecture.md").read_text()
  missing = [path.stem for path in (ROOT / "prompt_tuning").glob("*.py")
             if not path.stem.startswith("__") and f"`{path.stem}`" not in document]
  folders = [path.name for path in (ROOT / "prompt_tuning").iterdir()
             if (path / "__init__.py").is_file() and f"`{path.name}/" not in document]
  assert missing == folders == []


def imported(source):
  """Absolute names of what a source imports, anywhere in it."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def own_modules(source):
  """The files of this package that a source imports, as `module_name` spells them."""
  for name in imported(source):
    assert not name.startswith("."), f"relative import {name}: spell it prompt_tuning..."
    if name.split(".")[0] == "prompt_tuning":
      rest = name.partition(".")[2]
      while rest and rest not in SOURCES:
        rest = rest.rpartition(".")[0]
      yield rest or "prompt_tuning"


def violations(name, source):
  """Why a file of that name may not have that source: one line each."""
  found = []
  row = row_of(name)
  for other in own_modules(source):
    if name.split(".")[0] == "tasks":
      if other.split(".")[0] != "tasks" and other not in LAYER_0:
        found.append(f"tasks may import only layer 0, and {name} imports {other}")
    elif {name.split(".")[0], other.split(".")[0]} == {"t5", "prompts"}:
      found.append(f"t5 and prompts never import each other, and {name} imports {other}")
    elif row_of(other) is None or row_of(other) >= row:
      found.append(f"{name} (layer {ROWS[row][0]}) may not import {other}")
  roots = {imported_name.split(".")[0] for imported_name in imported(source)}
  if name.split(".")[0] != "tasks" and name not in TENSORFLOW_FILES:
    found += [f"{name} may not import {root}"
              for root in roots & {"tensorflow", "tensorflow_text", "seqio", "clu"}]
  if name != "config" and "gin" in roots:
    found.append(f"{name} may not import gin: config.py is its only user")
  if not name.startswith("checkpoints.") and roots & {"torch", "transformers"}:
    found.append(f"{name} may not import torch or transformers")
  return found


@pytest.mark.parametrize("name", SOURCES)
def test_layers(name):
  assert row_of(name) is not None, f"give {name} a row in ROWS, and in docs/architecture.md"
  assert violations(name, SOURCES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name, source", [
  ("t5", "from prompt_tuning.prompts import soft"), ("prompts.lora", "import prompt_tuning.t5"),
  ("losses", "def f():\n  from prompt_tuning import train_state"), ("t5", "import seqio.utils"),
  ("tasks.spec", "from prompt_tuning.losses import cross_entropy"), ("trees", "import gin"),
  ("train_state", "from tensorflow import data"), ("converter", "import prompt_tuning.batches")])
def test_the_layer_test_sees_violations(name, source):
  assert violations(name, source)


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_size(path):
  lines = path.read_text(encoding="utf-8").splitlines()
  assert len(lines) <= 500, f"{len(lines)} lines: split the file"
  long = [number for number, line in enumerate(lines, start=1) if len(line) > 100]
  assert not long, f"lines of more than 100 columns: {long}"
  assert path.stem not in ("utils", "common", "helpers"), "name the file after its one job"


def run(code):
  return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_layers_0_to_3_and_the_train_step_do_not_import_tensorflow():
  names = [name if name == "prompt_tuning" else f"prompt_tuning.{name}"
           for name in WITHOUT_TENSORFLOW]
  done = run(f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
             "print(sorted({'tensorflow', 'seqio', 'clu'} & set(sys.modules)))")
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "[]"


def test_help_needs_no_jax():
  """What makes it quick: docs/performance.md has the time."""
  done = run("import runpy, sys\nsys.argv = ['prompt-tuning', '--help']\n"
             "try:\n  runpy.run_module('prompt_tuning', run_name='__main__')\n"
             "except SystemExit as stop:\n  assert not stop.code\n"
             "print(sorted({'jax', 'tensorflow', 'flax'} & set(sys.modules)))")
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().endswith("[]")
