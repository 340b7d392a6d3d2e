"""What a sweep does with its runs, whatever they are: a runner that computes nothing stands in."""

import csv

import jax
import pytest

from prompt_tuning import config
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import command, results, runner
from prompt_tuning.main import main

GRID = """
AXES = {'size': {'a': ['--gin_file=models/tiny.gin'], 'b': ['--gin_file=models/family_0m1.gin',
                       '--gin.INITIAL_CHECKPOINT_PATH=random']},
        'method': {'prompt': ['--gin_file=prompts/soft.gin', '--gin_file=runs/prompt_tune.gin']},
        'seed': {'0': ['--gin.RANDOM_SEED=0'], '1': ['--gin.RANDOM_SEED=1']}}
BLOCKS = [{'size': 'all', 'method': 'all', 'seed': 'all'}]
FLAGS = ['--gin.MIXTURE_OR_TASK_NAME=docstring_library',
         "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}"]
TRAIN_FLAGS = ['--gin.TRAIN_STEPS=%s']
"""


class Sweep:
  """A folder, the command, and a runner that notes what it is asked for.

  Attributes:
    ran: names of cells.  fails, stops: names of those that do.
  """

  def __init__(self, folder, monkeypatch):
    self.folder, self.ran, self.fails, self.stops = folder, [], set(), set()
    self.set_steps(5)
    monkeypatch.setattr(runner, "run", self._run)

  def set_steps(self, steps):
    (self.folder / "grid.gin").write_text(GRID % steps)

  def _run(self, grid, cell):
    self.ran.append(cell.name)
    print("said by the run")
    if cell.name in self.fails:
      raise UserError("It broke", found="a", wanted="b", fix="c")
    if cell.name in self.stops:
      return None
    seed = float(cell.choices["seed"])
    return {"status": results.DONE, "seconds": 1.0, "backbone_parameters": 10, "steps": 5,
            "rows": [{"metric": "accuracy", "validation": 0.5, "test": 0.25 + seed / 4}],
            "curve": [{"step": 0, "split": "validation", "metric": "accuracy", "value": 0.5}]}

  def __call__(self, *flags):
    self.ran.clear()
    return main(["sweep", f"--gin_file={self.folder / 'grid.gin'}",
                 f"--gin.SWEEP_DIR={self.folder / 'out'}", *flags])

  def states(self):
    with (self.folder / "out/results.csv").open() as file:
      return {row["run"]: row["status"] for row in csv.DictReader(file)}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  return Sweep(tmp_path, monkeypatch)


NAMES = ["a-prompt-0", "a-prompt-1", "b-prompt-0", "b-prompt-1"]


def test_runs_once_and_collects(sweep, capsys):
  assert sweep() == 0 and sweep.ran == NAMES
  out = capsys.readouterr().out
  assert "[1/4] a-prompt-0: done  accuracy 0.25 on test, 1 s" in out and "said by" not in out
  assert "4 rows done" in out
  assert "said by the run" in (sweep.folder / "out/logs/a-prompt-0.log").read_text()
  assert sweep() == 0 and sweep.ran == []


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(sweep, capsys):
  sweep.fails = {"a-prompt-1"}
  assert sweep() == 1 and sweep.ran == NAMES
  assert "a-prompt-1: failed  It broke: a" in capsys.readouterr().out
  assert "It broke" in (sweep.folder / "out/logs/a-prompt-1.log").read_text()
  assert sweep.states() == {name: "done" for name in NAMES} | {"a-prompt-1": "failed"}
  sweep.fails = set()
  assert sweep() == 0 and sweep.ran == ["a-prompt-1"]


def test_a_stopped_run_stops_the_sweep(sweep, capsys):
  sweep.stops = {"a-prompt-1"}
  assert sweep() == 75 and sweep.ran == NAMES[:2]
  assert "The same command goes on" in capsys.readouterr().out
  assert sweep.states() == {name: "not run" for name in NAMES} | {"a-prompt-0": "done"}
  sweep.stops = set()
  assert sweep() == 0 and sweep.ran == NAMES[1:]


def test_only_and_shards(sweep):
  assert sweep("--only=b-", "--only=*-0") == 0
  assert sweep.ran == ["a-prompt-0", "b-prompt-0", "b-prompt-1"]
  assert sweep("--shard=1/2") == 0 and sweep.ran == ["a-prompt-1"]


def test_list_and_collect_run_nothing(sweep, capsys):
  sweep("--only=a-prompt-0")
  capsys.readouterr()
  assert sweep("--list") == 0 and sweep.ran == []
  out = capsys.readouterr().out
  assert "a-prompt-0  [done]" in out and "b-prompt-1  [not run]" in out
  assert "prompt-tuning train --gin.MIXTURE_OR_TASK_NAME=docstring_library" in out
  (sweep.folder / "out/results.csv").unlink()
  assert sweep("--collect") == 0 and sweep.ran == []
  assert sweep.states()["a-prompt-0"] == "done"


def test_all_runs_are_checked_before_the_first(sweep, capsys):
  text = (sweep.folder / "grid.gin").read_text()
  (sweep.folder / "grid.gin").write_text(text.replace("models/family_0m1", "models/family_0m2"))
  assert sweep() == 2 and sweep.ran == []
  error = capsys.readouterr().err
  assert "Run b-prompt-0: There is no gin file" in error and "did you mean" in error


def test_the_split_to_test_on_is_looked_for_before_the_first_run(sweep, capsys):
  (sweep.folder / "train.tsv").write_text("text\tlabel\na\tyes\nb\tno\n")
  own = ["--gin_file=runs/your_data.gin", f"--gin.TRAIN_FILE={sweep.folder / 'train.tsv'}",
         "--gin.VALIDATION_FILE=%TRAIN_FILE", "--gin.INPUTS='{text}'", "--gin.TARGETS='{label}'",
         "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}"]
  grid = sweep.folder / "grid.gin"
  before, after = grid.read_text().split("FLAGS = ", 1)
  grid.write_text(f"{before}FLAGS = {own!r}\nTRAIN_FLAGS = {after.split('TRAIN_FLAGS = ')[1]}")
  assert sweep() == 2 and sweep.ran == []
  error = capsys.readouterr().err
  assert "Run a-prompt-0" in error and "has no split 'test'" in error
  assert "train, validation" in error and "TEST_SPLIT = 'validation'" in error
  for split in ("validation", None):
    assert sweep(f"--gin.TEST_SPLIT={split!r}",
                 f"--gin.SWEEP_DIR={sweep.folder / str(split)}") == 0


def test_several_hosts_are_refused(sweep, capsys, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  assert sweep() == 2 and sweep.ran == []
  error = capsys.readouterr().err
  assert "A sweep runs on one host" in error and "4 hosts" in error
  assert sweep("--list") == 0


def test_a_finished_run_of_other_settings_is_an_error(sweep, capsys):
  sweep("--only=a-prompt-0")
  sweep.set_steps(6)
  assert sweep() == 2 and sweep.ran == []
  error = capsys.readouterr().err
  assert "The finished run a-prompt-0 had other settings" in error
  assert "TRAIN_STEPS=5" in error and "TRAIN_STEPS=6" in error


def test_a_finished_run_of_another_machine_is_taken_over(sweep):
  """Its SWEEP_DIR was another one; its command stays what was run."""
  sweep("--only=a-prompt-0")
  (sweep.folder / "out").rename(sweep.folder / "copied")
  assert main(["sweep", f"--gin_file={sweep.folder / 'grid.gin'}",
               f"--gin.SWEEP_DIR={sweep.folder / 'copied'}", "--collect"]) == 0
  with (sweep.folder / "copied/results.csv").open() as file:
    row = next(csv.DictReader(file))
  assert row["status"] == "done" and str(sweep.folder / "out/a-prompt-0") in row["command"]


@pytest.mark.parametrize("text, found", [
  ("a,b\n1,2\n", "columns a, b"), ("run,test\nx,abc\n", "could not convert"),
  ("run,test\nx,1,2,3\n", "columns run, test, None")])
def test_draw_of_something_else(tmp_path, capsys, text, found):
  (tmp_path / "table.csv").write_text(text)
  assert main(["sweep", f"--draw={tmp_path / 'table.csv'}", f"--output_dir={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert "This is no table of a sweep" in error and found in error


def test_draw_needs_no_grid(sweep, capsys):
  sweep()
  table = sweep.folder / "out/results.csv"
  # Both sizes have one number of parameters here.
  assert main(["sweep", f"--draw={table}", f"--output_dir={sweep.folder / 'drawn'}"]) == 0
  assert (sweep.folder / "drawn/score_by_size.png").is_file()
  assert "score_by_size.png" in capsys.readouterr().out


@pytest.mark.parametrize("flag, message", [
  ("--shard=2", "--shard cannot be read"), ("--shard=2/2", "There is no such shard"),
  ("--only=nothing", "--only matches no run"), ("--draw=nowhere.csv", "There is no such table")])
def test_mistakes(sweep, flag, message, capsys):
  assert sweep(flag) == 2
  assert message in capsys.readouterr().err


def test_without_a_grid(capsys):
  assert main(["sweep", "--gin.SWEEP_DIR=x"]) == 2
  assert "no value for" in capsys.readouterr().err and not config._loaded.targets == {}


def test_the_command_imports_nothing_heavy():
  assert not {"jax", "numpy", "matplotlib"} & set(vars(command))


def test_the_commit_is_one_of_this_repository():
  found = results.commit()
  assert found == "" or len(found.rstrip("+")) == 12
