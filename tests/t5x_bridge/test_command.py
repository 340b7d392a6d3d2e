"""`prompt-tuning t5x ...` up to the point where it becomes T5X; a folder stands for T5X."""

import sys

import pytest

from prompt_tuning import gin_files
from prompt_tuning.errors import UserError
from prompt_tuning.main import main
from prompt_tuning.t5x_bridge import command

FINETUNE = """
MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = %gin.REQUIRED
train_script.train.model_dir = %MODEL_DIR
train_script.train.total_steps = %TRAIN_STEPS
train_script.train.eval_period = %EVAL_PERIOD
"""
FILES = ["--gin_file=t5x/runs/prompt_tune.gin", "--gin_file=prompts/soft.gin",
         "--gin_file=models/tiny.gin"]


@pytest.fixture
def t5x(tmp_path):
  folder = tmp_path / "site/t5x"
  (folder / "configs/runs").mkdir(parents=True)
  for name in ("finetune", "eval", "infer"):
    (folder / f"configs/runs/{name}.gin").write_text(FINETUNE)
  return folder


def test_paths_order_and_quotes(t5x, tmp_path):
  (tmp_path / "mine.gin").write_text("PROMPT_LENGTH = 7\n")
  found = command.arguments("train", [
    f"--gin_file={tmp_path / 'mine.gin'}", "--gin_file=t5x/optimizers/adamw.gin", *FILES,
    "--gin.MODEL_DIR=/a/b", "--gin.TRAIN_STEPS=5", "--tfds_data_dir=/data", "--multiprocess_gpu",
    "--gin_search_paths=here"], t5x)
  assert found == [
    sys.executable, "-m", "t5x.train",
    f"--gin_search_paths=here,{gin_files.shipped_folder()},{t5x.parent}",
    "--gin_file=models/tiny.gin", "--gin_file=prompts/soft.gin",
    "--gin_file=t5x/runs/prompt_tune.gin", "--gin_file=t5x/optimizers/adamw.gin",
    f"--gin_file={tmp_path / 'mine.gin'}", "--gin.MODEL_DIR='/a/b'", "--gin.TRAIN_STEPS=5",
    "--tfds_data_dir=/data", "--multiprocess_gpu"]


def test_the_order_of_files_does_not_matter(t5x):
  assert command.arguments("train", FILES, t5x) == command.arguments("train", FILES[::-1], t5x)


@pytest.mark.parametrize("job, flags, message", [
  ("trian", FILES, "T5X has no such command(.*\n)*.*did you mean 'train'"),
  ("train", [*FILES, "--gin.PROMPT_LENGHT=5"], "macro PROMPT_LENGHT(.*\n)*.*'PROMPT_LENGTH'"),
  ("train", [*FILES, "--gin_file=runs/prompt_tune.gin"],
   "native commands(.*\n)*.*--gin_file=t5x/runs/prompt_tune.gin"),
  ("eval", ["--gin_file=runs/eval.gin"], "native commands(.*\n)*.*t5x/runs/eval.gin"),
  ("train", [], "No gin file is named(.*\n)*.*models/tiny.gin"),
  ("train", ["--gin_file=models/tny.gin"], "no gin file(.*\n)*.*models/tiny.gin"),
  ("train", [*FILES, "--gin.MODEL_DIR="], "has no value")])
def test_mistakes(t5x, job, flags, message):
  with pytest.raises(UserError, match=message):
    command.arguments(job, flags, t5x)


def test_a_macro_that_nothing_reads_in_a_file(t5x, tmp_path):
  """In the user's own; T5X's files, and what others' files set for others, are left alone."""
  theirs, mine = tmp_path / "theirs.gin", tmp_path / "mine.gin"
  theirs.write_text("UNUSED = 1\n")
  (t5x / "theirs_too.gin").write_text("UNUSED = 1\n")
  mine.write_text(f"include '{theirs}'\nTRAIN_STEPZ = 5\n")
  with pytest.raises(UserError, match="TRAIN_STEPZ(.*\n)*.*mine.gin line 2(.*\n)*.*'TRAIN_STEPS'"):
    command.arguments("train", [*FILES, f"--gin_file={mine}"], t5x)
  mine.write_text(f"include '{theirs}'\nTRAIN_STEPS = 5\n")
  found = command.arguments("train", [*FILES, f"--gin_file={mine}",
                                      "--gin_file=t5x/theirs_too.gin"], t5x)
  assert f"--gin_file={mine}" in found


def test_a_scope_or_a_field_is_left_to_gin(t5x):
  found = command.arguments("train", [*FILES, "--gin.utils.SaveCheckpointConfig.keep=3"], t5x)
  assert found[-1] == "--gin.utils.SaveCheckpointConfig.keep=3"


def test_relative_paths_are_made_absolute(t5x, tmp_path, monkeypatch):
  """Orbax refuses others, after T5X has loaded the model."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "checkpoint_1").mkdir()
  found = command.arguments("train", [
    *FILES, "--gin.MODEL_DIR=run", "--gin.INITIAL_CHECKPOINT_PATH=checkpoint_1"], t5x)
  assert found[-2:] == [f"--gin.MODEL_DIR='{tmp_path}/run'",
                        f"--gin.INITIAL_CHECKPOINT_PATH='{tmp_path}/checkpoint_1'"]
  kept = ["--gin.MODEL_DIR='gs://bucket/run'", "--gin.INITIAL_CHECKPOINT_PATH='gs://b/c'"]
  assert command.arguments("train", [*FILES, *kept], t5x)[-2:] == kept


def test_without_t5x_the_command_says_where_to_read(monkeypatch, capsys):
  monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
  assert main(["t5x", "train", *FILES]) == 2
  assert "T5X is not installed" in (text := capsys.readouterr().err) and "docs/t5x.md" in text


def test_it_becomes_t5x(t5x, monkeypatch):
  became = []
  monkeypatch.setattr(command, "t5x_folder", lambda: t5x)
  monkeypatch.setattr(command.os, "execv", lambda path, argv: became.append((path, argv)))
  assert main(["t5x", "train", *FILES, "--debug"]) == 0
  assert became == [(sys.executable, command.arguments("train", FILES, t5x))]
