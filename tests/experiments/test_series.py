"""Means, spreads and what was not run, against sums by hand."""

import pytest

from prompt_tuning.experiments import published, series


def row(**values):
  return {"run": "r", "status": "done", "size": "a", "task": "t", "method": "m", "seed": "0",
          "ensemble": "", "evaluated_on": "", "metric": "accuracy", "validation": None,
          "test": None, "majority": None, "backbone_parameters": 100.0} | values


def test_lines_have_mean_and_sample_deviation_at_each_size():
  rows = [row(test=0.2), row(test=0.4), row(test=0.9), row(test=0.5, backbone_parameters=10.0),
          row(run="q", method="n", test=1.0)]
  first, second = series.lines(rows, "method")
  assert [p.x for p in first.points] == [10.0, 100.0]
  assert first.points[1].mean == pytest.approx(0.5)
  # ((0.3)^2 + (0.1)^2 + (0.4)^2) / 2
  assert first.points[1].deviation == pytest.approx(0.13**0.5)
  assert first.points[0] == series.Point(10.0, 0.5, 0.0, 1)
  assert second.name == "n" and second.points[0].mean == 1.0


def test_cells_not_run_are_counted_not_drawn():
  rows = [row(run="1", test=0.5), row(run="2", status="not run", backbone_parameters=None),
          row(run="3", status="failed", backbone_parameters=None)]
  (line,) = series.lines(rows, "method")
  assert (line.missing, line.wanted, len(line.points)) == (2, 3, 1)
  assert line.label == "m (2 of 3 not run)"


def test_several_prompts_of_a_run_are_points_of_one_cell():
  (line,) = series.lines([row(test=0.1), row(test=0.3)], "method")
  assert (line.points[0].mean, line.points[0].count, line.wanted) == (0.2, 2, 1)


def test_settings_that_are_varied_are_no_part_of_the_curve():
  rows = [row(length="", init=""), row(length="5", init="")]
  assert series.settings_of(rows) == ["length", "init"]
  assert series.unvaried(rows) == rows[:1]


def test_plain_rows_have_no_ensemble_and_no_other_task():
  rows = [row(), row(ensemble="majority_vote"), row(evaluated_on="u")]
  assert series.plain(rows) == rows[:1]


def test_a_run_over_several_tasks_is_a_line_of_each_of_them():
  rows = [row(), row(run="two", task="both", evaluated_on="t", test=0.5),
          row(run="two", task="both", evaluated_on="u", test=0.7), row(evaluated_on="u")]
  assert series.mixture_runs(rows) == {"two"}
  assert [(found["task"], found["method"], found["test"]) for found in series.plain(rows)] == [
    ("t", "m", None), ("t", "m (both)", 0.5), ("u", "m (both)", 0.7)]


def test_validation_is_the_score_without_a_test():
  assert series.score(row(validation=0.3)) == 0.3
  assert series.score(row(validation=0.3, test=0.0)) == 0.0


def test_the_mean_over_tasks_needs_every_task():
  rows = [row(task="t", test=0.2), row(task="u", test=0.6), row(task="t", seed="1", test=0.9)]
  (mean,) = series.over_tasks(rows)
  assert mean["test"] == pytest.approx(0.4) and mean["seed"] == "0"
  assert series.over_tasks(rows[:1]) == []
  assert series.over_tasks([rows[0], rows[1] | {"metric": "loss"}]) == []


def test_published_numbers_are_those_of_the_tables():
  found = published.domain_shift(["mrqa_textbookqa", "mrqa_race", "other"])
  assert found["model tuning"][:2] == pytest.approx([0.543, 0.598])
  assert found["prompt tuning"][0] == pytest.approx(0.668)
  assert found["model tuning"][2] != found["model tuning"][2]  # NaN
  assert published.domain_shift(["other"]) == {}
  ((size, score),) = published.scores("mean of the tasks")["prompt tuning, ensemble of five"]
  assert size == 11_135_332_352 and score == pytest.approx(0.913)
