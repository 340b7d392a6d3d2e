"""Every gin file of t5x/ against the classes of ours that it fills.

T5X's own classes are left to the tests that run T5X.
"""

import ast
import importlib
import inspect
import pathlib

import pytest

from prompt_tuning import config, gin_files

ROOT = pathlib.Path(__file__).parents[2]
PATHS = [path for path in gin_files.shipped_paths() if "t5x" in path.parts]
SOURCES = {path.relative_to(gin_files.shipped_folder()).as_posix(): config.read(path)
           for path in PATHS}
# What T5X's own run files set, and the user must.
OF_T5X = {"MODEL_DIR", "MIXTURE_OR_TASK_NAME", "MIXTURE_OR_TASK_MODULE", "TRAIN_STEPS",
          "INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH", "TASK_FEATURE_LENGTHS", "EVAL_STEPS"}
# Files of these that a command line names besides.
OTHERS = ("models/t5_1_1_base.gin", "prompts/soft.gin")


def fields(module, name):
  """The parameters of a class or function, without importing a module that needs T5X."""
  if module not in ("prompt_tuning.t5x_bridge.model", "prompt_tuning.t5x_bridge.optimizer"):
    return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
  path = ROOT / f"{module.replace('.', '/')}.py"
  tree = ast.parse(path.read_text())
  found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
  init = next(node for node in found.body
              if isinstance(node, ast.FunctionDef) and node.name == "__init__")
  return {each.arg for each in (*init.args.args, *init.args.kwonlyargs)} - {"self"}


@pytest.mark.parametrize("name", SOURCES)
def test_what_it_sets_and_refers_to_exists(name):
  source = SOURCES[name]
  modules = {line.symbol: line.target for line in source.imports}
  checked = 0
  for setting in source.settings:
    for ref in gin_files.references(setting.value):
      if isinstance(ref, gin_files.Reference):
        symbol, _, tail = ref.selector.partition(".")
        assert symbol in modules, f"{name} refers to {ref} and does not import it"
        if modules[symbol].startswith("prompt_tuning"):
          fields(modules[symbol], tail)
          checked += 1
    if setting.parameter:
      symbol, _, tail = setting.selector.partition(".")
      assert symbol in modules, f"{name} sets {setting} and does not import {symbol}"
      if modules[symbol].startswith("prompt_tuning"):
        assert setting.parameter in fields(modules[symbol], tail), setting
        checked += 1
  assert checked


def closure(name):
  """The settings of a file and of those of ours that it includes."""
  source = SOURCES.get(name) or config.read(gin_files.find(name))
  for inner, _ in source.includes:
    if inner in gin_files.shipped_names():
      yield from closure(inner)
  yield from source.settings


@pytest.mark.parametrize("name", [name for name in SOURCES if "/runs/" in name])
def test_every_macro_that_a_run_reads_is_set(name):
  settings = [s for each in (*OTHERS, name) for s in closure(each)]
  set_here = {s.selector for s in settings if not s.parameter}
  read = {ref.name for s in settings for ref in gin_files.references(s.value)
          if isinstance(ref, gin_files.Macro)}
  assert read - set_here - OF_T5X - {"gin.REQUIRED"} == set()


def test_dropout_and_seed_are_ours_after_t5xs_own_file():
  """T5X's finetune.gin sets 0.1 and None, and gin's last setting wins."""
  source = SOURCES["t5x/runs/prompt_tune.gin"]
  assert source.includes[0][0] == "t5x/configs/runs/finetune.gin"
  lines = {s.selector: (s.line, s.value) for s in source.settings if not s.parameter}
  last = max(line for _, line in source.includes)
  for name, value in (("DROPOUT_RATE", 0.0), ("RANDOM_SEED", 0), ("USE_CACHED_TASKS", False)):
    assert lines[name] == (lines[name][0], value) and lines[name][0] > last


def test_saving_and_evaluating_have_one_period():
  """T5X refuses others after it has loaded the model."""
  values = {s.key: s.value for s in SOURCES["t5x/runs/prompt_tune.gin"].settings}
  assert values["utils.SaveCheckpointConfig.period"] == gin_files.Macro("EVAL_PERIOD")
