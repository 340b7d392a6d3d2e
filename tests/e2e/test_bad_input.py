"""Every mistake the issue lists: the command's exit code and message, before any weight is read."""

import errno
import json

import numpy as np
import pytest
from orbax.checkpoint import CheckpointManager
from toy_runs import PROMPT, SMALL, TOY, Folder

from prompt_tuning import run_config
from prompt_tuning.checkpoints import backbone
from prompt_tuning.main import USER_MISTAKE, main
from prompt_tuning.prompted import init_backbone
from prompt_tuning.tasks import vocabularies

pytestmark = pytest.mark.e2e
CSV = "text,kind\nfine words,good\npoor words,bad\nmore words,good\n"


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path)


@pytest.fixture
def data(tmp_path):
  """`your_data.gin` on two CSV files; returns a function of what they hold."""
  folder = Folder(tmp_path, ("models/tiny.gin", "prompts/soft.gin", "runs/prompt_tune.gin",
                             "runs/your_data.gin"), SMALL + PROMPT)

  def make(train=CSV, validation=CSV, **macros):
    settings = {"INPUTS": "say: {text}", "TARGETS": "{kind}", "LABELS": ["good", "bad"],
                "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 8}}
    for split, content in (("train", train), ("validation", validation)):
      path = tmp_path / f"{split}.csv"
      path.write_bytes(content if isinstance(content, bytes) else content.encode())
      settings[f"{split.upper()}_FILE"] = str(path)
    return folder, settings | macros

  return make


@pytest.fixture
def no_weights(monkeypatch):
  def load(*args):
    raise AssertionError("weights were loaded before this mistake was found")

  monkeypatch.setattr(run_config.ModelConfig, "load_backbone", load)


@pytest.fixture
def error_of(capfd):
  def run(arguments):
    capfd.readouterr()
    assert main(arguments) == USER_MISTAKE
    message = capfd.readouterr().err
    assert "Traceback" not in message
    assert all(part in message for part in ("\n  found:  ", "\n  wanted: ", "\n  fix:    "))
    return message
  return run


@pytest.mark.parametrize("extra, words", [
  (["--gin.PROMPT_LENGHT=5"],
   ["Nothing reads the macro PROMPT_LENGHT", "did you mean 'PROMPT_LENGTH'"]),
  (["--gin.trian/soft.SoftPrompt.length=5"], ["No reference uses the scope 'trian'"]),
  (["--gin_file=runs/promt_tune.gin"],
   ["There is no gin file 'runs/promt_tune.gin'", "did you mean 'runs/prompt_tune.gin'"]),
  (["--gin.soft.SoftPrompt.lenght=5"],
   ["soft.SoftPrompt has no field 'lenght'", "did you mean 'length'"]),
  (["--gin.TRAIN_STEPS=0"], ["TrainConfig.train_steps is not a count", "found:  0"]),
  (["--gin.BATCH_SIZE=6"], ["BATCH_SIZE cannot be split evenly", "--gin.BATCH_SIZE=8"]),
  (["--gin.MIXTURE_OR_TASK_NAME='toy_label'"],
   ["there is no task or mixture 'toy_label'", "did you mean 'toy_labels'"]),
  (["--gin.MIXTURE_OR_TASK_MODULE='toy_task'"], ["MIXTURE_OR_TASK_MODULE 'toy_task' cannot be"]),
  (["--gin.TASK_FEATURE_LENGTHS={'inputs': 8}"],
   ["TASK_FEATURE_LENGTHS lacks a feature", "found:  keys ['inputs']"]),
  (["--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4, 'target': 3}"],
   ["TASK_FEATURE_LENGTHS has an unknown feature", "did you mean 'targets'"]),
  (["--gin.TASK_FEATURE_LENGTHS={'inputs': 6, 'targets': 4}"],
   ["Too many inputs of 'toy_labels__bytes' are longer than their length of 6",
    "14 of 24 would lose their end", "at most 5.00% of the rows"]),
  (["--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 3}"],
   ["Too many targets of 'toy_labels__bytes'", "18 of 24 would lose their end"]),
  (["--gin.TRAINABLE=('encoder/layer/.*',)"],
   ["A TRAINABLE pattern matches no parameter", "'encoder/layer/.*'"]),
  (["--gin.VOCABULARY='tiny'"], ["The vocabulary does not fit the embedding table", "264"]),
  (["--gin.INITIAL_CHECKPOINT_PATH='nowhere'"],
   ["INITIAL_CHECKPOINT_PATH is not a checkpoint", "nowhere (does not exist)"])])
def test_settings(folder, error_of, no_weights, extra, words):
  message = error_of(folder.arguments("run") + extra)
  assert all(word in message for word in words), message
  assert not (folder.path / "run").exists()


OTHERS = {"CLASS_LABELS": ["yes", "nay"]}


@pytest.mark.parametrize("changes, words", [
  (OTHERS, ["WARP cannot write all of the targets", "'no', of toy_labels", "'yes', 'nay'"]),
  # A user's own task says no labels, and keeps no texts.
  (OTHERS | {"MIXTURE_OR_TASK_NAME": "toy_seqio"},
   ["WARP cannot write all of the targets", "'no', of toy_seqio"]),
  (OTHERS | {"MIXTURE_OR_TASK_NAME": "toy_two", "train__TrainConfig__eval_settings": None},
   ["WARP cannot write all of the targets", "'no', of toy_"]),
  ({"LEADING_SENTINEL": True, "TASK_FEATURE_LENGTHS": {"inputs": 8, "targets": 5}},
   ["WARP cannot write a leading sentinel"]),
  ({"train_state__LossConfig__label_smoothing": 0.1},
   ["WARP cannot be trained with label smoothing"])])
def test_targets_that_warp_cannot_write(tmp_path, error_of, no_weights, changes, words):
  folder = Folder(tmp_path, ("models/tiny.gin", "prompts/warp.gin", "runs/prompt_tune.gin"),
                  SMALL + TOY + PROMPT)
  message = error_of(folder.arguments("run", **{"CLASS_LABELS": ["yes", "no"]} | changes))
  assert all(word in message for word in words), message
  assert not (tmp_path / "run").exists()


def test_a_missing_macro_names_the_flag_and_the_files(folder, error_of):
  message = error_of([a for a in folder.arguments("run") if "MODEL_DIR" not in a
                      and "prompt_tune" not in a])
  assert "TrainConfig is not completely configured" in message
  assert "MODEL_DIR" in message and "--gin_file=runs/prompt_tune.gin" in message


@pytest.mark.parametrize("files, words", [
  ({"train": "text,sort\nfine words,good\n"}, ["train.csv, line 2: there is no column 'kind'",
                                               "the columns 'text', 'sort'"]),
  ({"train": ""}, ["train.csv is empty"]),
  ({"validation": "text,kind\n"}, ["validation.csv is empty", "no record"]),
  ({"train": CSV + "odd words,god\n"},
   ["train.csv, line 5: 'god' is not one of LABELS", "did you mean 'good'"]),
  ({"train": CSV.encode() + b"bad \xff byte,good\n"}, ["train.csv", "line 5"]),
  ({"train": CSV + "one field\n"}, ["train.csv, line 5: wrong number of fields"])])
def test_data_files(data, error_of, no_weights, files, words):
  folder, settings = data(**files)
  message = error_of(folder.arguments("run", **settings))
  assert all(word in message for word in words), message
  assert not (folder.path / "run").exists()


def test_a_data_file_that_does_not_exist(data, error_of, no_weights):
  folder, settings = data(VALIDATION_FILE="nowhere.csv")
  assert "nowhere.csv" in error_of(folder.arguments("run", **settings))


def test_rows_within_the_share_lose_their_end_and_are_counted(data, capfd):
  folder, settings = data(CSV + "many more words than fit into 24,bad\n", MAX_TRUNCATED_INPUTS=0.25,
                          TRAIN_STEPS=1)
  assert main(folder.arguments("run", **settings)) == 0
  assert "your_data, train: of 4 rows, 1 inputs lose their end" in capfd.readouterr().out
  assert folder.summary("run")["data"]["long_inputs"] == 1


@pytest.fixture
def checkpoint(folder):
  """A backbone folder that fits the small model."""
  config = folder.config("any").model.backbone
  import jax
  backbone.save(folder.path / "model", init_backbone(jax.random.key(0), config), config,
                vocabulary=vocabularies.fingerprint("bytes"), about={})
  return folder.path / "model"


def test_a_checkpoint_of_another_model(folder, checkpoint, error_of, no_weights):
  arguments = folder.arguments("run", INITIAL_CHECKPOINT_PATH=str(checkpoint))
  message = error_of([*arguments, "--gin.interfaces.T5Config.mlp_dim=48"])
  assert "mlp_dim: 32 in the checkpoint, 48 in the model" in message
  metadata = json.loads((checkpoint / backbone.METADATA).read_text())
  (checkpoint / backbone.METADATA).write_text(json.dumps(metadata | {"vocabulary": "other"}))
  assert "trained with another vocabulary" in error_of(arguments)
  (checkpoint / backbone.METADATA).unlink()
  assert "is not a checkpoint" in error_of(arguments)


def test_a_truncated_checkpoint(folder, checkpoint, error_of):
  weights = checkpoint / backbone.WEIGHTS
  weights.write_bytes(weights.read_bytes()[:-100])
  message = error_of(folder.arguments("run", INITIAL_CHECKPOINT_PATH=str(checkpoint)))
  assert "The checkpoint's weights cannot be read" in message and str(weights) in message
  # Another checkpoint may be tried in the same MODEL_DIR: nothing was computed yet.
  assert main(folder.arguments("run", TRAIN_STEPS=1)) == 0


@pytest.mark.parametrize("shape, words", [
  ((4, 8), ["The prompt file has the wrong width", "D = 8", "D = 16"]),
  ((5, 16), ["The prompt file has another length", "P = 5", "--gin.PROMPT_LENGTH=5"])])
def test_a_prompt_file_that_does_not_fit(folder, error_of, no_weights, shape, words):
  path = folder.path / "prompt.npy"
  np.save(path, np.zeros(shape, np.float32))
  message = error_of([*folder.arguments("run", INITIAL_PROMPT_FILE=str(path)),
                      "--gin_file=inits/from_file.gin"])
  assert all(word in message for word in words), message
  assert not (folder.path / "run").exists()


def test_a_model_dir_that_holds_another_run(folder, error_of, monkeypatch):
  assert main(folder.arguments("run", TRAIN_STEPS=1)) == 0
  prompt = folder.prompt_bytes("run")

  def load(*args):
    raise AssertionError("weights were loaded")

  monkeypatch.setattr(run_config.ModelConfig, "load_backbone", load)
  message = error_of(folder.arguments("run", RANDOM_SEED=3))
  assert "MODEL_DIR holds another run" in message and "seed was 0, is now 3" in message
  assert folder.prompt_bytes("run") == prompt
  (folder.path / "mine").mkdir()
  (folder.path / "mine" / "thesis.txt").write_text("x")
  assert "holds something that is not a run" in error_of(folder.arguments("mine"))


def test_no_space_while_saving_loses_nothing(folder, error_of, monkeypatch):
  original, steps = CheckpointManager.save, []

  def save(self, step, *args, **kwargs):
    steps.append(step)
    if step >= 8:
      raise OSError(errno.ENOSPC, "No space left on device")
    return original(self, step, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(CheckpointManager, "save", save)
    message = error_of(folder.arguments("full"))
  assert "No space is left while saving a checkpoint" in message
  assert "it resumes from step 4" in message and steps[-1] == 8
  assert main(folder.arguments("full")) == 0
  assert folder.summary("full")["resumed_at"] == 4
  assert main(folder.arguments("roomy")) == 0
  assert folder.prompt_bytes("full") == folder.prompt_bytes("roomy")


def test_the_toy_settings_themselves_are_right(folder, capfd):
  """Else every test above could fail for another reason than its own."""
  assert "toy_labels" in TOY
  assert main(folder.arguments("run", TRAIN_STEPS=1)) == 0
  out, err = capfd.readouterr()
  assert "best evaluation" in out and "Traceback" not in err
