"""Every shipped gin file parses and builds: each size, each method, each start, each run."""

import importlib
import re

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import config, gin_files, trees
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5
from prompt_tuning.train import TrainConfig
from prompt_tuning.train_state import LossConfig

NAMES = gin_files.shipped_names()


def files(folder):
  return [name for name in NAMES if name.startswith(f"{folder}/")]


# What a user must give for a file: `NAME = %gin.REQUIRED` in it, and nothing else may be missing.
GIVEN = {
  "MODEL_DIR": "'somewhere'", "MIXTURE_OR_TASK_NAME": "'docstring_library'",
  "TASK_FEATURE_LENGTHS": "{'inputs': 64, 'targets': 8}", "CLASS_LABELS": "['yes', 'no']",
  "PROMPT_TEXT": "'classify'", "INITIAL_PROMPT_FILE": "'prompt.npy'",
  "SOURCE_MODEL_DIR": "'other'", "INITIAL_CHECKPOINT_PATH": "'tiny'", "CORPUS": "['a.txt']",
  "TRAIN_FILE": "'a.csv'", "VALIDATION_FILE": "'b.csv'", "INPUTS": "'{text}'",
  "TARGETS": "'{label}'", "SOURCE_PROMPTS": "['one.npy', 'two.npy']", "PROMPT_BANK": "'bank.npy'",
  "TEACHER_PROMPTS": "['one.npy']", "MIXTURE_TASKS": "['docstring_library', 'docstring_match']",
  "SENTENCES": "{'here': 'a.txt'}", "TEMPLATES": "('{inputs} {targets}',)"}
# Runs of other commands than `train`: the command, and the configuration that it builds.
OTHER_RUNS = {"eval": ("eval_run", "EvalConfig"), "infer": ("infer", "InferConfig"),
              "design": ("discrete.design", "DesignConfig"),
              "autoprompt": ("discrete.autoprompt_config", "AutoPromptConfig"),
              "recover": ("recovery", "RecoverConfig")}
TRAINING_RUNS = [name for name in files("runs")
                 if name.removeprefix("runs/").removesuffix(".gin") not in OTHER_RUNS]


def given(*names):
  """Bindings of the macros that these files, or what they include, require."""
  values = {}

  def read(name):
    source = config.read(gin_files.shipped_folder() / name)
    for inner, _ in source.includes:
      read(inner)
    values.update({s.key: repr(s.value) for s in source.settings if not s.parameter})

  for name in names:
    read(name)
  return [f"{name} = {GIVEN[name]}" for name, value in sorted(values.items())
          if value == "%gin.REQUIRED"]


def build_model(*names, bindings=()):
  weights = [] if any("tiny" in name for name in names) else ["INITIAL_CHECKPOINT_PATH = 'random'"]
  config.load(["commands/model.gin", *names], [*weights, *bindings])
  return config.build(ModelConfig)


def test_every_file_parses():
  for path in gin_files.shipped_paths():
    source = config.read(path)
    if source.label.startswith("t5x/"):
      continue  # T5X's gin reads those: tests/t5x_bridge/test_t5x_gin_files.py
    assert source.rank < gin_files.USER_RANK, f"{source.label} is in no folder that has a rank"
    assert source.settings or source.includes, f"{source.label} sets nothing"
    for name, _ in source.includes:
      assert name in gin_files.shipped_names(), f"{source.label} includes {name}"


def test_the_folder_is_the_installed_package():
  from prompt_tuning import gin_configs
  assert gin_files.shipped_folder().joinpath("__init__.py").samefile(gin_configs.__file__)


def test_the_files_of_the_design_are_there():
  sizes = {"t5_1_1": "small base large xl xxl", "t5_1_0": "small base large 3b 11b",
           "mt5": "small base large xl xxl", "byt5": "small base large xl xxl"}
  wanted = {f"models/{family}_{size}.gin" for family, names in sizes.items()
            for size in names.split()} | {"models/tiny.gin"}
  wanted |= {f"prompts/{name}.gin" for name in ("soft", "none")}
  wanted |= {f"inits/{name}.gin" for name in ("uniform", "sampled_vocab", "class_labels", "text",
                                             "from_file", "from_run")}
  wanted |= {f"runs/{name}.gin" for name in ("prompt_tune", "model_tune", "pretrain", "lm_adapt",
                                            "eval", "infer", "your_data")}
  assert wanted <= set(NAMES)


@pytest.mark.parametrize("size", files("models"))
def test_every_size_has_the_parameters_its_file_states(size):
  text = (gin_files.shipped_folder() / size).read_text()
  stated = int(re.search(r"([\d,]{7,}) parameters", text)[1].replace(",", ""))
  plain = build_model(size, "prompts/none.gin")
  assert plain.prompt is None
  params = abstract_params(plain.module())
  assert trees.count(params) == stated and params.keys() == {"backbone"}


@pytest.mark.parametrize("size", files("models"))
def test_every_size_takes_a_soft_prompt(size):
  model = build_model(size, "prompts/soft.gin")
  assert model.prompt.length == 100 and model.prompt.config == model.backbone
  shape = jax.eval_shape(model.prompt.init, jax.random.key(0), None)["params"]["embedding"]
  assert jax.tree.leaves(shape)[0].shape == (100, model.backbone.emb_dim)


@pytest.mark.parametrize("method", files("prompts"))
def test_every_method_runs_at_one_size(method):
  # T5's own vocabulary is not shipped, and a verbaliser needs ids.
  model = build_model("models/t5_1_1_small.gin", method,
                      bindings=[*given(method), "VOCABULARY = 'bytes'"]).module()
  tokens = jax.ShapeDtypeStruct((2, model.num_virtual_tokens + 7), jnp.int32)
  targets = jax.ShapeDtypeStruct((2, 3), jnp.int32)
  logits = jax.eval_shape(
    lambda params, *arrays: model.apply({"params": params}, *arrays, enable_dropout=False),
    abstract_params(model), tokens, targets)
  assert logits.shape == (2, 3, 32128) and logits.dtype == jnp.float32
  backbone = abstract_params(PromptedT5(T5(model.backbone.config)))["backbone"]
  assert jax.tree.structure(abstract_params(model)["backbone"]) == jax.tree.structure(backbone)


@pytest.mark.parametrize("init", files("inits"))
def test_every_start_builds(init):
  """Whichever way around the files are named."""
  names = ["models/tiny.gin", "prompts/soft.gin", init]
  model = build_model(*names, bindings=given(init))
  assert build_model(*reversed(names), bindings=given(init)) == model
  name = init.removeprefix("inits/").removesuffix(".gin").replace("_", "")
  assert type(model.prompt.initializer).__name__.lower().startswith(name)
  hash(model.module())  # compiled functions are kept by it


@pytest.mark.parametrize("run", TRAINING_RUNS)
def test_every_training_run_builds(run, tmp_path):
  names = ["commands/train.gin", "models/tiny.gin", run]
  if run in ("runs/your_data.gin", "runs/mixture.gin"):
    names.append("runs/prompt_tune.gin")
  if {"runs/prompt_tune.gin", "runs/adamw_tune.gin", "runs/distill.gin"} & set(names):
    names.append("prompts/soft.gin")
  config.load(names, given(*names))
  built = config.build(TrainConfig)
  assert built.model_dir == "somewhere" and built.eval_settings is not None
  assert (built.trainable == ()) == ("prompts/soft.gin" in names)
  assert (built.task.source is None) == (run in (
    "runs/prompt_tune.gin", "runs/adamw_tune.gin", "runs/model_tune.gin", "runs/distill.gin"))
  # What it leaves as config.gin is, alone, the same run.
  (tmp_path / "config.gin").write_text(config.operative())
  config.load([str(tmp_path / "config.gin")], [])
  assert config.build(TrainConfig) == built


def test_a_batch_in_pieces_is_set_by_a_macro(tmp_path):
  """By any run file and on the command line, beside the loss's own fields; config.gin says so."""
  run = tmp_path / "run.gin"
  run.write_text("NUM_MICROBATCHES = 4\n")
  names = ["commands/train.gin", "models/tiny.gin", "prompts/soft.gin", "runs/prompt_tune.gin"]
  settings = [*given(*names), "train_state.LossConfig.z_loss = 0.0",
              "train_state.LossConfig.label_smoothing = 0.1"]
  config.load([*names, str(run)], settings)
  built = config.build(TrainConfig)
  assert built.loss == LossConfig(z_loss=0.0, label_smoothing=0.1, num_microbatches=4)
  text = config.operative()
  for line in ("NUM_MICROBATCHES = 4", "num_microbatches = %NUM_MICROBATCHES", "z_loss = 0.0",
               "label_smoothing = 0.1"):
    assert line in text
  (tmp_path / "config.gin").write_text(text)
  config.load([str(tmp_path / "config.gin")], [])
  assert config.build(TrainConfig) == built
  config.load(names, given(*names))
  assert config.build(TrainConfig).loss == LossConfig()
  config.load([*names, str(run)], [*settings, "NUM_MICROBATCHES = 3"])
  with pytest.raises(UserError, match="32, NUM_MICROBATCHES = 3(.*\n)*.*--gin.BATCH_SIZE=33"):
    config.build(TrainConfig)


@pytest.mark.parametrize("command, extra", [
  ("eval", ["MIXTURE_OR_TASK_NAME = 'docstring_library'"]), ("infer", ["INPUT_FILE = '-'"])])
def test_the_other_runs_build(command, extra):
  from prompt_tuning.eval_run import EvalConfig
  from prompt_tuning.infer import InferConfig
  config.load([f"commands/{command}.gin", "models/tiny.gin", "prompts/soft.gin",
               f"runs/{command}.gin"], extra)
  built = config.build({"eval": EvalConfig, "infer": InferConfig}[command])
  assert built.task.feature_lengths == {"inputs": 512, "targets": 64}


@pytest.mark.parametrize("command", ["design", "autoprompt", "recover"])
def test_the_runs_of_discrete_prompts_and_recovery_build(command):
  names = [f"commands/{command}.gin", "models/tiny.gin", f"runs/{command}.gin"]
  config.load(names, given(*names))
  module, name = OTHER_RUNS[command]
  built = config.build(getattr(importlib.import_module(f"prompt_tuning.{module}"), name))
  assert built.model_dir == "somewhere"


def test_weights_are_never_random_unless_that_is_said():
  files = ["commands/train.gin", "models/t5_1_1_small.gin", "prompts/soft.gin",
           "runs/prompt_tune.gin"]
  given = ["MODEL_DIR = 'd'", "MIXTURE_OR_TASK_NAME = 't'",
           "TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}"]
  config.load(files, given)
  with pytest.raises(UserError, match="no value for INITIAL_CHECKPOINT_PATH"):
    config.build(TrainConfig)
  config.load(files, [*given, "INITIAL_CHECKPOINT_PATH = 'random'"])
  assert config.build(TrainConfig).model.initial_checkpoint_path == "random"
