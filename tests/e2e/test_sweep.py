"""The smallest shipped grid, run as a user runs it: rows, figures, and that nothing runs twice."""

import csv
import json
import shlex

import numpy as np
import pytest

from prompt_tuning import trained_model
from prompt_tuning.experiments import results, runner
from prompt_tuning.main import main

pytestmark = pytest.mark.e2e
# All but one of its eight cells.
GRID = ["sweep", "--gin_file=papers/small/smallest.gin", "--only=d8-", "--only=frozen"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("sweep") / "smallest"
  assert main([*GRID, f"--gin.SWEEP_DIR={place}"]) == 0
  return place


@pytest.fixture(scope="module")
def rows(folder):
  with (folder / "results.csv").open() as file:
    return list(csv.DictReader(file))


def test_a_row_a_prompt_and_one_an_ensemble(rows):
  assert [(r["size"], r["method"], r["seed"], r["ensemble"]) for r in rows] == [
    ("d8", "frozen", "0", ""), ("d16", "frozen", "0", ""), *(
      ("d8", "prompt", seed, ensemble) for seed, ensemble in (
        ("0", ""), ("1", ""), ("", "majority_vote"), ("", "mean_probability"))),
    ("d16", "prompt", "0to1", ""), ("d8", "autoprompt", "0", ""), *[("d8", "prompt", "0", "")] * 2,
    *[("d8", "prompt", seed, ensemble) for _ in range(2) for seed, ensemble in (
      ("0", ""), ("1", ""), ("", "majority_vote"), ("", "mean_probability"))],
    *[("d8", "frozen", "0", "")] * 2]
  last = rows[6]
  done = rows[:6]
  assert last["status"] == "not run" and last["test"] == "" and "d16" in last["command"]
  assert {r["status"] for r in done} == {"done"} and {r["metric"] for r in done} == {"accuracy"}
  # 4 rows of 8.
  assert [int(r["trained_parameters"]) for r in done] == [0, 0, *[32] * 4]
  assert all("jax " in r["versions"] and float(r["seconds"]) > 0 for r in done)


def test_numbers_are_those_of_the_runs(folder, rows):
  frozen = rows[0]
  report = json.loads((folder / frozen["run"] / "eval_docstring_library_test.json").read_text())
  assert float(frozen["test"]) == report["metrics"]["accuracy"]
  prompts = [r for r in rows if r["run"] == "d8-docstring_library-prompt-0to1"]
  with (folder / prompts[0]["run"] / "members.csv").open() as file:
    members = list(csv.DictReader(file))
  for row, member in zip(prompts[:2], members, strict=True):
    assert float(row["validation"]) == float(member["accuracy"])
    assert (row["seed"], row["best_step"]) == (member["seed"], member["best_step"])


def test_a_trigger_has_the_numbers_of_its_search(folder, rows):
  row = rows[7]
  found = json.loads((folder / row["run"] / "summary.json").read_text())
  scores = found["results"]["found"]
  assert (float(row["validation"]), float(row["test"])) == (
    scores["validation"]["accuracy"], scores["test"]["accuracy"])
  assert float(row["majority"]) == found["majority"]["test"]
  assert (row["steps"], row["trained_parameters"]) == ("2", "0")


TWO = ["docstring_kind_seen", "docstring_library"]


def of_command(out, *flags):
  """Accuracy of each of the two tasks, by `eval`."""
  assert main(["eval", *flags, f"--gin.OUTPUT_DIR={out}"]) == 0
  return [json.loads((out / f"eval_{name}_test.json").read_text())["metrics"]["accuracy"]
          for name in TWO]


def test_tasks_of_one_model_are_tested_one_by_one(folder, rows, tmp_path):
  two = [row for row in rows if row["run"].startswith("d8-two_tasks")]
  one, several, frozen = two[:2], two[2:10], two[10:]
  run = ["--gin.SPLIT=test", "--gin.MAX_EXAMPLES=16"]
  assert [row["evaluated_on"] for row in one] == [row["evaluated_on"] for row in frozen] == TWO
  assert [float(row["test"]) for row in one] == of_command(
    tmp_path / "one", f"--gin.MODEL_DIR={folder / one[0]['run']}", *run)
  # A mixture is judged by its loss while it trains, which is no accuracy.
  assert {row["validation"] for row in two} == {""} and {row["metric"] for row in two} == {
    "accuracy"}
  assert [row["evaluated_on"] for row in several] == [TWO[0]] * 4 + [TWO[1]] * 4
  place = folder / several[0]["run"]
  found = of_command(tmp_path / "member", f"--gin.MODEL_DIR={place}", *run,
                     f"--gin.PROMPT_FILE={place / 'members/1/prompt.npy'}")
  assert [float(row["test"]) for row in several if row["seed"] == "1"] == found
  command = [flag for flag in shlex.split(frozen[0]["command"])[2:] if "OUTPUT_DIR" not in flag]
  assert [float(row["test"]) for row in frozen] == of_command(tmp_path / "frozen", *command)


def test_a_member_is_tested_with_its_own_prompt(folder, rows, tmp_path):
  run = folder / "d8-docstring_library-prompt-0to1"
  flags = next(r["command"] for r in rows if r["run"] == run.name)
  names = ("models/", "T5Config", "TASK", "CHECKPOINT", "TRUNCATED")
  kept = [flag for flag in shlex.split(flags)[2:] if any(name in flag for name in names)]
  assert main(["eval", *kept, "--gin_file=prompts/soft.gin", "--gin.SPLIT=test",
               "--gin.MAX_EXAMPLES=16", "--gin.BATCH_SIZE=16", f"--gin.OUTPUT_DIR={tmp_path}",
               f"--gin.PROMPT_FILE={run / 'members/1/prompt.npy'}"]) == 0
  report = json.loads((tmp_path / "eval_docstring_library_test.json").read_text())
  row = next(r for r in rows if r["run"] == run.name and r["seed"] == "1")
  assert report["metrics"]["accuracy"] == float(row["test"])
  assert not np.array_equal(np.load(run / "members/0/prompt.npy"),
                            np.load(run / "members/1/prompt.npy"))


def test_finished_runs_are_not_repeated_and_a_lost_record_is(folder, rows, monkeypatch):
  lost = folder / "records" / "d8-docstring_library-prompt-0to1.json"
  old = json.loads(lost.read_text())
  lost.unlink()
  names = []
  run = runner.run
  monkeypatch.setattr(runner, "run", lambda grid, cell: names.append(cell.name) or run(grid, cell))
  assert main([*GRID, f"--gin.SWEEP_DIR={folder}"]) == 0
  # The run itself is complete: its numbers are read again, no step is taken.
  assert names == [lost.stem]
  assert json.loads(lost.read_text())["rows"] == old["rows"]


def test_members_are_tested_in_the_layout_of_their_run(tmp_path, monkeypatch):
  """And EVAL_FLAGS may name the cell's choices there too."""
  shards, load = [], trained_model.TrainedModel.load

  def loaded(*args):
    params = load(*args)
    table = params["backbone"]["token_embedder"]["embedding"]
    shards.append((table.shape[1], table.sharding.shard_shape(table.shape)[1]))
    return params

  monkeypatch.setattr(trained_model.TrainedModel, "load", loaded)
  train = ["TRAIN_STEPS=1", "EVAL_PERIOD=1", "BATCH_SIZE=8", "LAYOUT=fsdp",
           "evaluate.EvalSettings.max_examples=16"]
  tests = ["MAX_EXAMPLES=16", "BATCH_SIZE=16",
           "run_config.TaskConfig.cache_dir=${root}/${size}_tokens"]
  assert main(["sweep", "--gin_file=papers/small/smallest.gin", f"--gin.SWEEP_DIR={tmp_path}",
               "--only=d8-docstring_library-prompt-0to1", *(
                 f"--gin.{name}={[f'--gin.{flag}' for flag in flags]}"
                 for name, flags in (("TRAIN_FLAGS", train), ("EVAL_FLAGS", tests)))]) == 0
  assert shards == [(8, 2)]  # of four devices
  assert (tmp_path / "d8_tokens").is_dir()


def test_figures_and_curves(folder):
  assert {path.name for path in (folder / "figures").iterdir()} == {
    "score_by_size.png", "trained_parameters.png", "ensembles.png", "training_curves.png"}
  curves = results.read_table(folder / "curves.csv")
  assert {(p["step"], p["split"]) for p in curves if p["metric"] == "accuracy"} >= {
    (0.0, "validation/0"), (2.0, "validation/1"), (0.0, "test")}
