"""What `TrainConfig` refuses before anything is read, with a flag that can be given."""

from types import SimpleNamespace

import pytest

from prompt_tuning import config as gin_config
from prompt_tuning.errors import UserError
from prompt_tuning.train_config import TrainConfig


def build(**changes):
  settings = {"model": SimpleNamespace(prompt=None), "task": SimpleNamespace(pack=False),
              "optimizer": None, "model_dir": "x", "train_steps": 8, "batch_size": 4}
  return TrainConfig(**settings | changes)


def test_a_dtype_of_the_exported_backbone():
  assert build(export_dtype="bfloat16").export_dtype == "bfloat16"
  with pytest.raises(UserError, match="not stored in this dtype") as caught:
    build(export_dtype="bf16")
  assert caught.value.found == "--gin.EXPORT_DTYPE=bf16"
  assert caught.value.fix == "--gin.EXPORT_DTYPE=bfloat16"


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "5"])
@pytest.mark.parametrize("name, flag", [
  ("train_steps", "TRAIN_STEPS"), ("batch_size", "BATCH_SIZE"), ("eval_period", "EVAL_PERIOD"),
  ("log_period", "LOG_PERIOD"), ("patience", "PATIENCE"),
  ("prefetch", "train.TrainConfig.prefetch")])
def test_counts(name, flag, value):
  with pytest.raises(UserError, match=f"TrainConfig.{name} is not a count") as caught:
    build(**{name: value})
  assert caught.value.fix.startswith(f"--gin.{flag}=")
  assert "." in flag or flag in gin_config.macros_of(["commands/train.gin"], [])


def test_no_patience():
  assert build().patience is None and build(patience=1).patience == 1
