"""The demo, a few steps of it: the tables it promises and the run it leaves."""

import pytest

from prompt_tuning import demo

pytestmark = pytest.mark.e2e


def test_the_demo_shows_what_was_learned(tmp_path, monkeypatch, capsys):
  target = tmp_path / "run"
  short = {"TRAIN_STEPS": 4, "EVAL_PERIOD": 2, "BATCH_SIZE": 8}
  full = demo.demo_flags

  def few_steps(model_dir):
    kept = [flag for flag in full(model_dir)
            if flag.split("=")[0].removeprefix("--gin.") not in short]
    return kept + [f"--gin.{name}={value}" for name, value in short.items()] + [
      "--gin.evaluate.EvalSettings.max_examples=64"]

  monkeypatch.setattr(demo, "demo_flags", few_steps)
  assert demo.run(str(target)) == 0
  printed = capsys.readouterr().out
  for expected in ("prompt-tuning train --gin_file=models/tiny.gin", "majority class",
                   "frozen T5, no prompt", "frozen T5, learned prompt", "examples", "240",
                   "some predictions", "nearest words",
                   "Trained 5,120 of 2,966,272 parameters (0.17%)", str(target)):
    assert expected in printed, expected
  for name in ("prompt.npy", "metrics.csv", "loss.png", "summary.json", "config.gin"):
    assert (target / name).is_file(), name


def test_the_demo_command_is_the_train_command(tmp_path):
  flags = demo.demo_flags(str(tmp_path))
  assert f"--gin.MIXTURE_OR_TASK_NAME={demo.TASK}" in flags
  assert f"--gin.MODEL_DIR={tmp_path}" in flags
