"""What commands take from the runs that they are given, and what outranks it."""

import argparse
import pathlib

import pytest
from small_models import GIN

from prompt_tuning import config
from prompt_tuning.command_line import Arguments
from prompt_tuning.errors import UserError
from prompt_tuning.eval_run import EvalConfig
from prompt_tuning.infer import InferConfig
from prompt_tuning.mixed_eval import MixedEvalConfig
from prompt_tuning.train import TrainConfig


def save_run(root, name, *flags, labels=("yes", "no"), lengths=(12, 4)):
  """A MODEL_DIR with the config.gin of a run on a user's files; nothing is trained."""
  (root / "small.gin").write_text(GIN)
  (root / "rows.tsv").write_text("text\tlabel\ngood dog\tyes\nbad dog\tno\n")
  files = ["models/tiny.gin", "prompts/soft.gin", "runs/your_data.gin", "runs/prompt_tune.gin",
           str(root / "small.gin")]
  bindings, _ = config.split_gin_flags([
    f"--gin.TRAIN_FILE={root / 'rows.tsv'}", f"--gin.VALIDATION_FILE={root / 'rows.tsv'}",
    "--gin.INPUTS='{text}'", "--gin.TARGETS='{label}'", f"--gin.LABELS={labels!r}",
    f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {lengths[0]}, 'targets': {lengths[1]}}}",
    "--gin.BATCH_SIZE=8", f"--gin.MODEL_DIR={root / name}", *flags])
  config.load(["commands/train.gin", *files], bindings)
  config.build(TrainConfig)
  (root / name).mkdir()
  (root / name / "config.gin").write_text(config.operative())
  (root / name / "settings.json").write_text("{}")
  return str(root / name)


def load(command, *flags, files=(), prompts=()):
  bindings, _ = config.split_gin_flags(flags)
  options = argparse.Namespace(gin_file=[str(file) for file in files], gin_search_paths=[],
                               prompt_pairs=list(prompts))
  Arguments(options, bindings).load(command)
  classes = {"eval": EvalConfig, "infer": InferConfig, "eval_prompts": MixedEvalConfig}
  return config.build(classes[command])


def test_gin_files_that_do_not_say_the_model_join_the_settings_of_the_run(tmp_path):
  run = save_run(tmp_path, "run")
  alone = load("eval", f"--gin.MODEL_DIR={run}")
  assert alone.model.backbone.emb_dim == 16 and alone.task.name == "your_data"
  found = load("eval", f"--gin.MODEL_DIR={run}", files=["runs/eval.gin"])
  assert found.model == alone.model and found.task.source == alone.task.source
  assert found.task.feature_lengths == alone.task.feature_lengths != {"inputs": 512, "targets": 64}
  assert load("infer", f"--gin.MODEL_DIR={run}", "--gin.INPUT_FILE=-",
              files=["runs/infer.gin"]).labels == ("yes", "no")


def test_files_of_the_user_outrank_the_run_and_shipped_ones_ask_it_for_values(tmp_path):
  run = save_run(tmp_path, "run")
  mine = tmp_path / "mine.gin"
  mine.write_text(f"BATCH_SIZE = 3\nMODEL_DIR = {run!r}\n")
  assert load("eval", files=[mine]).eval_settings.batch_size == 3
  found = load("eval", f"--gin.MODEL_DIR={run}", "--gin.TEST_FILE=new.tsv",
               files=["runs/your_data.gin"])
  assert found.task.source.labels == ("yes", "no") and found.task.source.test_file == "new.tsv"
  assert found.task.source.train_file == str(tmp_path / "rows.tsv")


def test_files_with_a_model_say_everything(tmp_path):
  run = save_run(tmp_path, "run")
  with pytest.raises(UserError, match="no value for MIXTURE_OR_TASK_NAME"):
    load("eval", f"--gin.MODEL_DIR={run}", files=["models/tiny.gin"])


def test_a_model_dir_without_a_run_beside_gin_files(tmp_path):
  with pytest.raises(UserError, match="MODEL_DIR holds no run"):
    load("eval", f"--gin.MODEL_DIR={tmp_path}", files=["runs/eval.gin"])


def of_prompts(tmp_path, *flags, files=(), **sources):
  prompts = [f"{name}={source}" for name, source in sources.items()]
  return load("infer", "--gin.INPUT_FILE=-", *flags, files=files, prompts=prompts)


def test_labels_and_lengths_are_those_of_each_run_in_any_order(tmp_path):
  a = save_run(tmp_path, "a", lengths=(12, 8))
  b = save_run(tmp_path, "b", labels=None, lengths=(30, 4))
  for order in ({"a": a, "b": b}, {"b": b, "a": a}):
    found = of_prompts(tmp_path, **order, c="none")
    assert found.labels == {"a": ("yes", "no")}
    assert found.task.feature_lengths == {"inputs": 30, "targets": 8}
    assert found.model_dir is None
  assert of_prompts(tmp_path, b=b).labels is None
  assert of_prompts(tmp_path, a=a, c="none").labels == {"a": ("yes", "no")}
  # Of one name they are the task's own too.
  alone = of_prompts(tmp_path, a=a)
  assert alone.labels == alone.task.source.labels == ("yes", "no")
  mixed = load("eval_prompts", prompts=[f"your_data={a}", f"b={b}"])
  assert mixed.task.source.labels == ("yes", "no")
  assert mixed.task.feature_lengths == {"inputs": 30, "targets": 8}


def test_labels_of_the_command_line_and_of_files_outrank_those_of_runs(tmp_path):
  runs = {"a": save_run(tmp_path, "a"), "b": save_run(tmp_path, "b", labels=("1", "2"))}
  assert of_prompts(tmp_path, **runs).labels == {"a": ("yes", "no"), "b": ("1", "2")}
  assert of_prompts(tmp_path, "--gin.LABELS={'b': ['x', 'y']}", **runs).labels == {"b": ("x", "y")}
  assert of_prompts(tmp_path, "--gin.LABELS=None", **runs).labels is None
  (tmp_path / "mine.gin").write_text("LABELS = {'a': ['x', 'y']}\n")
  assert of_prompts(tmp_path, files=[tmp_path / "mine.gin"], **runs).labels == {"a": ("x", "y")}
  with pytest.raises(UserError, match="do not say which task they are of(.|\n)*{'a': .'x', 'y'.}"):
    of_prompts(tmp_path, "--gin.LABELS=['x', 'y']", **runs)
  assert of_prompts(tmp_path, "--gin.LABELS=['x', 'y']", a=runs["a"]).labels == ("x", "y")


def test_runs_that_do_not_go_together(tmp_path):
  a, b = save_run(tmp_path, "a"), save_run(tmp_path, "b", labels=("1", "2"))
  with pytest.raises(UserError, match="The prompts of 'a' choose among different labels"):
    load("infer", "--gin.INPUT_FILE=-", prompts=[f"a={a}", f"a={b}"])
  assert load("infer", "--gin.INPUT_FILE=-", "--gin.LABELS=['x', 'y']",
              prompts=[f"a={a}", f"a={b}"]).labels == ("x", "y")
  c = save_run(tmp_path, "c", "--gin.LEADING_SENTINEL=True")
  with pytest.raises(UserError, match="These runs do not go together(.|\n)*LEADING_SENTINEL"):
    of_prompts(tmp_path, a=a, c=c)


def test_tasks_over_files_are_those_of_each_run(tmp_path):
  a = save_run(tmp_path, "a", lengths=(12, 4))
  b = save_run(tmp_path, "b", "--gin.LEADING_SENTINEL=False", labels=("1", "2"), lengths=(30, 4))
  for prompts in ([f"mine={a}", f"other={b}/prompt.npy"], [f"your_data={a}", f"other={b}"],
                  [f"mine={a}", f"your_data={b}"]):
    found = load("eval_prompts", "--gin.TEST_FILE=new.tsv", prompts=prompts)
    one, two = (found.task_of(name) for name, _ in found.prompts)
    assert one.source.labels == ("yes", "no") and one.source.test_file == "new.tsv"
    assert two.source.labels == ("1", "2") and two.source.test_file is None
    assert one.feature_lengths == two.feature_lengths == {"inputs": 30, "targets": 4}
  # A name of the table is that task.
  found = load("eval_prompts", prompts=[f"mine={a}", f"glue_sst2={b}"])
  assert (found.task_of("glue_sst2").name, found.task_of("glue_sst2").source) == (
    "glue_sst2", None)
  found = load("eval_prompts", prompts=[f"mine={a}", f"other={a}", f"other={b}"])
  with pytest.raises(UserError, match="The runs of 'other' are of different files"):
    found.task_of("other")
  with pytest.raises(UserError, match="or a task over files in TASKS\n.*did you mean 'glue_sst2'"):
    load("eval_prompts", prompts=[f"mine={a}", "glue_sst=none"]).task_of("glue_sst")


def test_tasks_over_files_that_no_run_says(tmp_path):
  """The gin file of docs/serving.md."""
  text = (pathlib.Path(__file__).parents[1] / "docs/serving.md").read_text()
  lines = text.split("  from __gin__ import")[1].split("  ```")[0].splitlines()
  rows = tmp_path / "train.tsv"
  mine = "\n".join(["from __gin__ import" + lines[0], *(line[2:] for line in lines[1:])])
  (tmp_path / "tasks.gin").write_text(mine.replace("'train.tsv'", f"'{rows}'").replace(
    "'dev.tsv'", f"'{rows}'"))
  run = save_run(tmp_path, "a")
  found = load("eval_prompts", files=[tmp_path / "tasks.gin"],
               prompts=[f"mine={tmp_path / 'x.npy'}", f"other={run}"])
  assert found.task_of("mine").source.labels == ["bad", "good"]
  assert found.task_of("other").source.labels == ("yes", "no")
