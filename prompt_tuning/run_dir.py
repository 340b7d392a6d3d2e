"""What a run leaves in MODEL_DIR: settings, summary, metrics, curves, and who it belongs to.

  config.gin     the operative settings         metrics.csv   step, split, metric, value
  summary.json   what was restored, initialised and trained; versions; device; results
  settings.json  the settings that a resume must repeat
  loss.png       curves        events.out.*  the same for TensorBoard
  prompt.npy     the best prompt [P, D]          checkpoints/  trained part and optimizer
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prompt_tuning.errors import UserError

# Settings that a resumed run may change: they move no number that is already computed.
MAY_CHANGE = ("train_steps", "eval_period", "log_period", "model_dir", "cache_dir", "patience",
              "prefetch", "eval_settings")


class RunDir:
  """One MODEL_DIR."""

  def __init__(self, path: str):
    self.path = pathlib.Path(path)
    self._events: Any = None

  def claim(self, settings: Mapping[str, Any]) -> None:
    """Makes the folder this run's, or checks that it already is.

    Raises:
      UserError: it is a file, holds something else, or a run with other settings.
    """
    if self.path.exists() and not self.path.is_dir():
      raise UserError("MODEL_DIR is not a folder", found=str(self.path), wanted="a folder",
                      fix="give another --gin.MODEL_DIR")
    stored = self.path / "settings.json"
    if stored.is_file():
      _check_same(json.loads(stored.read_text()), _jsonable(settings), self.path)
      return
    if self.path.is_dir() and any(self.path.iterdir()):
      raise UserError("MODEL_DIR holds something that is not a run", found=str(self.path),
                      wanted="an empty or new folder, or this run's", fix="give a new MODEL_DIR")
    self.path.mkdir(parents=True, exist_ok=True)
    write_text(stored, json.dumps(_jsonable(settings), indent=2, sort_keys=True) + "\n")

  def write_config(self, text: str) -> None:
    write_text(self.path / "config.gin", text)

  def write_summary(self, summary: Mapping[str, Any]) -> None:
    write_text(self.path / "summary.json",
               json.dumps(_jsonable(summary), indent=2, sort_keys=True) + "\n")

  def write_prompt(self, table: Any) -> None:
    partial = self.path / "prompt.partial.npy"
    np.save(partial, np.asarray(table, np.float32))
    os.replace(partial, self.path / "prompt.npy")

  def forget_after(self, step: int) -> None:
    """Drops the metrics of steps that a resumed run will compute again."""
    rows = [row for row in self.metrics() if row["step"] <= step]
    lines = ["step,split,metric,value"]
    lines += [f"{r['step']},{r['split']},{r['metric']},{r['value']!r}" for r in rows]
    write_text(self.path / "metrics.csv", "\n".join(lines) + "\n")

  def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Appends metrics to metrics.csv and the TensorBoard events."""
    target = self.path / "metrics.csv"
    new = not target.exists()
    with target.open("a", newline="") as file:
      writer = csv.writer(file, lineterminator="\n")
      if new:
        writer.writerow(["step", "split", "metric", "value"])
      for name, value in metrics.items():
        writer.writerow([step, split, name, repr(float(value))])
    if self._events is None:
      from tensorboardX import SummaryWriter  # Imported by the first run that logs.
      self._events = SummaryWriter(str(self.path), purge_step=step)
    for name, value in metrics.items():
      if math.isfinite(value):
        self._events.add_scalar(f"{split}/{name}", float(value), step)

  def metrics(self) -> list[dict[str, Any]]:
    target = self.path / "metrics.csv"
    if not target.exists():
      return []
    with target.open(newline="") as file:
      return [{"step": int(r["step"]), "split": r["split"], "metric": r["metric"],
               "value": float(r["value"])} for r in csv.DictReader(file)]

  def plot(self) -> None:
    """Draws loss.png from metrics.csv: the losses, and the metric that chose the best prompt."""
    from prompt_tuning.plots import draw_curves  # matplotlib is slow to import.
    draw_curves(self.metrics(), self.path / "loss.png")

  def close(self) -> None:
    if self._events is not None:
      self._events.close()


def environment(seed: int) -> dict[str, Any]:
  """Versions, device and seed: what a number of this run depends on besides its settings."""
  import importlib.metadata as metadata
  names = ("prompt-tuning", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio",
           "tensorflow", "numpy")
  device = jax.devices()[0]
  return {"versions": {n: metadata.version(n) for n in names}, "seed": seed,
          "device": f"{device.platform}: {device.device_kind}", "devices": jax.device_count()}


def describe(value: Any) -> Any:
  """A frozen dataclass, Linen modules included, as nested JSON: class names and fields."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)
              if f.name not in ("parent", "name") or not hasattr(value, "scope")}
    return {"class": type(value).__name__, **fields}
  if isinstance(value, Mapping):
    return {str(k): describe(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [describe(v) for v in value]
  return value if isinstance(value, str | int | float | bool | type(None)) else repr(value)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file in one step: a kill leaves the old one or the new one."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], path: pathlib.Path) -> None:
  changed = [key for key in sorted(old.keys() | new.keys())
             if key not in MAY_CHANGE and old.get(key) != new.get(key)]
  if changed:
    shown = "; ".join(_difference(key, old.get(key), new.get(key)) for key in changed)
    raise UserError("MODEL_DIR holds another run", found=f"{path}: {shown}",
                    wanted="the settings it was started with (these may change: "
                    + ", ".join(MAY_CHANGE) + ")",
                    fix="repeat that run's command, or give a new --gin.MODEL_DIR")


def _difference(path: str, old: Any, new: Any) -> str:
  """The first place where two descriptions part."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted(old.keys() | new.keys()):
      if old.get(key) != new.get(key):
        return _difference(f"{path}.{key}", old.get(key), new.get(key))
  return f"{path} was {old!r}, is now {new!r}"


def _jsonable(value: Any) -> Any:
  return json.loads(json.dumps(value))
