"""Figures of discrete prompts, of recovered sentences, and of the vectors of prompts."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.plots import plt, save

_MARKERS = "os^Dvx"
_MOST_NAMES = 60


def draw_spread(rows: Sequence[Mapping[str, Any]], majority: float, path: pathlib.Path) -> None:
  """Draws the accuracy of every hard prompt: a point each, a column a way to choose examples.

  Args:
    rows: as in results.csv of `prompt-tuning design`.
  """
  names = sorted({(row["shots"], row["choice"]) for row in rows})
  scorings = list(dict.fromkeys(row["scoring"] for row in rows))
  figure, axis = plt.subplots(figsize=(max(4.5, 0.9 * len(names) + 2), 3.4))
  for i, scoring in enumerate(scorings):
    for x, name in enumerate(names):
      values = [row["accuracy"] for row in rows
                if (row["shots"], row["choice"]) == name and row["scoring"] == scoring]
      place = x + 0.25 * (i - (len(scorings) - 1) / 2)
      axis.plot([place] * len(values), values, _MARKERS[i], color=f"C{i}", markersize=4, alpha=0.5,
                label=scoring if x == 0 else None)
      axis.plot([place - 0.08, place + 0.08], [np.mean(values)] * 2, color="black")
  axis.axhline(majority, color="0.6", linestyle="--", label="majority class")
  axis.set_xticks(range(len(names)), [f"{shots} {choice}".strip() for shots, choice in names],
                  rotation=30, ha="right")
  axis.set_ylabel("accuracy")
  _finish(figure, axis, path)


def draw_lines(lines: Mapping[str, Sequence[tuple[float, float, float]]], x_label: str,
               y_label: str, path: pathlib.Path) -> None:
  """Draws a line a name, of (x, mean, standard deviation)."""
  figure, axis = plt.subplots(figsize=(5.2, 3.4))
  for i, (name, points) in enumerate(lines.items()):
    x, mean, deviation = np.array(points, float).T
    axis.errorbar(x, mean, deviation, label=name, marker=_MARKERS[i % len(_MARKERS)], markersize=4,
                  capsize=2)
  axis.set_xlabel(x_label)
  axis.set_ylabel(y_label)
  _finish(figure, axis, path)


def draw_clusters(points: np.ndarray, clusters: Sequence[int], names: Sequence[str],
                  path: pathlib.Path) -> None:
  """Draws vectors as points `[P, 2]`, coloured by cluster, with a word beside each."""
  figure, axis = plt.subplots(figsize=(6.0, 5.0))
  axis.scatter(points[:, 0], points[:, 1], c=np.asarray(clusters) % 20, cmap="tab20", s=16)
  if len(names) <= _MOST_NAMES:
    for (x, y), name in zip(points, names, strict=True):
      # A word may hold what matplotlib reads as a formula.
      axis.annotate(name.replace("$", r"\$"), (x, y), fontsize=6, xytext=(2, 2),
                    textcoords="offset points")
  axis.set_xlabel("first principal component")
  axis.set_ylabel("second principal component")
  save(figure, path)


def _finish(figure: Any, axis: Any, path: pathlib.Path) -> None:
  axis.spines[["top", "right"]].set_visible(False)
  axis.legend(frameon=False, fontsize=8)
  save(figure, path)
