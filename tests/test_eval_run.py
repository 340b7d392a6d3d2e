"""Which evaluations belong into a run's metrics.csv: of what it trained, as it was trained."""

import dataclasses
import json

import pytest
from small_models import model

from prompt_tuning import eval_run
from prompt_tuning.eval_run import EvalConfig
from prompt_tuning.evaluate import EvalSettings
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.run_dir import describe
from prompt_tuning.tasks.files import FileTask
from prompt_tuning.tasks.variants import Variant

TASK = TaskConfig(name="mine", feature_lengths={"inputs": 8, "targets": 4})


@pytest.fixture
def differs(tmp_path, monkeypatch):
  """Names of the settings in which an evaluation differs from a run."""
  monkeypatch.chdir(tmp_path)
  for name in ("train", "test"):
    (tmp_path / f"{name}.tsv").write_text("text\tlabel\na b\tyes\n")
  source = FileTask(train_file="train.tsv", inputs="{text}", targets="{label}", name="mine")
  task = dataclasses.replace(TASK, source=source)

  def of(trained=None, **changes):
    settings = {"model": model(), "task": task, "eval_settings": EvalSettings()}
    run = settings | {"seed": 0, "eval_settings": EvalSettings(**(trained or {}))}
    (tmp_path / "settings.json").write_text(json.dumps(describe(run)))
    for name in ("model", "task", "source", "eval_settings"):
      fields = {key.partition("__")[2]: changes.pop(key) for key in list(changes)
                if key.startswith(f"{name}__")}
      if name == "source" and fields:
        settings["task"] = dataclasses.replace(
          settings["task"], source=dataclasses.replace(source, **fields))
      elif fields:
        settings[name] = dataclasses.replace(settings[name], **fields)
    return sorted(eval_run._differs(EvalConfig(model_dir=str(tmp_path), **settings | changes)))

  return of


def test_the_run_s_own(differs, tmp_path):
  assert differs() == []
  assert differs(eval_settings__split="test", source__test_file="test.tsv") == []
  assert differs(source__train_file=str(tmp_path / "train.tsv")) == []
  assert differs(model__layout="fsdp", eval_settings__batch_size=2, task__shuffle=False) == []
  # Another task has its own name in metrics.csv; the tasks of a mixture too.
  assert differs(task__name="other", task__source=None) == []
  part = dataclasses.replace(TASK, name="part")
  assert differs(mixture=dataclasses.replace(TASK, name="all"), task=part) == []
  # A run that is judged by its loss, or by few rows, is decoded, and tested on all.
  assert differs({"method": "loss"}) == []
  assert differs({"method": "rank", "max_examples": 2}, eval_settings__split="test") == []


@pytest.mark.parametrize("changes, key", [
  ({"prompt_file": "prompt.npy"}, "prompt_file"), ({"seed": 1}, "seed"),
  ({"model__initial_checkpoint_path": "tiny"}, "model.initial_checkpoint_path"),
  ({"model__vocabulary": "tiny"}, "model.vocabulary"),
  ({"model__frozen_dtype": "int8"}, "model.frozen_dtype"),
  ({"model__template": "{inputs}{prompt}"}, "model.template"),
  ({"model__prompt": model().prompt.clone(length=4)}, "model.prompt.length"),
  ({"task__feature_lengths": {"inputs": 6, "targets": 4}}, "task.feature_lengths.inputs"),
  ({"task__variant": Variant(taskless=True)}, "task.variant.taskless"),
  ({"task__variant": Variant(k_shot=3), "task__name": "other"}, "task.variant.k_shot"),
  ({"source__inputs": "it is {text}"}, "task.source.inputs"),
  ({"source__train_file": "test.tsv"}, "task.source.train_file"),
  ({"eval_settings__method": "decode"}, "eval_settings.method"),
  ({"eval_settings__max_examples": 1, "eval_settings__split": "test"},
   "eval_settings.max_examples")])
def test_anything_else(differs, changes, key):
  assert differs(**changes) == [key]


@pytest.mark.parametrize("trained, key", [
  ({"method": "rank"}, "eval_settings.method"),
  ({"max_examples": 2}, "eval_settings.max_examples")])
def test_rows_of_the_split_that_it_was_chosen_by_are_judged_alike(differs, trained, key):
  assert differs(trained) == [key]


def test_a_mixture_that_is_varied_otherwise(differs):
  mixture = dataclasses.replace(TASK, name="all", variant=Variant(taskless=True))
  assert differs(mixture=mixture, task=dataclasses.replace(TASK, name="part")) == [
    "task.variant.taskless"]
