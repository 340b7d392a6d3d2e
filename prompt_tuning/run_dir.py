"""What a run leaves in MODEL_DIR: settings, summary, metrics, curves, and who it belongs to.

  config.gin     the operative settings         metrics.csv   step, split, metric, value
  summary.json   what was restored, initialised and trained; versions; device; results
  settings.json  the settings that a resume must repeat
  loss.png       curves        events.out.*  the same for TensorBoard
  prompt.npy     the best prompt [P, D]          checkpoints/  trained part and optimizer
                 (prompt.safetensors of a method that is more than that)

Of many prompts at once (`members.py`) `prompt.npy` is the best one's, and there are besides:

  members.csv    a row a prompt: its settings and its best metrics      members/<i>/prompt.npy
  learning_rates.png   where their rates differ
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning.checkpoints import method_files
from prompt_tuning.disk import check_local, check_writable, report_full, write_table, write_text
from prompt_tuning.errors import UserError

# Settings that a resumed run may change: they move no number that is already computed. What is said
# of the backbone holds for the copies of its settings that prompts have too.
MAY_CHANGE = ("train_steps", "eval_period", "log_period", "patience", "prefetch", "model_dir",
              "export_dtype", "eval_settings.batch_size", "task.cache_dir", "task.variant.data_dir",
              "model.layout", "model.backbone.remat", "loss.num_microbatches")
_COLUMNS = ("step", "split", "metric", "value")
_SHOWN = 4
_COPY = re.compile(r"model\.prompt\.(?:parts\.[^.]+\.)*config\.")
# Of all prompts, and of one of many.
_TRAIN = re.compile(r"train(/\d+)?")


class RunDir:
  """One MODEL_DIR."""

  def __init__(self, path: str, fixed: Sequence[str] = ()):
    """Args:
      fixed: settings of MAY_CHANGE that this run's numbers do depend on.

    Raises:
      UserError: the path is a bucket's address.
    """
    check_local(path, "MODEL_DIR")
    self.path = pathlib.Path(path)
    self._may_change = tuple(name for name in MAY_CHANGE if name not in fixed)
    self._events: Any = None
    self._first = 0

  def check(self, settings: Mapping[str, Any]) -> None:
    """Checks that the folder is free or this run's; writes nothing.

    Raises:
      UserError: it is a file, holds something else, or a run with other settings.
    """
    with self._saving("the run's settings"):
      is_file = self.path.exists() and not self.path.is_dir()
    if is_file:
      raise UserError("MODEL_DIR is not a folder", found=str(self.path), wanted="a folder",
                      fix="give another --gin.MODEL_DIR")
    stored = self.path / "settings.json"
    # A run that stopped before its first number has nothing to protect.
    if stored.is_file() and (self.path / "metrics.csv").exists():
      old, new = json.loads(stored.read_text()), _jsonable(settings)
      old.pop("corpus", None)
      now = new.pop("teachers", None)
      # Runs of before it was recorded go on.
      before = old.pop("teachers", now)
      _check_same(old, new, self.path, self._may_change)
      if before != now:
        raise UserError("The teachers of the run in MODEL_DIR have changed",
                        found=f"{self.path}: fingerprint {now}", wanted=f"fingerprint {before}",
                        fix="bring the old TEACHER_PROMPTS back, or give a new --gin.MODEL_DIR")
    elif not stored.is_file() and self.path.is_dir() and any(
        not path.match("settings.*.partial.json") for path in self.path.iterdir()):
      raise UserError("MODEL_DIR holds something that is not a run", found=str(self.path),
                      wanted="an empty or new folder, or this run's", fix="give a new MODEL_DIR")

  def claim(self, settings: Mapping[str, Any], corpus: str) -> None:
    """Makes the folder this run's, or checks that it already is.

    Args:
      settings: of the run (`describe`); `teachers` is a fingerprint of what is read besides.
      corpus: fingerprint of its data.

    Raises:
      UserError: as `check`; or the data of the run has changed.
    """
    self.check(settings)
    stored = self.path / "settings.json"
    if stored.is_file() and (self.path / "metrics.csv").exists():
      old = json.loads(stored.read_text()).get("corpus", corpus)
      if old != corpus:
        raise UserError("The data of the run in MODEL_DIR has changed",
                        found=f"{self.path}: fingerprint {corpus}", wanted=f"fingerprint {old}",
                        fix="bring the old data back, or give a new --gin.MODEL_DIR")
    check_writable(self.path, "MODEL_DIR")
    with self._saving("the run's settings"):
      for left in self.path.glob("*.partial.*"):  # by a kill
        left.unlink(missing_ok=True)
      self._write_json("settings.json", {**settings, "corpus": corpus})

  def check_backbone(self, source: str, fingerprint: str) -> None:
    """Checks that a run goes on from the weights that it started from.

    Args:
      source: INITIAL_CHECKPOINT_PATH.
      fingerprint: of its weights.

    Raises:
      UserError: the weights have changed since.
    """
    stored = self.path / "summary.json"
    if not (stored.is_file() and (self.path / "metrics.csv").exists()):
      return
    old = json.loads(stored.read_text())["backbone"]["fingerprint"]
    if old != fingerprint:
      raise UserError("The backbone of the run in MODEL_DIR has changed",
                      found=f"{self.path}: {source!r} has fingerprint {fingerprint}",
                      wanted=f"fingerprint {old}",
                      fix="bring the old weights back, or give a new --gin.MODEL_DIR")

  def write_config(self, text: str) -> None:
    with self._saving("config.gin"):
      write_text(self.path / "config.gin", text)

  def write_summary(self, summary: Mapping[str, Any]) -> None:
    with self._saving("summary.json"):
      self._write_json("summary.json", summary)

  def write_prompt(self, leaves: Mapping[str, Any], metadata: Mapping[str, Any],
                   folder: str = "") -> None:
    """Writes what serves: `prompt.npy` of a plain prompt, else `prompt.safetensors`.

    Args:
      leaves: of the method's served form, flat.
      folder: below MODEL_DIR.
    """
    place = self.path / folder
    if leaves.keys() != {"embedding"}:
      with self._saving(method_files.NAME):
        place.mkdir(parents=True, exist_ok=True)
        method_files.write(place / method_files.NAME, leaves, metadata)
      return
    partial = place / "prompt.partial.npy"
    with self._saving("prompt.npy"):
      place.mkdir(parents=True, exist_ok=True)
      np.save(partial, np.asarray(leaves["embedding"], np.float32))
      os.replace(partial, place / "prompt.npy")

  def write_table(self, name: str, columns: Sequence[str],
                  rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file; None and what a row lacks are empty."""
    with self._saving(name):
      write_table(self.path / name, columns, rows)

  def forget_after(self, step: int, evaluated: int) -> None:
    """Drops the metrics that a resumed run will compute again.

    Args:
      step: the one that is resumed at; -1: none was saved.
      evaluated: the last evaluation that it remembers; -1: none.
    """
    kept = [row for row in self.metrics()
            if row["step"] <= (step if _TRAIN.fullmatch(row["split"]) else evaluated)]
    lines = [",".join(_COLUMNS), *(
      f"{row['step']},{row['split']},{row['metric']},{row['value']!r}" for row in kept)]
    with self._saving("metrics.csv"):
      write_text(self.path / "metrics.csv", "\n".join(lines) + "\n")
    self._first = step + 1

  def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Appends metrics to metrics.csv and the TensorBoard events."""
    target = self.path / "metrics.csv"
    with self._saving("metrics.csv"):
      lines = [] if target.exists() else [",".join(_COLUMNS)]
      lines += [f"{step},{split},{name},{float(value)!r}" for name, value in metrics.items()]
      with target.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
      self._log_event(step, split, metrics)

  def metrics(self) -> list[dict[str, Any]]:
    target = self.path / "metrics.csv"
    if not target.exists():
      return []
    text = target.read_text(encoding="utf-8")
    # A kill or a full disk can leave half a line.
    lines = text[:text.rfind("\n") + 1].splitlines()
    return [{"step": int(r["step"]), "split": r["split"], "metric": r["metric"],
             "value": float(r["value"])} for r in csv.DictReader(lines)]

  def plot_learning_rates(self, rates: Sequence[float], values: Sequence[float],
                          metric: str) -> None:
    """Draws learning_rates.png."""
    from prompt_tuning.plots import draw_learning_rates
    with self._saving("learning_rates.png"):
      draw_learning_rates(rates, values, metric, self.path / "learning_rates.png")

  def plot(self) -> None:
    """Draws loss.png from metrics.csv: the losses, and the metric that chose the best prompt."""
    from prompt_tuning.plots import draw_curves  # matplotlib is slow to import.
    with self._saving("loss.png"):
      draw_curves(self.metrics(), self.path / "loss.png")

  def close(self) -> None:
    if self._events is not None:
      self._events.close()
      self._events = None

  def _saving(self, what: str) -> Any:
    return report_full(what, self.path, "run the same command again: it resumes")

  def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
    write_text(self.path / name, json.dumps(content, indent=2, sort_keys=True) + "\n")

  def _log_event(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    # tensorboardX's writer without its thread, which a full disk would end unseen. Imported by the
    # first run that logs.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar
    if self._events is None:
      # The name ends in the second and the host, which two starts may share.
      count = len(list(self.path.glob("events.out.tfevents.*")))
      self._events = EventsWriter(str(self.path / "events"), f".{count}")
      # TensorBoard then hides what an earlier file says of this step and later ones.
      self._events.write_event(Event(
        wall_time=time.time(), step=self._first,
        session_log=SessionLog(status=SessionLog.START)))
    for name, value in metrics.items():
      if math.isfinite(value):
        self._events.write_event(Event(
          wall_time=time.time(), step=step, summary=scalar(f"{split}/{name}", float(value))))
    self._events.flush()


class ReadOnlyRunDir(RunDir):
  """The MODEL_DIR of a run of several hosts, on all but the first: checked, and never written."""

  def claim(self, settings: Mapping[str, Any], corpus: str) -> None:
    self.check(settings)

  def _skip(self, *args: Any, **kwargs: Any) -> None:
    """Host 0 does it."""

  write_config = write_summary = write_prompt = write_table = forget_after = log = _skip
  plot = plot_learning_rates = _skip


def environment(seed: int) -> dict[str, Any]:
  """Versions, device and seed: what a number of this run depends on besides its settings."""
  import importlib.metadata as metadata
  names = ("prompt-tuning", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio",
           "tensorflow", "numpy")
  device = jax.devices()[0]
  return {"versions": {n: metadata.version(n) for n in names}, "seed": seed,
          "device": f"{device.platform}: {device.device_kind}", "devices": jax.device_count(),
          "hosts": jax.process_count()}


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


def differences(old: Mapping[str, Any], new: Mapping[str, Any],
                may_change: Sequence[str] = MAY_CHANGE) -> dict[str, tuple[Any, Any]]:
  """Dotted path -> (before, now) of the settings that differ; one file has several paths.

  Args:
    old, new: as `describe` gives them.
    may_change: paths that are left out.
  """
  before, now = _leaves(old), _leaves(new)
  return {key: (before.get(key), now.get(key)) for key in sorted(before.keys() | now.keys())
          if _COPY.sub("model.backbone.", key) not in may_change
          and not _are_same(before.get(key), now.get(key))}


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], path: pathlib.Path,
                may_change: Sequence[str]) -> None:
  found = differences(old, new, may_change)
  changed = [f"{key} was {before!r}, is now {now!r}" for key, (before, now) in found.items()]
  fix = "repeat that run's command, or give a new --gin.MODEL_DIR"
  if any(key.endswith(".total_steps") for key in found):
    # TRAIN_STEPS reaches the schedule too.
    may_change = [name for name in may_change if name != "train_steps"]
    fix += ("; its learning rate falls until TRAIN_STEPS, so with other steps those that are done "
            "would have had other rates")
  if changed:
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    raise UserError("MODEL_DIR holds another run",
                    found=f"{path}: {'; '.join(changed[:_SHOWN])}{more}",
                    wanted="the settings it was started with (these may change: "
                    + ", ".join(may_change) + ")", fix=fix)


def _are_same(before: Any, now: Any) -> bool:
  if before == now:
    return True
  # A relative and an absolute path of one file; that its content has changed is found elsewhere.
  return (isinstance(before, str) and isinstance(now, str) and os.path.exists(before)
          and os.path.exists(now) and os.path.samefile(before, now))


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
  """Nested mappings -> dotted path -> value."""
  if not isinstance(value, dict):
    return {path: value}
  flat: dict[str, Any] = {}
  for key, item in value.items():
    flat |= _leaves(item, f"{path}.{key}" if path else key)
  return flat


def _jsonable(value: Any) -> Any:
  return json.loads(json.dumps(value))
