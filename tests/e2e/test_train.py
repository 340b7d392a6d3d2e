"""Whole runs from real gin files: what is trained, what is left, resuming to the bit."""

import dataclasses
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from run_differences import differences
from safetensors.numpy import load_file, save_file
from toy_runs import Folder

from prompt_tuning import (
  config,
  generation,
  partitioning,
  run_report,
  scoring,
  train_state,
  trained_model,
  trees,
)
from prompt_tuning import train_loop as train_module
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.errors import UserError
from prompt_tuning.train import TrainConfig, train

pytestmark = pytest.mark.e2e
LEFT = {"config.gin", "settings.json", "summary.json", "metrics.csv", "loss.png", "prompt.npy",
        "checkpoints"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return Folder(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(folder):
  """An uninterrupted run, with the number of times each function was traced."""
  counts = {}

  def counted(function):
    def traced(*args, **kwargs):
      counts[function.__name__] = counts.get(function.__name__, 0) + 1
      return function(*args, **kwargs)
    traced.__name__ = function.__name__
    return traced

  with pytest.MonkeyPatch.context() as patch:
    original = train_state.make_train_step
    patch.setattr(train_module, "make_train_step", lambda *args: counted(original(*args)))
    for module, name in ((scoring, "label_scores"), (scoring, "token_losses"),
                         (generation, "generate")):
      patch.setattr(module, name, counted(getattr(module, name)))
    outcome = folder.train("whole")
  config.clear()
  return outcome, counts


def interrupt_at(step, monkeypatch):
  """Sends this process SIGTERM when the batch of `step` is asked for."""
  original = train_module.Prefetcher.__next__
  seen = []

  def asked(self):
    seen.append(None)
    if len(seen) == step:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(self)

  monkeypatch.setattr(train_module.Prefetcher, "__next__", asked)


def test_only_the_prompt_moves_and_the_loss_falls(folder, whole):
  outcome, _ = whole
  settings = folder.config("whole")
  start = settings.model.load_backbone(settings.seed)
  assert trees.differences(outcome.params["backbone"], start) == []
  first = np.asarray(settings.model.start_prompt(start, settings.seed)["embedding"])
  assert np.abs(folder.prompt("whole") - first).min() > 0
  assert np.array_equal(outcome.params["prompt"]["embedding"], folder.prompt("whole"))
  longer = folder.train("longer", TRAIN_STEPS=40, EVAL_PERIOD=20)
  losses = [float(row[3]) for row in folder.metrics("longer") if row[1:3] == ("train", "loss")]
  assert losses[-1] < losses[0] - 0.3
  first = [float(row[3]) for row in folder.metrics("longer") if row[2] == "label_loss"][0]
  assert longer.best.metrics["label_loss"] < 0.75 * first


def test_one_compilation_a_function(whole):
  assert whole[1] == {"train_step": 1, "label_scores": 1}


def test_four_devices_agree_with_one(folder, whole, monkeypatch):
  assert jax.device_count() == 4
  make = partitioning.Partitioner.make
  monkeypatch.setattr(partitioning.Partitioner, "make",
                      lambda layout: make(layout, jax.devices()[:1]))
  outcome = folder.train("one_device")
  embedding = whole[0].params["prompt"]["embedding"]
  np.testing.assert_allclose(outcome.params["prompt"]["embedding"], embedding, atol=1e-4)
  assert outcome.params["prompt"]["embedding"].sharding.device_set == {jax.devices()[0]}


def test_two_microbatches_are_one_batch(folder, whole):
  folder.train("pieces", NUM_MICROBATCHES=2)
  assert "NUM_MICROBATCHES = 2" in (folder.path / "pieces" / "config.gin").read_text()
  one, two = ([float(row[3]) for row in folder.metrics(name) if row[1:3] == ("train", "loss")]
              for name in ("whole", "pieces"))
  assert len(one) > 1
  np.testing.assert_allclose(two, one, rtol=1e-5)
  np.testing.assert_allclose(folder.prompt("pieces"), folder.prompt("whole"), atol=1e-4)


def test_the_same_command_gives_the_same_prompt(folder, whole):
  folder.train("again")
  assert differences(folder.path / "whole", folder.path / "again") == []
  folder.train("other_seed", RANDOM_SEED=1)
  assert folder.prompt_bytes("other_seed") != folder.prompt_bytes("whole")


def repeat_a_row(run):
  rows = (run / "metrics.csv").read_text().splitlines()
  (run / "metrics.csv").write_text("\n".join([*rows, rows[-1]]) + "\n")


def flip_a_bit(run):
  content = bytearray((run / "prompt.npy").read_bytes())
  content[-1] ^= 1
  (run / "prompt.npy").write_bytes(content)


def use_the_best_as_the_last(run):
  shutil.rmtree(run / "checkpoints" / "last")
  shutil.copytree(run / "checkpoints" / "best", run / "checkpoints" / "last")


@pytest.mark.parametrize("damage, found", [
  (flip_a_bit, ["prompt.npy differs"]),
  (repeat_a_row, ["metrics.csv has a row twice", "the TensorBoard events are not metrics.csv"]),
  (use_the_best_as_the_last, ["files: missing", "files: left over", "checkpoints/last: missing",
                              "checkpoints/last: left over"]),
  (lambda run: (run / "checkpoints/best/9.orbax-checkpoint-tmp").mkdir(), ["files: left over"])])
def test_the_comparison_of_two_runs_sees(folder, whole, damage, found, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(folder.path / "whole", run)
  for name in ("config.gin", "settings.json"):
    text = (run / name).read_text().replace(str(folder.path / "whole"), str(run))
    (run / name).write_text(text)
  damage(run)
  lines = differences(folder.path / "whole", run)
  assert len(lines) == len(found), lines
  assert all(line.startswith(start) for line, start in zip(lines, found, strict=True)), lines


def test_what_a_run_leaves(folder, whole):
  place = folder.path / "whole"
  left = {path.name for path in place.iterdir()}
  events = {name for name in left if name.startswith("events.out.tfevents")}
  assert left == LEFT | events and len(events) == 1
  assert sorted(p.name for p in (place / "checkpoints").iterdir()) == ["best", "last"]
  size = sum(p.stat().st_size for p in (place / "checkpoints").rglob("*") if p.is_file())
  summary = folder.summary("whole")
  assert size < 200_000 and summary["trained"]["parameters"] == 4 * 16
  assert summary["frozen"]["parameters"] == trees.count(whole[0].params["backbone"])
  assert summary["initialised"]["prompt"]["parameters"] == 4 * 16
  assert (summary["steps"], summary["interrupted"], summary["seed"]) == (8, False, 0)
  assert summary["best"] == whole[0].best.metrics and "jax" in summary["versions"]
  assert trained_model._checkpointed_step(place) == summary["best_step"]
  steps = [(int(row[0]), row[1]) for row in folder.metrics("whole")[1:]]
  assert set(steps) == {(0, "validation"), (3, "train"), (4, "train"), (4, "validation"),
                        (6, "train"), (8, "train"), (8, "validation")}


def test_config_gin_alone_rebuilds_the_run(folder, whole):
  wanted = folder.config("whole")
  config.load([str(folder.path / "whole" / "config.gin")], [])
  assert config.build(TrainConfig) == wanted


@pytest.mark.parametrize("step", [4, 5])
def test_sigterm_saves_and_the_same_command_resumes_to_the_bit(folder, whole, step, monkeypatch):
  name = f"interrupted_{step}"
  with monkeypatch.context() as patch:
    interrupt_at(step, patch)
    outcome = folder.train(name)
  assert outcome.interrupted and outcome.step == step < 8
  assert folder.summary(name)["interrupted"]
  outcome = folder.train(name)
  assert not outcome.interrupted and folder.summary(name)["resumed_at"] == step
  assert folder.prompt_bytes(name) == folder.prompt_bytes("whole")
  assert folder.metrics(name) == folder.metrics("whole")
  assert outcome.best.metrics == whole[0].best.metrics


class Killed(BaseException):
  """Nothing catches it: a kill at a known place. kill_and_resume.py kills processes."""


@pytest.mark.parametrize("steps", [4, 8])
def test_after_a_kill_between_the_two_saves_the_best_is_made_of_the_last(
    folder, whole, monkeypatch, steps):
  name = f"between_{steps}"
  save = train_module.TrainedCheckpoints.save

  def killed(self, state, counters, *, best=False):
    if best and int(state.step) == 4:
      raise Killed
    save(self, state, counters, best=best)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(train_module.TrainedCheckpoints, "save", killed)
    folder.train(name)
  place = folder.path / name / "checkpoints"
  assert [path.name for path in (place / "best").iterdir()] == ["0"]
  outcome = folder.train(name, TRAIN_STEPS=steps)
  assert folder.summary(name)["resumed_at"] == 4 and folder.summary(name)["best_step"] == 4
  assert np.array_equal(outcome.params["prompt"]["embedding"], folder.prompt("whole"))
  assert folder.prompt_bytes(name) == folder.prompt_bytes("whole")


def test_more_steps_go_on_from_the_last_one(folder, whole):
  folder.train("extended", TRAIN_STEPS=4)
  outcome = folder.train("extended")
  assert outcome.step == 8 and folder.summary("extended")["resumed_at"] == 4
  assert folder.prompt_bytes("extended") == folder.prompt_bytes("whole")


def test_a_finished_run_is_not_trained_again(folder, whole):
  before = folder.prompt_bytes("whole"), folder.metrics("whole")
  outcome = folder.train("whole")
  assert (folder.prompt_bytes("whole"), folder.metrics("whole")) == before
  assert outcome.best.metrics == whole[0].best.metrics


def test_another_setting_is_another_run(folder, whole):
  with pytest.raises(UserError, match="MODEL_DIR holds another run") as caught:
    folder.train("whole", LEARNING_RATE=0.1)
  assert "optimizer.learning_rate was 0.3, is now 0.1" in caught.value.found
  with pytest.raises(UserError, match="seed was 0, is now 5"):
    folder.train("whole", RANDOM_SEED=5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    folder, whole, monkeypatch):
  original = train_module.TrainData.at

  def poisoned(self, step):
    batch = original(self, step)
    if step >= 6:
      batch["decoder_loss_weights"] = batch["decoder_loss_weights"] * np.nan
    return batch

  with monkeypatch.context() as patch:
    patch.setattr(train_module.TrainData, "at", poisoned)
    with pytest.raises(UserError, match="not finite at step 7") as caught:
      folder.train("poisoned")
  assert "the last good state is kept in" in caught.value.fix and "(step 4)" in caught.value.fix
  outcome = folder.train("poisoned")
  assert folder.summary("poisoned")["resumed_at"] == 4 and outcome.step == 8
  assert folder.prompt_bytes("poisoned") == folder.prompt_bytes("whole")


def test_parameters_that_are_not_finite_are_never_saved(folder):
  with pytest.raises(UserError, match="not finite") as caught:
    folder.train("absurd", LEARNING_RATE=3e38, EVAL_PERIOD=1,
                 optimizers__Adafactor__multiply_by_parameter_scale=True)
  assert "lower LEARNING_RATE" in caught.value.fix
  assert np.isfinite(folder.prompt("absurd")).all()


def test_patience_stops_the_run_and_the_same_command_does_not_go_on(folder):
  settings = folder.config("patient", TRAIN_STEPS=50, EVAL_PERIOD=1, LEARNING_RATE=1e-30,
                           optimizers__Adafactor__weight_decay_rate=None)
  settings = dataclasses.replace(settings, patience=2)
  outcome = train(settings)
  assert outcome.step == 2 and not outcome.interrupted
  assert folder.summary("patient")["stopped_early"] and folder.summary("patient")["best_step"] == 0
  rows = folder.metrics("patient")
  assert train(settings).step == 2 and folder.metrics("patient") == rows


def test_model_tuning_of_one_slice_and_a_run_on_its_backbone(tmp_path, capsys):
  text = Folder(tmp_path).gin.read_text()
  folder = Folder(tmp_path, ("models/tiny.gin", "runs/model_tune.gin"),
                  text.replace("PROMPT_LENGTH = 4\n", ""))
  pattern = "encoder/layers/mlp/.*[-1:]"
  outcome = folder.train("slice", TRAINABLE=(pattern,), TRAIN_STEPS=4, DROPOUT_RATE=0.0)
  settings = folder.config("slice", TRAINABLE=(pattern,), DROPOUT_RATE=0.0)
  start, trained = settings.model.load_backbone(0), outcome.params["backbone"]
  changed = trees.differences(start, trained)
  assert changed and all(path.startswith("encoder/layers/mlp/") for path in changed)
  before, after = trees.flatten(start), trees.flatten(trained)
  for path in changed:
    assert np.array_equal(before[path][0], after[path][0])
    assert not np.array_equal(before[path][1], after[path][1])
  assert not (tmp_path / "slice" / "prompt.npy").exists()
  assert folder.summary("slice")["trained"]["parameters"] == sum(
    before[path][1].size for path in changed)
  run_report.started(folder.summary("slice"))
  assert "the encoder, which is scanned" in " ".join(capsys.readouterr().out.split())

  prompted = Folder(tmp_path)
  outcome = prompted.train("on_slice", INITIAL_CHECKPOINT_PATH=str(tmp_path / "slice"),
                           TRAIN_STEPS=1)
  assert trees.differences(outcome.params["backbone"], trained) == []
  summary = prompted.summary("on_slice")
  assert summary["backbone"]["fingerprint"] == backbone_files.fingerprint(trained)
  assert summary["restored"]["parameters"] == trees.count(trained)
  run_report.started(summary)
  assert "scanned" not in capsys.readouterr().out

  weights = tmp_path / "slice" / "backbone" / backbone_files.WEIGHTS
  save_file({path: leaf + 1 for path, leaf in load_file(weights).items()}, weights)
  with pytest.raises(UserError, match="The backbone of the run in MODEL_DIR has changed") as caught:
    prompted.train("on_slice", INITIAL_CHECKPOINT_PATH=str(tmp_path / "slice"), TRAIN_STEPS=2)
  assert caught.value.wanted == f"fingerprint {summary['backbone']['fingerprint']}"
  assert prompted.summary("on_slice") == summary
