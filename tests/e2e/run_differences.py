"""Two runs of one command, file by file: what is not the same to the bit."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorflow as tf
from tensorboardX.proto.event_pb2 import Event, SessionLog
from toy_runs import TIMINGS

# What tells one start of a command from another.
_OF_THE_START = ("seconds", "resumed_at")
_EVENTS = "events.out.tfevents.*"
# Orbax gives array data random names, below this depth.
_DEPTH = 5


def differences(whole: Path, other: Path) -> list[str]:
  """A line a difference of `other` from the uninterrupted run; none if it is the same run."""
  found = _sets_differ("files", _files(whole), _files(other))
  for name in ("prompt.npy", "loss.png", "backbone/backbone.safetensors", "backbone/backbone.json"):
    if (whole / name).exists() and _bytes(whole / name) != _bytes(other / name):
      found.append(f"{name} differs")
  for name in ("config.gin", "settings.json"):
    if _text(whole / name) != _text(other / name):
      found.append(f"{name} differs")
  if _summary(whole) != _summary(other):
    found.append(f"summary.json: {_summary(other)} is not {_summary(whole)}")
  for name in ("last", "best"):
    found += _sets_differ(f"checkpoints/{name}", _checkpoint(whole / "checkpoints" / name),
                          _checkpoint(other / "checkpoints" / name))
  return found + _metrics_differ(whole, other) + _events_differ(other)


def _files(run: Path) -> set[str]:
  paths = (path.relative_to(run) for path in run.rglob("*"))
  return {str(path) for path in paths if len(path.parts) <= _DEPTH and not path.match(_EVENTS)}


def _bytes(path: Path) -> bytes | None:
  return path.read_bytes() if path.is_file() else None


def _text(path: Path) -> str | None:
  return path.read_text().replace(str(path.parent), "") if path.is_file() else None


def _summary(run: Path) -> dict:
  return {k: v for k, v in json.loads((run / "summary.json").read_text()).items()
          if k not in _OF_THE_START}


def _checkpoint(folder: Path) -> set[tuple[str, str]]:
  """(path, bytes in hex) of every leaf, and the counters that are no clock's."""
  with ocp.CheckpointManager(folder.absolute()) as manager:
    restored = manager.restore(manager.latest_step(), args=ocp.args.Composite(
      state=ocp.args.StandardRestore(), counters=ocp.args.JsonRestore()))
  leaves = {(jax.tree_util.keystr(path), np.asarray(leaf).tobytes().hex())
            for path, leaf in jax.tree_util.tree_leaves_with_path(restored["state"])}
  return leaves | {(name, repr(value)) for name, value in restored["counters"].items()
                   if name != "seconds"}


def _sets_differ(what: str, whole: set, other: set) -> list[str]:
  return [f"{what}: {kind} {sorted(names)[:3]}" for kind, names in (
    ("missing", whole - other), ("left over", other - whole)) if names]


def _rows(run: Path) -> list[list[str]]:
  with (run / "metrics.csv").open() as file:
    return list(csv.reader(file))


def _metrics_differ(whole: Path, other: Path) -> list[str]:
  wanted, rows = _rows(whole), _rows(other)
  names = [tuple(row[:3]) for row in rows]
  if len(set(names)) < len(names):
    return ["metrics.csv has a row twice"]
  if names != [tuple(row[:3]) for row in wanted]:
    return ["metrics.csv has other rows"]
  return [f"metrics.csv: {row} is not {good}" for row, good in zip(rows, wanted, strict=True)
          if row != good and row[2] not in TIMINGS]


def _events_differ(run: Path) -> list[str]:
  """What TensorBoard shows is what metrics.csv says."""
  shown: list[tuple[int, str, float]] = []
  for path in sorted(run.glob(_EVENTS)):
    for record in tf.data.TFRecordDataset(str(path)):
      event = Event.FromString(record.numpy())
      if event.session_log.status == SessionLog.START:
        shown = [point for point in shown if point[0] < event.step]
      shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
  logged = [(int(step), f"{split}/{name}", float(np.float32(float(value))))
            for step, split, name, value in _rows(run)[1:]]
  return [] if shown == logged else ["the TensorBoard events are not metrics.csv"]
