"""Figures of one run, from its metrics alone."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from prompt_tuning.disk import replacing

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

# Distinguishable in print and in greyscale: by colour, line and marker.
_STYLES = {"train": {"color": "0.6", "linewidth": 1.0},
           "validation": {"color": "black", "marker": "o", "markersize": 3},
           "test": {"color": "tab:orange", "marker": "s", "linestyle": "--"}}
_CHOICES = ("accuracy", "encoder_gap")
_MOST_NAMES = 40
_LONGEST_NAME = 28


def draw_curves(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Draws loss against step, and beside it the metric that matters most where there is one.

  Args:
    rows: `step, split, metric, value`, as in metrics.csv.
    path: of the PNG.
  """
  second = next((name for name in _CHOICES
                 if any(r["metric"] == name and r["split"] != "train" for r in rows)), None)
  names = ["loss"] + ([second] if second else [])
  figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.2), squeeze=False)
  for axis, name in zip(axes[0], names, strict=True):
    for split, style in _STYLES.items():
      points = sorted((r["step"], r["value"]) for r in rows
                      if r["metric"] == name and r["split"] == split)
      if points and not (split == "train" and name != "loss"):
        axis.plot(*zip(*points, strict=True), label=split, **style)
    axis.set_xlabel("step")
    axis.set_ylabel("loss (nats a token)" if name == "loss" else name.replace("_", " "))
    axis.spines[["top", "right"]].set_visible(False)
    if axis.lines:
      axis.legend(frameon=False)
  save(figure, path)


def draw_learning_rates(rates: Sequence[float], values: Sequence[float], metric: str,
                        path: pathlib.Path) -> None:
  """Draws a metric against the learning rate: a point a prompt, a line through each rate's mean."""
  figure, axis = plt.subplots(figsize=(4.5, 3.2))
  axis.semilogx(rates, values, "o", color="0.6", markersize=4, label="prompt")
  found = sorted(set(rates))
  means = [float(np.mean([v for r, v in zip(rates, values, strict=True) if r == rate]))
           for rate in found]
  axis.semilogx(found, means, color="black", label="mean")
  axis.set_xlabel("learning rate")
  axis.set_ylabel(metric.replace("_", " "))
  axis.spines[["top", "right"]].set_visible(False)
  axis.legend(frameon=False)
  save(figure, path)


def draw_heat_map(matrix: np.ndarray, names: Sequence[str], path: pathlib.Path) -> None:
  """Draws `[N, N]` cosines, -1 to 1, with the rows' names where there are few enough to read.

  Of names that are paths the end is shown, and not the folders that all have in common.
  """
  names = [_end_of(name) for name in without_common_folders(names)]
  figure, axis = plt.subplots(figsize=(6.0, 5.0))
  image = axis.imshow(matrix, vmin=-1.0, vmax=1.0, cmap="RdBu_r")
  if len(names) <= _MOST_NAMES:
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
  figure.colorbar(image, ax=axis, label="cosine")
  save(figure, path)


def without_common_folders(names: Sequence[str]) -> list[str]:
  """Paths without the leading folders that all of them have; a last part always stays."""
  parts = [name.split("/") for name in names]
  common = 0
  while all(len(own) > common + 1 and own[common] == parts[0][common] for own in parts):
    common += 1
  return ["/".join(own[common:]) for own in parts]


def _end_of(name: str) -> str:
  return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME:]


def save(figure: Any, path: pathlib.Path) -> None:
  """Writes a figure whole or not at all, and closes it."""
  figure.tight_layout()
  with replacing(path) as partial:
    figure.savefig(partial, dpi=150)
  plt.close(figure)
