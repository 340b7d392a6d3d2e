"""The figures of a sweep, each a pure function of results.csv (curves.csv for the last).

  score_by_size       score against the backbone's parameters (log axis), a line a method
  ablations           the same for every other setting, a panel each
  trained_parameters  score against trained parameters
  ensembles           several prompts of one backbone: alone, the best one, put together
  domain_shift        trained on one task, evaluated on others
  training_curves     validation score by step

Lines differ in marker and dash as well as in colour, so that they can be told apart in greyscale.
Error bars are one standard deviation over seeds. What was not run is said in the legend.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.experiments import published, series
from prompt_tuning.experiments.results import DONE, Row, read_table
from prompt_tuning.plots import plt, save

_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP*X"
_DASHES = ("-", "--", "-.", ":", (0, (6, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_HATCHES = ("", "//", "..", "xx", "\\\\", "++")
_PANEL = (4.2, 3.7)


def draw_all(table: pathlib.Path, folder: pathlib.Path, *, overlay: bool = False
             ) -> list[pathlib.Path]:
  """Draws every figure that the table has data for; their paths.

  Args:
    table: results.csv; curves.csv is read from beside it where it exists.
    overlay: show the published numbers too.
  """
  rows = read_table(table)
  beside = table.with_name("curves.csv")
  curves = read_table(beside) if beside.is_file() else []
  drawn = {
    "score_by_size": lambda: score_by_size(rows, overlay=overlay),
    "ablations": lambda: ablations(rows), "trained_parameters": lambda: trained_parameters(rows),
    "ensembles": lambda: ensembles(rows),
    "domain_shift": lambda: domain_shift(rows, overlay=overlay),
    "training_curves": lambda: training_curves(rows, curves)}
  paths = []
  for name, draw in drawn.items():
    figure = draw()
    if figure is not None:
      paths.append(_save(figure, folder / f"{name}.png"))
  return paths


def score_by_size(rows: Sequence[Row], *, overlay: bool = False) -> Any:
  """A panel a task, and their mean where one metric measures all; None without sizes."""
  rows = series.plain(rows)
  by = "method" if series.distinct(rows, "method") else "stage"
  rows = [row for row in (series.unvaried(rows) if by == "method" else rows) if row.get(by)]
  if len(series.distinct(rows, "size")) < 2 or not _has_scores(rows):
    return None
  tasks = series.distinct(rows, "task") if by == "method" else []
  panels = [(task, own) for task in tasks
            if _has_scores(own := [row for row in rows if row["task"] == task])]
  panels += [("mean of the tasks", mean)] if (
    by == "method" and (mean := series.over_tasks(rows))) else []
  if not panels:
    panels = [(stage, [r for r in rows if r[by] == stage]) for stage in series.distinct(rows, by)]
  figure, axes = _panels(len(panels))
  for axis, (title, own) in zip(axes, panels, strict=True):
    _draw_lines(axis, series.lines(own, by))
    _draw_majority(axis, own)
    if overlay and set(tasks) == published.SUPER_GLUE_TASKS:
      _overlay(axis, title)
    _log_axis(axis, own, "backbone_parameters")
    _label(axis, title, "parameters of the backbone", series.metric_of(own))
  return figure


def ablations(rows: Sequence[Row]) -> Any:
  """A panel a setting, task and method: score against size, a line a choice; None without any."""
  rows = series.plain(rows)
  if not series.distinct(rows, "method"):
    return None
  panels = []
  for setting in series.settings_of(rows):
    if len(series.distinct(rows, setting)) < 2:
      continue
    varied = [row for row in rows if row[setting]]
    methods = series.distinct(varied, "method")
    for task, method in itertools.product(series.distinct(rows, "task") or [""], methods):
      own = [row for row in varied if (row.get("task", ""), row["method"]) == (task, method)]
      if _has_scores(own):
        names = [task, method] if len(methods) > 1 else [task]
        panels.append((setting, ", ".join(filter(None, names)), own))
  if not panels:
    return None
  figure, axes = _panels(len(panels))
  for axis, (setting, of, own) in zip(axes, panels, strict=True):
    _draw_lines(axis, series.lines(own, setting))
    _draw_majority(axis, own)
    _log_axis(axis, own, "backbone_parameters")
    title = f"{setting.replace('_', ' ')}: {of}" if of else setting.replace("_", " ")
    _label(axis, title, "parameters of the backbone", series.metric_of(own))
  return figure


def trained_parameters(rows: Sequence[Row]) -> Any:
  """A panel a task: score against trained parameters, a line a method; None without methods."""
  rows = [row for row in series.unvaried(series.plain(rows)) if row.get("trained_parameters")]
  if len(series.distinct(rows, "method")) < 2 or not _has_scores(rows):
    return None
  tasks = series.distinct(rows, "task")
  figure, axes = _panels(len(tasks))
  for axis, task in zip(axes, tasks, strict=True):
    own = [row for row in rows if row["task"] == task]
    _draw_lines(axis, series.lines(own, "method", "trained_parameters"))
    _draw_majority(axis, own)
    _log_axis(axis, own, "trained_parameters")
    _label(axis, task, "trained parameters", series.metric_of(own))
  return figure


def ensembles(rows: Sequence[Row]) -> Any:
  """A panel a task: bars of the mean, the best and the ensembles, by size; None without any."""
  # Of several tasks in one run each is a panel.
  mixtures = series.mixture_runs(rows)
  together = [{**row, "task": row["evaluated_on"]} if row["run"] in mixtures else row
              for row in rows if row.get("ensemble") and row["status"] == DONE]
  if not together:
    return None
  tasks = series.distinct(together, "task") or [""]
  figure, axes = _panels(len(tasks))
  for axis, task in zip(axes, tasks, strict=True):
    own = [row for row in together if row.get("task", "") == task]
    runs = series.distinct(own, "run")
    alone = {run: [series.score(row) for row in series.plain(rows)
                   if row["run"] == run and row.get("task", "") == task] for run in runs}
    kinds: dict[str, list[float]] = {
      "mean of the prompts": [float(np.mean(alone[run])) for run in runs],  # type: ignore[arg-type]
      "best prompt": [float(np.max(alone[run])) for run in runs]}  # type: ignore[arg-type]
    for kind in series.distinct(own, "ensemble"):
      kinds[kind.replace("_", " ")] = [
        next(row["test"] for row in own if row["run"] == run and row["ensemble"] == kind)
        for run in runs]
    spread = [float(np.std(alone[run], ddof=1)) for run in runs]  # type: ignore[arg-type]
    labels = [row.get("size") or run.partition("-")[0] for run in runs
              for row in [next(r for r in own if r["run"] == run)]]
    _draw_bars(axis, labels, kinds, {"mean of the prompts": spread})
    _label(axis, task, "", series.metric_of(own))
  return figure


def domain_shift(rows: Sequence[Row], *, overlay: bool = False) -> Any:
  """A panel a size: bars of a method on other tasks than it was trained on; None without any."""
  mixtures = series.mixture_runs(rows)
  elsewhere = [row for row in rows if row.get("evaluated_on") and not row.get("ensemble")
               and row["status"] == DONE and row["run"] not in mixtures]
  if not elsewhere:
    return None
  targets = series.distinct(elsewhere, "evaluated_on")
  sizes = series.distinct(elsewhere, "size") or [""]
  width = max(5.0, 1.1 * len(targets) + 2) if len(sizes) == 1 else 1.1 * len(targets) + 2
  figure, axes = _panels(len(sizes), (width, 3.3))
  for axis, size in zip(axes, sizes, strict=True):
    own = [row for row in elsewhere if row.get("size", "") == size or sizes == [""]]
    kinds: dict[str, list[float]] = {}
    spreads: dict[str, list[float]] = {}
    for method in series.distinct(own, "method"):
      points = [series.summary(0.0, [row["test"] for row in own
                                     if row["method"] == method and row["evaluated_on"] == target]
                               or [float("nan")]) for target in targets]
      kinds[method.replace("_", " ")] = [point.mean for point in points]
      spreads[method.replace("_", " ")] = [point.deviation for point in points]
    if overlay:
      for method, values in published.domain_shift(targets).items():
        kinds[f"{method}, published"] = values
    _draw_bars(axis, targets, kinds, spreads)
    _label(axis, size if len(sizes) > 1 else "", "", series.metric_of(own))
  return figure


def training_curves(rows: Sequence[Row], curves: Sequence[Row]) -> Any:
  """A panel a task and method (or stage): the validation score by step, a line a run."""
  runs = {row["run"]: row for row in rows if row["status"] == DONE and not row.get("ensemble")}
  by = "task" if any(row.get("task") for row in runs.values()) else "stage"
  paths: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
  # Of several prompts in a run each is a line, and their mean none.
  several = {point["run"] for point in curves if point["split"].startswith("validation/")}
  for point in curves:
    row = runs.get(point["run"])
    if row is None or not point["split"].startswith("validation") or (
        point["metric"] != row["metric"]) or (
          point["split"] == "validation" and point["run"] in several):
      continue
    panel = ": ".join(filter(None, (row.get(by), row.get("method"))))
    key = (panel, row.get("size") or row["run"].split("-")[0], point["run"] + point["split"])
    paths.setdefault(key, []).append((point["step"], point["value"]))
  paths = {key: path for key, path in paths.items() if len(path) > 1}
  panels = list(dict.fromkeys(key[0] for key in paths))
  if not panels:
    return None
  figure, axes = _panels(len(panels))
  names = list(dict.fromkeys(key[1] for key in paths))
  for axis, title in zip(axes, panels, strict=True):
    shown: set[str] = set()
    for (panel, name, _), path in paths.items():
      if panel == title:
        style = _style(names.index(name)) | {"linewidth": 1.0, "markersize": 3, "alpha": 0.8}
        axis.plot(*zip(*sorted(path), strict=True), **style,
                  label=None if name in shown else name.replace("_", " "))
        shown.add(name)
    own = [row for row in runs.values() if (row.get(by) or "") == title.partition(":")[0]]
    _label(axis, title, "step", f"validation {series.metric_of(own)}")
  return figure


def _has_scores(rows: Sequence[Row]) -> bool:
  return any(row["status"] == DONE and series.score(row) is not None for row in rows)


def _panels(count: int, size: tuple[float, float] = _PANEL) -> tuple[Any, list[Any]]:
  columns = min(count, 3)
  lines = -(-count // columns)
  figure, axes = plt.subplots(lines, columns, squeeze=False,
                              figsize=(size[0] * columns, size[1] * lines))
  flat = list(axes.flat)
  for axis in flat[count:]:
    axis.remove()
  return figure, flat[:count]


def _style(index: int) -> dict[str, Any]:
  return {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[index % len(_MARKERS)],
          "linestyle": _DASHES[index % len(_DASHES)], "markersize": 4.5, "linewidth": 1.4}


def _draw_lines(axis: Any, lines: Sequence[series.Line]) -> None:
  for index, line in enumerate(lines):
    xs, means = [p.x for p in line.points], [p.mean for p in line.points]
    spread = [p.deviation for p in line.points]
    axis.errorbar(xs, means, yerr=spread if any(spread) else None, capsize=2.5, label=line.label,
                  **_style(index))


def _draw_majority(axis: Any, rows: Sequence[Row]) -> None:
  value = series.majority(rows)
  if value is not None:
    axis.axhline(value, color="0.55", linewidth=1.0, linestyle=(0, (2, 2)), label="majority class")


def _draw_bars(axis: Any, labels: Sequence[str], kinds: Mapping[str, Sequence[float]],
               spreads: Mapping[str, Sequence[float]]) -> None:
  width = 0.8 / len(kinds)
  greys = np.linspace(0.25, 0.9, len(kinds))
  for index, (kind, values) in enumerate(kinds.items()):
    places = np.arange(len(labels)) + (index - (len(kinds) - 1) / 2) * width
    axis.bar(places, values, width, yerr=spreads.get(kind), capsize=2.5, label=kind,
             color=str(greys[index]), edgecolor="black", linewidth=0.6,
             hatch=_HATCHES[index % len(_HATCHES)])
  axis.set_xticks(range(len(labels)), [label.replace("_", " ") for label in labels])


def _overlay(axis: Any, task: str) -> None:
  for index, (method, points) in enumerate(published.scores(task).items()):
    axis.plot(*zip(*points, strict=True), color="0.4", marker=_MARKERS[index], fillstyle="none",
              linestyle="none", label=f"{method}, published")


def _log_axis(axis: Any, rows: Sequence[Row], column: str) -> None:
  """A log axis with a tick at each number that is there, as far as they have room."""
  axis.set_xscale("log")
  places = sorted({row[column] for row in rows if row.get(column)})
  ticks = places[:1]
  for place in places[1:]:
    if place / ticks[-1] > max(1.6, (places[-1] / places[0]) ** 0.12):
      ticks.append(place)
  axis.set_xticks(ticks, [_short(tick) for tick in ticks])
  axis.minorticks_off()


def _short(count: float) -> str:
  """`1,405,376` -> `1.4M`."""
  for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if count >= size:
      return f"{count / size:.2g}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
  return f"{count:.0f}"


def _label(axis: Any, title: str, x: str, y: str) -> None:
  axis.set_title(title.replace("_", " "), fontsize=10)
  axis.set_xlabel(x)
  axis.set_ylabel(y.replace("_", " "))
  axis.spines[["top", "right"]].set_visible(False)
  if axis.get_legend_handles_labels()[1]:
    # Below: inside, it would hide what is drawn.
    axis.legend(frameon=False, fontsize=7, ncols=2, loc="upper center",
                bbox_to_anchor=(0.5, -0.2 if x else -0.12))


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  save(figure, path)
  return path
