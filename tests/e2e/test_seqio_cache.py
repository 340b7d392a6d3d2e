"""seqio's offline cache: our commands read it, its rows are the task's own, other files are new.

Without Apache Beam the cache is written by what of seqio needs none: its names of files, its form
of examples, what it does ahead of a cache. With Beam, `seqio_cache_tasks` itself writes it.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import seqio
import tensorflow as tf
from toy_runs import Folder

from prompt_tuning.data import cache_task
from prompt_tuning.tasks import registry

pytestmark = pytest.mark.e2e
TASKS = pathlib.Path(__file__).parent
ROWS = 24  # of each split of toy_tasks.py


@pytest.fixture
def toy_tasks():
  """It adds tasks to the table: not while tests are collected that go through the table."""
  return importlib.import_module("toy_tasks")


@pytest.fixture
def task(toy_tasks):
  """The toy task; neither it nor seqio knows of a cache."""
  before = seqio.get_global_cache_dirs()
  found = registry.build("toy_labels", vocabulary="bytes")
  found._cache_dir = None  # seqio remembers where it found one
  yield found
  seqio.set_global_cache_dirs(before)
  found._cache_dir = None


def write(task, folder, shards=2):
  """seqio's published form: shards of tf.train.Example, info, stats, and COMPLETED at the end."""
  place = folder / seqio.get_task_dir_from_name(task.name)
  place.mkdir(parents=True)
  for split in task.splits:
    rows = list(task.preprocess_precache(task.source.get_dataset(split, shuffle=False)))
    # Beam shuffles: the order is not the source's.
    rows = rows[::-1]
    for i in range(shards):
      name = f"{seqio.get_cached_tfrecord_prefix(str(place), split)}-{i:05}-of-{shards:05}"
      with tf.io.TFRecordWriter(name) as file:
        for row in rows[i::shards]:
          file.write(seqio.dict_to_tfexample(
            {key: value.numpy() for key, value in row.items()}).SerializeToString())
    features = {key: {"shape": [None] * value.shape.rank, "dtype": value.dtype.name}
                for key, value in rows[0].items()}
    pathlib.Path(seqio.get_cached_info_path(str(place), split)).write_text(json.dumps(
      {"num_shards": shards, "features": features, "seqio_version": seqio.__version__}))
    pathlib.Path(seqio.get_cached_stats_path(str(place), split)).write_text(json.dumps(
      {"examples": len(rows)}))
  (place / "COMPLETED").write_text("")


def rows_of(cache):
  """Sorted: a cache has an order of its own."""
  return sorted((tuple(row["inputs"].tolist()), tuple(row["targets"].tolist()), row["inputs_text"],
                 row["targets_text"], row["extras_text"]) for row in map(cache.__getitem__,
                                                                         range(len(cache))))


def check_rows(task, cached_dir, tmp_path):
  seqio.set_global_cache_dirs([str(cached_dir)])
  for split in task.splits:
    cached, own = (cache_task(task, split, cache_dir=tmp_path / "tokens", use_cached=use)
                   for use in (True, False))
    assert rows_of(cached) == rows_of(own) and len(own) == ROWS
    assert (cached.lost, own.lost) == (None, {"unusable": 0, "short_contexts": 0})


def check_training(cached_dir, tmp_path, monkeypatch):
  """Our command trains from the cache alone: the source itself is not read."""
  monkeypatch.setattr("toy_tasks.InMemory.rows", None)
  folder = Folder(tmp_path)
  outcome = folder.train("cached", USE_CACHED_TASKS=True, CACHED_TASKS_DIRS=(str(cached_dir),),
                         TRAIN_STEPS=2, EVAL_PERIOD=2,
                         run_config__TaskConfig__cache_dir=str(tmp_path / "tokens"))
  assert outcome.summary["data"]["rows"] == outcome.best.metrics["examples"] == 24


def test_a_cache_in_its_published_form(task, tmp_path, monkeypatch):
  write(task, tmp_path / "seqio")
  check_rows(task, tmp_path / "seqio", tmp_path)
  check_training(tmp_path / "seqio", tmp_path, monkeypatch)


def test_a_cache_that_was_written_again_is_read_again(task, tmp_path):
  found = []
  for folder, count in (("one", 24), ("two", 20)):
    write(task, tmp_path / folder)
    if count < 24:  # another cache: a shard with fewer rows
      shard = next((tmp_path / folder).glob("*/train.tfrecord-00000*"))
      kept = list(tf.data.TFRecordDataset(str(shard)))[:8]
      with tf.io.TFRecordWriter(str(shard)) as file:
        for row in kept:
          file.write(row.numpy())
    seqio.set_global_cache_dirs([str(tmp_path / folder)])
    task._cache_dir = None
    found.append(len(cache_task(task, "train", cache_dir=tmp_path / "tokens", use_cached=True)))
  assert found == [24, 20]


def test_seqio_cache_tasks_itself(task, tmp_path, monkeypatch):
  pytest.importorskip("apache_beam", reason="seqio_cache_tasks needs Apache Beam, which does not "
                      "install beside requirements.lock: docs/mixtures.md")
  done = subprocess.run(
    [sys.executable, "-m", "seqio.scripts.cache_tasks_main", f"--tasks={task.name}",
     "--module_import=toy_tasks", "--module_import=prompt_tuning.tasks.registered",
     f"--output_cache_dir={tmp_path / 'seqio'}", "--min_shards=2"],
    capture_output=True, text=True, env=os.environ | {
      "PYTHONPATH": str(TASKS), "PROMPT_TUNING_VOCABULARY": "bytes"})
  assert done.returncode == 0, done.stderr[-2000:]
  check_rows(task, tmp_path / "seqio", tmp_path)
  check_training(tmp_path / "seqio", tmp_path, monkeypatch)
