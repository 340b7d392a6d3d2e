"""Runs of T5X itself with our prompts, against our own runs: the same weights, rows and seed.

T5X is on no package index (docs/t5x.md). These tests run where it can be imported:

  PYTHONPATH=T5X:AIRIO:JESTIMATOR python -m pytest -m t5x tests/e2e/test_t5x_runs.py
"""

import contextlib
import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_runs import SMALL, Folder

from prompt_tuning import config, trees
from prompt_tuning.checkpoints import backbone, loading, prompt_files, t5x_legacy
from prompt_tuning.checkpoints.stacking import in_layout
from prompt_tuning.main import main
from prompt_tuning.prompted import init_backbone
from prompt_tuning.t5x_bridge import names
from prompt_tuning.tasks import vocabularies

pytestmark = [pytest.mark.t5x, pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]
STEPS, FIRST = 20, 1000
COMMON = SMALL + """
MIXTURE_OR_TASK_NAME = 'toy_labels'
MIXTURE_OR_TASK_MODULE = 'toy_tasks'
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}
PROMPT_LENGTH = 4
BATCH_SIZE = 8
RANDOM_SEED = 3
"""
NATIVE = COMMON + f"""
from prompt_tuning import train
TRAIN_STEPS = {STEPS}
EVAL_PERIOD = {STEPS}
train.TrainConfig.log_period = 1
train.TrainConfig.eval_settings = None
"""
IN_T5X = COMMON + f"""
import native_order
import __main__ as train_script
TRAIN_STEPS = {STEPS}
EVAL_PERIOD = {STEPS // 2}
EVAL_STEPS = 1
train_script.train.stats_period = 1
train_script.train.get_dataset_fn = @native_order.get_dataset
native_order.get_dataset.seed = %RANDOM_SEED
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  """A folder with the same random backbone as ours and as T5X's; a reason where there is no T5X."""
  for module in ("t5x.models", "t5x.train"):
    try:
      importlib.import_module(module)
    except ImportError as error:
      pytest.skip(f"{module} cannot be imported: {error}; docs/t5x.md says how to install T5X")
  return Lab(tmp_path_factory.mktemp("t5x"))


class Lab:
  """Runs of both kinds side by side."""

  def __init__(self, root: Path):
    self.root = root
    self.native = Folder(root, text=NATIVE)
    self.gin = root / "in_t5x.gin"
    self.gin.write_text(IN_T5X + f"native_order.get_dataset.cache_dir = '{root / 'tokens'}'\n")
    self.eval_gin = root / "eval.gin"
    self.eval_gin.write_text(COMMON)
    settings = self.native.config("unused")
    self.params = init_backbone(jax.random.key(5), settings.model.backbone)
    backbone.save(root / "backbone", self.params, settings.model.backbone,
                  vocabulary=vocabularies.fingerprint("bytes"), about={})
    self.t5x = root / "pretrained" / f"checkpoint_{FIRST}"
    reader = in_layout(loading.find(str(root / "backbone")).open(str(root / "backbone")), False)
    t5x_legacy.write(str(self.t5x), reader, config=settings.model.backbone,
                     metadata={"step": FIRST})
    config.clear()

  def run_native(self, name, *files, **macros):
    """Losses by step, and the run's folder."""
    folder = Folder(self.root, ("models/tiny.gin", *files), NATIVE)
    folder.train(name, INITIAL_CHECKPOINT_PATH=str(self.root / "backbone"), **macros)
    with (self.root / name / "metrics.csv").open() as file:
      rows = list(csv.DictReader(file))
    return np.array([float(row["value"]) for row in rows
                     if row["split"] == "train" and row["metric"] == "loss"]), self.root / name

  def run_t5x(self, name, *files, **macros):
    """As `run_native`, with T5X's."""
    self.t5x_command("train", "t5x/runs/prompt_tune.gin", *files, user=self.gin,
                     MODEL_DIR=str(self.root / name), INITIAL_CHECKPOINT_PATH=str(self.t5x),
                     **macros)
    return self.losses(name), self.root / name

  def t5x_command(self, job, *files, user, succeeds=True, **macros):
    command = [sys.executable, "-m", "prompt_tuning", "t5x", job, "--gin_file=models/tiny.gin",
               *(f"--gin_file={file}" for file in (*files, user)),
               *(f"--gin.{key}={value!r}" for key, value in macros.items())]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False,
                          env={**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""})
    assert (done.returncode == 0) is succeeds, done.stderr[-3000:]
    return done.stderr

  def losses(self, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = {}
    for file in sorted((self.root / name / "train").glob("events*")):
      events = EventAccumulator(str(file), size_guidance={"tensors": 0})
      events.Reload()
      with contextlib.suppress(KeyError):
        from tensorboard.util import tensor_util
        found |= {event.step: float(tensor_util.make_ndarray(event.tensor_proto))
                  for event in events.Tensors("loss")}
    assert sorted(found) == list(range(FIRST + 1, FIRST + len(found) + 1))
    return np.array([found[step] for step in sorted(found)])

  def reader(self, folder):
    return loading.find(str(folder)).open(str(folder))

  def assert_backbone_is_untouched(self, folder):
    before, after = self.reader(self.t5x), self.reader(folder)
    assert dict(before.leaves) == dict(after.leaves)
    for leaf in before.leaves:
      assert before.read(leaf).tobytes() == after.read(leaf).tobytes(), leaf


def assert_alike(found, wanted, tolerance=1e-4):
  assert found.shape == wanted.shape
  assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.fixture(scope="module")
def soft(lab):
  """Prompt tuning with our optimizer: native run, T5X run."""
  files = ("prompts/soft.gin", "inits/sampled_vocab.gin")
  return (lab.run_native("native_soft", *files, "runs/prompt_tune.gin"),
          lab.run_t5x("t5x_soft", *files, "t5x/optimizers/ours.gin"))


def test_losses_and_prompts_equal_the_native_run(lab, soft):
  (losses, native), (t5x_losses, in_t5x) = soft
  assert len(losses) == STEPS
  np.testing.assert_allclose(t5x_losses, losses, rtol=1e-4)
  assert losses[-1] < losses[0]
  found = prompt_files.read(str(in_t5x))
  assert found.path.endswith(f"checkpoint_{FIRST + STEPS}/encoder.prompt.prompt.prompt")
  assert_alike(found.values, np.load(native / "prompt.npy"), 1e-3)
  np.testing.assert_array_equal(np.load(in_t5x / "prompt.npy"), found.values)


def test_a_checkpoint_of_t5x_loads_natively(lab, soft):
  _, (_, in_t5x) = soft
  folder = in_t5x / f"checkpoint_{FIRST + STEPS}"
  lab.assert_backbone_is_untouched(folder)
  model = lab.native.config("unused", INITIAL_CHECKPOINT_PATH=str(folder)).model
  restored = model.load_backbone(0)
  assert trees.differences(restored, trees.map_with_path(
    lambda path, leaf: np.asarray(leaf), lab.params)) == []


def predictions(folder):
  lines = [json.loads(line) for file in sorted(folder.glob("*-predict.jsonl*"))
           if "COMPLETED" not in file.name for line in file.read_text().splitlines()]
  return {line["inputs"]["inputs_pretokenized"]: line["prediction"] for line in lines}


def native_predictions(lab, capsys, **macros):
  folder = Folder(lab.root, ("models/tiny.gin", "prompts/soft.gin", "runs/infer.gin"),
                  SMALL + "\nMIXTURE_OR_TASK_NAME = 'toy_labels'\nPROMPT_LENGTH = 4\n"
                  "MIXTURE_OR_TASK_MODULE = 'toy_tasks'\n")
  arguments = folder.arguments("unused", OUTPUT_FORMAT="json", **macros)
  arguments = ["infer", *(a for a in arguments[1:] if "MODEL_DIR" not in a)]
  capsys.readouterr()
  assert main([*arguments, "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}"]) == 0
  config.clear()
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("owner", ["native", "t5x"])
def test_greedy_outputs_are_identical(lab, soft, capsys, owner):
  """Each one's prompt in both."""
  (_, native), (_, in_t5x) = soft
  prompt = str((native if owner == "native" else in_t5x) / "prompt.npy")
  folder = lab.root / f"infer_{owner}"
  lab.t5x_command("infer", "prompts/soft.gin", "t5x/runs/infer.gin", user=lab.eval_gin,
                  CHECKPOINT_PATH=str(lab.t5x), PROMPT_FILE=prompt, INFER_OUTPUT_DIR=str(folder))
  found = predictions(folder)
  wanted = native_predictions(lab, capsys, PROMPT_FILE=prompt,
                              INITIAL_CHECKPOINT_PATH=str(lab.root / "backbone"))
  assert len(found) == len(wanted) > 10
  for row in wanted:
    assert found[row["input"]] == row["prediction"], row


def test_the_default_optimizer_is_t5xs_with_the_step_count_of_the_pre_training(lab):
  """T5X's Adafactor, on its older checkpoint path; then a resume, which has nothing left to do."""
  files = ("prompts/soft.gin", "inits/uniform.gin")
  losses, native = lab.run_native("native_adafactor", *files, "runs/prompt_tune.gin",
                                  **{"optimizers__Adafactor__step_offset": FIRST})
  t5x_losses, folder = lab.run_t5x("t5x_adafactor", *files, USE_ORBAX=False)
  np.testing.assert_allclose(t5x_losses, losses, rtol=1e-4)
  found = prompt_files.read(str(folder)).values
  assert_alike(found, np.load(native / "prompt.npy"), 1e-3)
  step = folder / f"checkpoint_{FIRST + STEPS}"
  assert (step / "checkpoint").is_file()  # T5X's msgpack
  lab.assert_backbone_is_untouched(step)
  state = {name for name in lab.reader(step).ignored if name.startswith("state/param_states/")}
  assert state == {f"state/param_states/{names.PROMPT}/prompt/{moment}"
                   for moment in ("m", "v", "v_col", "v_row")}
  lab.run_t5x("t5x_adafactor", *files, USE_ORBAX=False)
  np.testing.assert_array_equal(prompt_files.read(str(folder)).values, found)


@pytest.mark.parametrize("optimizer", ["ours", "adafactor"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(lab, soft, optimizer):
  """Through Orbax; native_order starts anew, so both halves see the same rows."""
  files = ("prompts/soft.gin", "inits/sampled_vocab.gin", f"t5x/optimizers/{optimizer}.gin")
  name = f"t5x_resumed_{optimizer}"
  lab.run_t5x(name, *files, TRAIN_STEPS=STEPS // 2)
  first = prompt_files.read(str(lab.root / name)).values
  log = lab.t5x_command("train", "t5x/runs/prompt_tune.gin", *files, user=lab.gin,
                        MODEL_DIR=str(lab.root / name), INITIAL_CHECKPOINT_PATH=str(lab.t5x))
  assert "Resumed: " in log and "Initializing param=" not in log
  assert len(lab.losses(name)) == STEPS
  assert trees.differences({"p": first}, {"p": prompt_files.read(str(lab.root / name)).values})
  if optimizer == "ours":  # up to the middle the same run
    whole = np.load(soft[1][1] / f"numpy_checkpoints/checkpoint_{FIRST + STEPS // 2}/prompt.npy")
    np.testing.assert_array_equal(first, whole)


def test_a_bank_trains_a_prompt_for_each_task(lab):
  files, macros = ("prompts/soft.gin",), {"NUM_PROMPTS": 2, "MIXTURE_OR_TASK_NAME": "toy_two"}
  losses, native = lab.run_native("native_bank", *files, "runs/prompt_tune.gin", **macros)
  t5x_losses, folder = lab.run_t5x("t5x_bank", *files, "t5x/optimizers/ours.gin", **macros)
  np.testing.assert_allclose(t5x_losses, losses, rtol=1e-4)
  bank = np.load(folder / "prompt.npy")
  assert bank.shape == (2, 4, 16)
  assert_alike(bank, np.load(native / "prompt.npy"), 1e-3)


def test_a_prefix_trains_with_adamw(lab):
  macros = {"PREFIX_HIDDEN": 6, "LEARNING_RATE": 0.01}
  losses, native = lab.run_native("native_prefix", "prompts/prefix.gin", "runs/adamw_tune.gin",
                                  **macros)
  t5x_losses, folder = lab.run_t5x("t5x_prefix", "prompts/prefix.gin", "t5x/optimizers/adamw.gin",
                                   **macros)
  np.testing.assert_allclose(t5x_losses, losses, rtol=1e-4)
  lab.assert_backbone_is_untouched(folder / f"checkpoint_{FIRST + STEPS}")
  from safetensors.numpy import load_file
  found, wanted = (load_file(path / "prompt.safetensors") for path in (folder, native))
  assert found.keys() == wanted.keys()
  for name, leaf in wanted.items():
    assert_alike(found[name], leaf, 1e-3)


def accuracy(folder):
  line = (folder / "inference_eval/toy_labels__bytes-metrics.jsonl").read_text().splitlines()[-1]
  return json.loads(line)


def test_an_evaluation_reads_the_prompt_from_the_checkpoint_or_from_its_file(lab, soft):
  """The same metrics, whichever it is."""
  in_t5x = soft[1][1]
  found = []
  for name, macros in (
      ("file", {"CHECKPOINT_PATH": str(lab.t5x), "PROMPT_FILE": str(in_t5x)}),
      ("whole", {"CHECKPOINT_PATH": str(in_t5x / f"checkpoint_{FIRST + STEPS}")})):
    folder = lab.root / f"eval_{name}"
    lab.t5x_command("eval", "prompts/soft.gin", "t5x/runs/eval.gin", user=lab.eval_gin,
                    EVAL_OUTPUT_DIR=str(folder), **macros)
    found.append({key: value for key, value in accuracy(folder).items() if key != "step"})
  assert found[0] == found[1] and "accuracy" in found[0]


def test_a_checkpoint_of_another_model_is_refused(lab):
  """T5X alone would warn and go on with random weights where a parameter is missing."""
  broken = lab.root / "broken" / f"checkpoint_{FIRST}"
  reader = lab.reader(lab.t5x)
  del reader.leaves["decoder/layers_1/mlp/wo/kernel"]
  t5x_legacy.write(str(broken), reader, config=reader.config, metadata={"step": FIRST})
  log = lab.t5x_command(
    "train", "prompts/soft.gin", "t5x/runs/prompt_tune.gin", user=lab.gin, succeeds=False,
    MODEL_DIR=str(lab.root / "refused"), INITIAL_CHECKPOINT_PATH=str(broken))
  assert "missing ['decoder/layers_1/mlp/wo/kernel'] (1)" in log
