"""The command line, in-process: help, near misses, exit codes, and a small run from end to end."""

import contextlib
import io
import json
import os
import sys
import types

import pytest
from small_models import GIN, save_backbone

from prompt_tuning import config
from prompt_tuning import train as train_module
from prompt_tuning.command_line import Command
from prompt_tuning.main import COMMANDS, main
from prompt_tuning.native_logs import quiet_imports
from prompt_tuning.tasks import table
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec

CLASSES = {"good": "yes", "bad": "no"}
THINGS = ("dog", "cat", "tree", "car")


class Toy:
  """A task source of two rows."""

  splits = ("train",)

  def rows(self, split):
    return iter([{"inputs": "abcdefgh", "targets": "yes"}, {"inputs": "ab", "targets": "no"}])

  def fingerprint(self):
    return "toy"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A trained run: its folder, exit code, output, and flags that name model and data."""
  root = tmp_path_factory.mktemp("cli")
  rows = [f"{word} {thing}\t{label}" for word, label in CLASSES.items() for thing in THINGS]
  for name in ("train", "dev", "test"):
    (root / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
  (root / "small.gin").write_text(GIN)
  save_backbone(root / "backbone")
  flags = ["--gin_file=models/tiny.gin", "--gin_file=prompts/soft.gin",
           "--gin_file=runs/your_data.gin", f"--gin_file={root / 'small.gin'}",
           *(f"--gin.{split}_FILE={root / file}.tsv" for split, file in (
             ("TRAIN", "train"), ("VALIDATION", "dev"), ("TEST", "test"))),
           f"--gin.INITIAL_CHECKPOINT_PATH={root / 'backbone'}", "--gin.INPUTS='{text}'",
           "--gin.TARGETS='{label}'", "--gin.LABELS=['yes', 'no']",
           "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 4}"]
  command = ["train", *flags, "--gin_file=inits/class_labels.gin",
             "--gin_file=runs/prompt_tune.gin", "--gin.CLASS_LABELS=['yes', 'no']",
             "--gin.PROMPT_LENGTH=4", "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2",
             "--gin.BATCH_SIZE=8", f"--gin.MODEL_DIR={root / 'run'}"]
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    code = main(command)
  config.clear()
  return types.SimpleNamespace(root=root, folder=root / "run", code=code, out=out.getvalue(),
                               flags=flags)


def test_help(capsys):
  assert main(["--help"]) == 0
  out = capsys.readouterr().out
  for name, command in COMMANDS.items():
    assert name in out
    assert main([name, "--help"]) == 0
    assert ("--gin_file" in capsys.readouterr().out) == command.takes_gin


def test_help_lists_the_macros_of_gin_files(tmp_path, capsys):
  mine = tmp_path / "mine.gin"
  mine.write_text("BATCH_SIZE = 4\n")
  assert main(["train", "--help", "--gin_file=prompts/soft.gin", "--gin_file=runs/prompt_tune.gin",
               f"--gin_file={mine}"]) == 0
  out = capsys.readouterr().out
  assert "--host_timeout" in out
  assert "  BACKBONE = must be given\n      -> run_config.ModelConfig.backbone, soft." in out
  assert f"  BATCH_SIZE = 4 ({mine})\n      -> train.TrainConfig.batch_size\n" in out
  assert "  PROMPT_LENGTH = 100 (prompts/soft.gin)\n      -> soft.SoftPrompt.length\n" in out
  first, last = out.index("  TASK_FEATURE_LENGTHS = must be given"), out.index("  BATCH_SIZE = ")
  assert first < last
  assert main(["inspect", "--help", "--gin_file=models/tiny.gin"]) == 0
  assert "  VOCABULARY = 'tiny' (models/tiny.gin)" in capsys.readouterr().out
  rivals = [f"--gin_file=prompts/{name}.gin" for name in ("soft", "deep")]
  assert main(["train", "--help", *rivals]) == 2
  assert "set twice at the same rank" in capsys.readouterr().err


def test_without_a_command(capsys):
  assert main([]) == 2
  assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("argv, message", [
  (["trian"], "did you mean 'train'"),
  (["info", "--gin_fil=x"], "did you mean '--gin_file'"),
  (["info", "--jsn"], "did you mean '--json'?"),
  (["tasks", "--gin.TASKLESS=True"], "settings vary one task"),
  (["tasks", "docstring_match", "--gin.TASKLES=True"], "did you mean 'TASKLESS'"),
  (["inspect"], "PROMPT"),
  (["tasks", "docstring_libary"], "did you mean 'docstring_library'"),
  (["tasks", "docstring_library", "--vocabulary=huge"], "no vocabulary 'huge'"),
  (["info", "--gin_file=models/tiny.gin", "--gin.FROZN_DTYPE='bfloat16'"],
   "did you mean 'FROZEN_DTYPE'"),
  (["info", "--gin_file=models/tny.gin"], "did you mean 'models/tiny.gin'"),
  (["info", "--gin.PROMPT_LENGTH"], "--gin.PROMPT_LENGTH has no value")])
def test_mistakes(argv, message, capsys):
  assert main(argv) == 2
  error = capsys.readouterr().err
  assert message in error and "  wanted: " in error and "Traceback" not in error


def test_debug_shows_the_traceback(capsys):
  assert main(["info", "--debug"]) == 2
  error = capsys.readouterr().err
  assert "Traceback" in error and "no value for" in error


def test_keyboard_interrupt(monkeypatch, capsys):
  def stop(arguments):
    raise KeyboardInterrupt
  monkeypatch.setitem(COMMANDS, "demo", Command("", stop, None, False))
  assert main(["demo"]) == 130
  assert "Interrupted." in capsys.readouterr().err


def test_start_up_notes_are_dropped_and_errors_kept(capfd):
  with pytest.raises(ZeroDivisionError), quiet_imports():
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\n"
                b"I0000 00:00:1795410217.703818   17565 port.cc:153] oneDNN\n"
                b"E0000 00:00:1795410228.466888   17565 cuda_platform.cc:52] cuInit\n"
                b"E0000 00:00:1795410228.466888   17565 file.cc:52] a real error\nplain\n")
    raise ZeroDivisionError
  os.write(2, b"after\n")
  assert capfd.readouterr().err == (
    "E0000 00:00:1795410228.466888   17565 file.cc:52] a real error\nplain\nafter\n")


def test_modules_in_the_working_folder_are_found_after_all_others(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  packages = [each for each in sys.path if each not in ("", ".", os.getcwd())]
  monkeypatch.setattr(sys, "path", list(packages))
  (tmp_path / "my_own_tasks.py").write_text("class Thing:\n  pass\n")
  (tmp_path / "mine.gin").write_text("from __gin__ import dynamic_registration\n"
                                     "import my_own_tasks\nimport not_my_tasks\n")
  assert main(["info", "--gin_file=mine.gin"]) == 2
  error = capsys.readouterr().err
  assert "cannot import not_my_tasks" in error and "PYTHONPATH" in error
  assert "my_own_tasks" in sys.modules and sys.path == [*packages, str(tmp_path)]
  del sys.modules["my_own_tasks"]


def test_tasks(capsys, monkeypatch):
  monkeypatch.setattr(table, "_rows", dict(table._rows))
  table.add(TaskSpec(name="cli_toy", source=Toy(), to_text=dict, labels=("yes", "no"),
                     metrics=("accuracy",), description="two rows"))
  table.add(MixtureSpec(name="cli_mixture", rates={"cli_toy": 2.0}))
  assert main(["tasks"]) == 0
  out = capsys.readouterr().out
  assert "cli_toy" in out and "cli_mixture" in out and "classification" in out
  assert main(["tasks", "cli_toy", "--examples=1", "--vocabulary=bytes"]) == 0
  out = capsys.readouterr().out
  assert "train 1 inputs: abcdefgh\ntrain 1 targets: yes\n" in out and "train 2" not in out
  # 8 bytes and the end of the sequence, in multiples of 8.
  assert "TASK_FEATURE_LENGTHS=\"{'inputs': 16, 'targets': 8}\"" in out
  assert main(["tasks", "cli_toy", "--gin.TASK_LABELS={'yes': 'right'}",
               "--gin.TASK_SPLITS={'train': 'train[:1]', 'validation': 'train[1:]'}"]) == 0
  out = capsys.readouterr().out
  assert "train 1 targets: right\n" in out and "labels: right, no\n" in out and "validation" in out
  assert main(["tasks", "cli_mixture"]) == 0
  assert "cli_toy  rate 2" in capsys.readouterr().out
  assert main(["tasks", "cli_mixture", "--gin.TASKLESS=True"]) == 2
  assert "Settings vary one task, and this is a mixture" in capsys.readouterr().err


def test_the_task_of_files(tmp_path, capsys):
  (tmp_path / "train.tsv").write_text("sentence\tlabel\nabcdefgh\t1\nab\t0\n")
  flags = ["--gin_file=runs/your_data.gin", f"--gin.TRAIN_FILE={tmp_path / 'train.tsv'}",
           "--gin.VALIDATION_FILE=None", "--gin.INPUTS=say: {sentence}", "--gin.TARGETS='{label}'",
           "--gin.LABELS=[0, 1]", "--vocabulary=bytes", "--examples=1"]
  assert main(["tasks", "your_data", *flags]) == 0
  out = capsys.readouterr().out
  assert "train 1 inputs: say: abcdefgh\ntrain 1 targets: 1\n" in out and "labels: 0, 1" in out
  assert "TASK_FEATURE_LENGTHS=\"{'inputs': 16, 'targets': 8}\"" in out
  assert main(["tasks", "your_dat", *flags]) == 2
  assert "did you mean 'your_data'" in capsys.readouterr().err


def test_train(run):
  assert run.code == 0
  for text in ("initialised", "restored", "trained", "8 training rows", "best evaluation",
               f"prompt-tuning eval --gin.MODEL_DIR={run.folder}"):
    assert text in run.out
  for name in ("prompt.npy", "config.gin", "summary.json", "metrics.csv", "loss.png"):
    assert (run.folder / name).is_file()
  assert json.loads((run.folder / "summary.json").read_text())["started_in"] == os.getcwd()


def test_a_stopped_run_is_neither_done_nor_an_error(run, monkeypatch, capsys):
  outcome = train_module.Outcome({}, None, 1, True, {})
  monkeypatch.setattr(train_module, "train", lambda *args, **kwargs: outcome)
  code = main(["train", *run.flags, "--gin_file=runs/prompt_tune.gin",
               f"--gin.MODEL_DIR={run.root / 'new'}"])
  out = capsys.readouterr().out
  assert code == 75 and "Stopped at step 1 of 30000" in out and "The same command resumes." in out


def test_eval_of_a_run_needs_its_folder_alone(run, capsys):
  for _ in range(2):
    assert main(["eval", f"--gin.MODEL_DIR={run.folder}", "--gin.SPLIT=test"]) == 0
    config.clear()
  assert "your_data, test" in capsys.readouterr().out
  report = json.loads((run.folder / "eval_your_data_test.json").read_text())
  lines = (run.folder / "predictions_your_data_test.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row["input"] for row in rows[:2]] == ["good dog", "good cat"]
  right = sum(row["target"] == row["prediction"] for row in rows)
  assert report["metrics"]["accuracy"] == right / 8 and report["split"] == "test"
  logged = [line for line in (run.folder / "metrics.csv").read_text().splitlines()
            if ",test,accuracy," in line]
  step = json.loads((run.folder / "summary.json").read_text())["best_step"]
  assert logged == [f"{step},test,accuracy,{right / 8!r}"]


def test_numbers_of_other_weights_or_rows_do_not_join_the_run_s(run, capsys):
  before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
  for change in ("FROZEN_DTYPE=int8", "MAX_EXAMPLES=3", f"PROMPT_FILE={run.folder}/prompt.npy"):
    assert main(["eval", f"--gin.MODEL_DIR={run.folder}", "--gin.SPLIT=test",
                 f"--gin.{change}"]) == 0
    config.clear()
    assert "Not in the run's metrics.csv" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    assert before.items() <= after.items()
    (report,) = (json.loads(after[name]) for name in after.keys() - before.keys()
                 if name.startswith("eval_your_data_test_"))
    (key,) = report["differs_from_the_run"]
    assert key.rpartition(".")[2].upper() == change.partition("=")[0]
    before = after


def test_a_run_that_is_not_there(run, capsys):
  for command in ("eval", "infer", "merge"):
    assert main([command, f"--gin.MODEL_DIR={run.root / 'typo'}"]) == 2
    assert "MODEL_DIR holds no run" in (error := capsys.readouterr().err) and "typo" in error


def test_relative_paths_of_a_run_begin_where_it_was_started(run, capsys, monkeypatch, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  for name in ("settings.json", "prompt.npy"):
    (folder / name).write_bytes((run.folder / name).read_bytes())
  # The same run, as it would be if it had been started with paths from its root.
  config_text = (run.folder / "config.gin").read_text().replace(f"{run.root}/", "")
  (folder / "config.gin").write_text(config_text)
  (folder / "summary.json").write_text(json.dumps({"started_in": str(run.root)}))
  monkeypatch.chdir(tmp_path)
  note = f"was started in {run.root}: its relative paths begin there"
  assert main(["eval", "--gin.MODEL_DIR=run"]) == 2
  error = capsys.readouterr().err
  assert "train.tsv cannot be read" in error and note in error
  # A mistake in another path is no matter of folders.
  assert main(["eval", f"--gin.MODEL_DIR={run.folder}", "--gin.TEST_FILE=nowhere.tsv",
               "--gin.SPLIT=test"]) == 2
  error = capsys.readouterr().err
  assert "nowhere.tsv" in error and "started in" not in error


def test_a_number_may_name_a_folder(run, capsys, monkeypatch):
  monkeypatch.chdir(run.root)
  assert main(["eval", "--gin.MODEL_DIR=20261128"]) == 2
  error = capsys.readouterr().err
  assert "MODEL_DIR holds no run" in error and "20261128 (no such folder)" in error


def test_one_trainable_pattern_is_a_list_of_one(run, capsys):
  assert main(["train", *run.flags, "--gin_file=runs/prompt_tune.gin", "--gin.BATCH_SIZE=4",
               "--gin.TRAIN_STEPS=1", f"--gin.MODEL_DIR={run.root / 'x'}",
               "--gin.TRAINABLE=decoder/.*"]) == 2
  error = capsys.readouterr().err
  assert "TRAINABLE is one text" in error and "['decoder/.*']" in error


def test_eval_of_a_prompt_file(run, capsys):
  code = main(["eval", *run.flags, "--gin_file=runs/eval.gin", "--gin.MAX_EXAMPLES=5",
               f"--gin.PROMPT_FILE={run.folder / 'prompt.npy'}",
               f"--gin.OUTPUT_DIR={run.root / 'out'}"])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  report = json.loads((run.root / "out/eval_your_data_validation.json").read_text())
  assert report["metrics"]["examples"] == 5 and "majority class" in captured.out
  assert sorted(path.name for path in (run.root / "out").iterdir()) == [
    "eval_your_data_validation.json", "predictions_your_data_validation.jsonl"]


@pytest.mark.parametrize("change, message", [
  (["--gin.SPLIT=tset"], "--gin.SPLIT, `train` --gin.evaluate.EvalSettings.split: did you"),
  (["--gin.MIXTURE_OR_TASK_NAME=docstring_libary", "--gin.TASK_SOURCE=None"],
   "did you mean 'docstring_library'"),
  (["--gin.METHOD=rnk"], "did you mean 'rank'"),
  (["--gin.PROMPT_FILE=nowhere.npy"], "PROMPT_FILE does not exist"),
  (["--gin.TASK_FEATURE_LENGTHS={'inputs': 8}"], "TASK_FEATURE_LENGTHS lacks a feature")])
def test_eval_mistakes(run, capsys, change, message):
  assert main(["eval", f"--gin.MODEL_DIR={run.folder}", *change]) == 2
  assert message in capsys.readouterr().err


def test_eval_without_a_run(run, capsys):
  assert main(["eval", *run.flags, f"--gin.MODEL_DIR={run.root}"]) == 2
  assert "MODEL_DIR holds no run" in capsys.readouterr().err


def test_infer_of_a_run(run, capsys):
  lines = run.root / "lines.txt"
  lines.write_text("good car\nbad tree\n")
  code = main(["infer", f"--gin.MODEL_DIR={run.folder}", f"--gin.INPUT_FILE={lines}",
               f"--gin.OUTPUT_FILE={run.root / 'answers.txt'}"])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  # The run's LABELS: its own settings are in force.
  answers = (run.root / "answers.txt").read_text().splitlines()
  assert len(answers) == 2 and set(answers) <= {"yes", "no"}
  assert "2 predictions in" in captured.err and captured.out == ""


def test_infer_of_a_task(run, capsys):
  code = main(["infer", f"--gin.MODEL_DIR={run.folder}", "--gin.SPLIT=test",
               "--gin.OUTPUT_FORMAT=json"])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  rows = [json.loads(line) for line in captured.out.splitlines()]
  assert [(row["input"], row["target"]) for row in rows[:2]] == [("good dog", "yes"),
                                                                ("good cat", "yes")]
