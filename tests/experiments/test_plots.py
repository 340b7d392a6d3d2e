"""The figures from tables made by hand: which are drawn, and what they hold."""

import matplotlib
import numpy as np
import pytest

from prompt_tuning.disk import write_table
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import plots

matplotlib.use("Agg")
SIZES = {"a": 1e5, "b": 1e6, "c": 3e6}


def row(size, method, task="t", seed="0", **values):
  return {"run": f"{size}-{method}-{task}-{seed}", "status": "done", "size": size, "task": task,
          "method": method, "length": "", "seed": seed, "evaluated_on": "", "ensemble": "",
          "metric": "accuracy", "validation": 0.5, "test": 0.6, "majority": 0.25,
          "backbone_parameters": SIZES[size], "trained_parameters": 100.0} | values


@pytest.fixture(autouse=True)
def _closed():
  yield
  matplotlib.pyplot.close("all")


def table():
  return [row(size, method, task, seed, test=0.1 * i + 0.02 * int(seed))
          for i, size in enumerate(SIZES) for method in ("prompt", "model_tuning")
          for task in ("t", "u") for seed in ("0", "1")]


def test_score_by_size_has_a_panel_a_task_and_their_mean():
  rows = table()
  rows[0] |= {"status": "not run", "test": None, "backbone_parameters": None}
  figure = plots.score_by_size(rows)
  assert [axis.get_title() for axis in figure.axes] == ["t", "u", "mean of the tasks"]
  axis = figure.axes[0]
  assert axis.get_xscale() == "log"
  labels = axis.get_legend_handles_labels()[1]
  assert labels == ["majority class", "prompt (1 of 6 not run)", "model tuning"]
  line = axis.containers[1].lines[0]
  assert np.allclose(line.get_xdata(), list(SIZES.values()))
  assert np.allclose(line.get_ydata(), [0.01, 0.11, 0.21])
  styles = [c.lines[0] for c in axis.containers]
  # Told apart without colour.
  assert len({s.get_marker() for s in styles}) == len({s.get_linestyle() for s in styles}) == 2


def test_stages_without_methods_are_panels():
  rows = [{k: v for k, v in row(size, "x").items() if k not in ("method", "task", "length")}
          | {"stage": "pretrain"} for size in SIZES]
  (axis,) = plots.score_by_size(rows).axes
  assert axis.get_title() == "pretrain"


def test_ablations_have_a_panel_a_setting():
  rows = table() + [row(size, "prompt", length=length) for size in SIZES for length in ("1", "5")]
  (axis,) = plots.ablations(rows).axes
  assert axis.get_title() == "length: t"
  assert axis.get_legend_handles_labels()[1][1:] == ["1", "5"]
  assert plots.ablations(table()) is None
  rows += [row(size, "frozen", length=length) for size in SIZES for length in ("1", "5")]
  assert [axis.get_title() for axis in plots.ablations(rows).axes] == [
    "length: t, prompt", "length: t, frozen"]


def test_ensembles_of_several_tasks_in_one_run_have_a_panel_each():
  rows = []
  for task, scores, vote in (("rte", (0.6, 0.7), 0.72), ("copa", (0.2, 0.3), 0.33)):
    about = {"run": "m", "status": "done", "size": "a", "task": "mix", "method": "prompt",
             "evaluated_on": task, "metric": "accuracy", "majority": None,
             "backbone_parameters": 10.0, "trained_parameters": 2.0}
    rows += [{**about, "seed": str(i), "ensemble": "", "test": score}
             for i, score in enumerate(scores)]
    rows.append({**about, "seed": "", "ensemble": "majority_vote", "test": vote})
  found = {axis.get_title(): sorted(round(bar.get_height(), 3) for bar in axis.patches)
           for axis in plots.ensembles(rows).axes}
  assert found == {"rte": [0.65, 0.7, 0.72], "copa": [0.25, 0.3, 0.33]}


def test_ensembles_show_mean_best_and_vote():
  rows = [row("a", "prompt", run="r", test=value) for value in (0.2, 0.4)]
  rows.append(row("a", "prompt", run="r", ensemble="majority_vote", test=0.5))
  (axis,) = plots.ensembles(rows).axes
  heights = [bar.get_height() for bar in axis.patches]
  assert np.allclose(heights, [0.3, 0.4, 0.5])
  assert plots.ensembles(table()) is None


def test_domain_shift_and_the_published_numbers():
  rows = [row("a", "prompt", evaluated_on=target, test=value)
          for target, value in (("", 0.9), ("mrqa_race", 0.5), ("mrqa_drop", 0.7))]
  (axis,) = plots.domain_shift(rows, overlay=True).axes
  heights = [bar.get_height() for bar in axis.patches]
  assert np.allclose(heights, [0.5, 0.7, 0.598, 0.689, 0.607, 0.671])


def test_domain_shift_has_a_panel_a_size():
  rows = [row(size, "prompt", evaluated_on=target, test=value) for size, target, value in (
    ("a", "", 0.8), ("b", "", 0.8), ("a", "other", 0.5), ("a", "other", 0.7), ("b", "other", 0.9))]
  found = {axis.get_title(): [round(bar.get_height(), 3) for bar in axis.patches]
           for axis in plots.domain_shift(rows).axes}
  assert found == {"a": [0.6], "b": [0.9]}


def test_training_curves_are_the_validation_metric():
  rows = [row("a", "prompt", run="r")]
  curves = [{"run": "r", "step": step, "split": split, "metric": metric, "value": 0.1 * step}
            for step in (0.0, 2.0) for split in ("validation", "train")
            for metric in ("accuracy", "loss")]
  (axis,) = plots.training_curves(rows, curves).axes
  assert axis.get_title() == "t: prompt"
  (line,) = axis.lines
  assert list(line.get_xdata()) == [0.0, 2.0] and list(line.get_ydata()) == [0.0, 0.2]
  assert plots.training_curves(rows, []) is None


def test_figures_come_from_the_files_alone(tmp_path):
  rows = table()
  write_table(tmp_path / "results.csv", list(rows[0]), rows)
  drawn = plots.draw_all(tmp_path / "results.csv", tmp_path / "out")
  assert [path.name for path in drawn] == ["score_by_size.png", "trained_parameters.png"]
  for path in drawn:
    assert path.read_bytes().startswith(b"\x89PNG")
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
    path.name for path in drawn)


@pytest.mark.parametrize("text, message", [
  (None, "There is no such table"), ("a,b\n1,2\n", "This is no table of a sweep")])
def test_mistakes(tmp_path, text, message):
  if text is not None:
    (tmp_path / "results.csv").write_text(text)
  with pytest.raises(UserError, match=message):
    plots.draw_all(tmp_path / "results.csv", tmp_path)


@pytest.mark.parametrize("count, text", [(51200, "51k"), (1405376, "1.4M"), (11135332352, "11B"),
                                         (96, "96"), (2961152, "3M")])
def test_short_counts(count, text):
  assert plots._short(count) == text
