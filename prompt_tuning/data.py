"""A seqio task or mixture, as batches known by their step.

seqio casts and tokenises; its rows are cached untrimmed (`token_cache.py`), ordered
(`batches.py`), then trimmed, padded and given virtual tokens (`converter.py`).

  data = TrainData(task, lengths={"inputs": 512, "targets": 64}, batch_size=32, seed=0,
                   cache_dir=..., placement=Placement.front(100))
  data.at(step)             # a dict of numpy arrays, the same for the same seed and step
  data.steps_per_epoch, data.report
"""

import functools
import hashlib
import logging
import os
import pathlib
import re
import threading
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning.batches import Batches, fold
from prompt_tuning.converter import (
  LengthReport,
  check_feature_lengths,
  check_ids,
  check_truncation,
)
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.placement import PLAIN, Placement
from prompt_tuning.sources import Source
from prompt_tuning.tasks import identity, registry
from prompt_tuning.token_cache import FEATURES, FORMAT_VERSION, Ragged, TokenCache, write_cache

CHUNK_ROWS = 2048
DETERMINISTIC_SEED = 0

# seqio hands seeds to preprocessors through a global variable, while it builds a data set.
_BUILDING = threading.Lock()

log = logging.getLogger(__name__)

# TensorFlow only feeds the model here: it would otherwise take all of the accelerator's memory.
if tf.config.get_visible_devices("GPU"):
  tf.config.set_visible_devices([], "GPU")


class TrainData(Batches):
  """Training batches: `at(step)` is a pure function of the seed and the step.

  Attributes:
    report: lengths and trimmed rows, over all tasks, in the first epoch.
    reports: the same by task name.
    caches: the first epoch's caches by task name.
    steps_per_epoch, examples_per_epoch: see `Batches`.
  """

  def __init__(self, task: seqio.Task | seqio.Mixture, *, lengths: Mapping[str, int],
               batch_size: int, seed: int, cache_dir: str | os.PathLike, split: str = "train",
               placement: Placement = PLAIN, prompt_ids: Mapping[str, int] | None = None,
               pack: bool = False, shuffle: bool = True,
               stochastic: bool | Collection[str] = False,
               use_cached: bool = False, fingerprint: str = "", vocab_size: int | None = None,
               max_truncated_inputs: float = 0.5, max_truncated_targets: float = 0.0,
               host_index: int = 0, host_count: int = 1, last_step: int | None = None):
    """Tokenises what isn't cached yet and checks it, before the first batch.

    Args:
      lengths: T and U, real tokens (`TASK_FEATURE_LENGTHS`).
      batch_size: B, of all hosts together.
      cache_dir: where token caches are kept and found again.
      placement: what stands around each input (or each packed segment).
      prompt_ids: task name -> row of a bank of prompts; adds `prompt_ids [B]` to the batches.
      pack: several examples a row (`packing.py`).
      shuffle: a new order of the rows each epoch, else the source's own.
      stochastic: tasks whose preprocessors draw random numbers, by name, or all (True): they are
        tokenised anew, from (seed, epoch), in each epoch.
      use_cached: read seqio's own offline cache (`USE_CACHED_TASKS`).
      fingerprint: of the text of the table's tasks, which can change under the same name.
      vocab_size: V of the model; ids of V or more are an error.
      max_truncated_inputs, max_truncated_targets: the share of rows that may lose their end.
      last_step: of the run; no epoch beyond it is made ahead. None: there is none.

    Raises `UserError` for settings and data that don't fit.
    """
    lengths = check_feature_lengths(lengths)
    tasks = list(task.tasks) if isinstance(task, seqio.Mixture) else [task]
    if isinstance(stochastic, bool):
      stochastic = [each.name for each in tasks] if stochastic else []
    for names in (stochastic, prompt_ids or ()):
      _check_task_names(names, tasks)
    if prompt_ids is not None and len(prompt_ids) < len(tasks):
      missing = sorted({each.name for each in tasks} - set(prompt_ids))
      raise UserError("Some tasks have no prompt", found=f"none for {', '.join(missing)}",
                      wanted="a prompt id for every task of the mixture",
                      fix="add the tasks to prompt_ids")
    self.reports: dict[str, LengthReport] = {}

    self._closing = threading.Event()

    def cache_of(each: seqio.Task, epoch: int) -> TokenCache:
      epoch_seed = fold(seed, "data", epoch) if each.name in stochastic else None
      cache = cache_task(each, split, cache_dir=cache_dir, epoch_seed=epoch_seed,
                         fingerprint=fingerprint, use_cached=use_cached,
                         stop=self._closing)
      check_ids(each.name, cache, vocab_size)
      report = check_truncation(each.name, cache, lengths,
                                max_truncated_inputs=max_truncated_inputs,
                                max_truncated_targets=max_truncated_targets)
      self.reports.setdefault(each.name, report)
      return cache

    def by_epoch(each: seqio.Task):
      if each.name in stochastic:
        return functools.partial(cache_of, each)
      only = cache_of(each, 0)
      return lambda epoch: only

    sources = [
        Source(each.name, by_epoch(each),
               rate=task.get_rate(each) if isinstance(task, seqio.Mixture) else 1.0,
               prompt_id=prompt_ids[each.name] if prompt_ids is not None else None,
               is_new_each_epoch=each.name in stochastic)
        for each in tasks]
    self.caches = {source.name: source.cache(0) for source in sources}
    self.report = LengthReport.of(list(self.caches.values()), lengths)
    super().__init__(sources, lengths=lengths, batch_size=batch_size, seed=seed,
                     placement=placement, pack=pack, shuffle=shuffle, host_index=host_index,
                     host_count=host_count, last_step=last_step)

  def close(self) -> None:
    """Breaks off what is made ahead."""
    self._closing.set()
    super().close()


def cache_task(task: seqio.Task, split: str, *, cache_dir: str | os.PathLike,
               epoch_seed: int | None = None, fingerprint: str = "",
               use_cached: bool = False,
               stop: threading.Event | None = None) -> TokenCache:
  """The rows of `task`, untrimmed and in the source's order; tokenised on the first call.

  A cache is found again by the task's name, split, vocabularies, preprocessors and source
  (`tasks/identity.py`), `fingerprint`, `epoch_seed` and the format's version; of seqio's offline
  cache, by its files.

  Args:
    epoch_seed: what the preprocessors draw from; None: they draw nothing. The texts before
      tokenising are kept only then.
    fingerprint: of the source's text.
    use_cached: read seqio's offline cache instead of the source.
    stop: breaks the tokenising off (`Stopped`), and leaves nothing.

  Raises `UserError`: unknown split, missing features, no offline cache, no rows, no EOS.
  """
  _check_task(task, split, use_cached)
  folder = pathlib.Path(cache_dir) / _folder_name(task, split, epoch_seed, fingerprint, use_cached)
  cache = _open(folder)
  if cache is None:
    log.info("tokenising %s, split %s", task.name, split)
    cache = write_cache(folder, _until(stop, _chunks(task, split, epoch_seed, use_cached)),
                        lambda: None if use_cached else registry.lost(task.name, split))
  _check_eos(task, cache)
  return cache


def _open(folder: pathlib.Path) -> TokenCache | None:
  """The cache, if it is there."""
  try:
    return TokenCache(folder) if folder.exists() else None
  except UserError:
    if folder.exists():
      raise
    return None  # another run was done with it at this moment


class Stopped(Exception):
  """Tokenising was broken off."""


def _until(stop: threading.Event | None, chunks: Iterator[dict[str, Ragged]]
           ) -> Iterator[dict[str, Ragged]]:
  """The chunks; raises `Stopped` ahead of the first one after `stop` is set."""
  for chunk in chunks:
    if stop is not None and stop.is_set():
      raise Stopped
    yield chunk


def _folder_name(task: seqio.Task, split: str, epoch_seed: int | None, fingerprint: str,
                 use_cached: bool) -> str:
  parts = {
      "format": FORMAT_VERSION, "task": task.name, "split": split, "seed": epoch_seed,
      "fingerprint": fingerprint,
      "data": identity.of_task(task, [split], use_cached=use_cached,
                               with_source=registry.row_of(task.name) is None),
  }
  key = hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()[:16]
  return "-".join([re.sub(r"[^A-Za-z0-9_.]+", "_", task.name), split, key])


def dataset_of(task: seqio.Task, split: str, seed: int | None,
               use_cached: bool) -> tf.data.Dataset:
  """The rows of a task with all of their features, untrimmed, in the order of its cache.

  Args:
    seed: what the preprocessors draw from; None: they draw nothing.
    use_cached: read seqio's offline cache instead of the source.
  """
  options = tf.data.Options()
  options.deterministic = True
  # Preprocessors that draw numbers without being declared stochastic still give one fixed result.
  with _BUILDING:
    return task.get_dataset(sequence_length=None, split=split, use_cached=use_cached,
                            shuffle=False, seed=DETERMINISTIC_SEED if seed is None else seed,
                            try_in_mem_cache=False).with_options(options)


def _chunks(task: seqio.Task, split: str, seed: int | None,
            use_cached: bool) -> Iterator[dict[str, Ragged]]:
  dataset = dataset_of(task, split, seed, use_cached)
  spec = dataset.element_spec
  texts = {f"{name}_text": f"{name}_pretokenized" for name in FEATURES}
  with_text = seed is None and all(
      key in spec and spec[key].dtype == tf.string and spec[key].shape.rank == 0
      for key in texts.values())
  if with_text and "extras" in spec:  # what the metrics want besides (`tasks/metrics.py`)
    texts["extras_text"] = "extras"
  kept = [*FEATURES, *(texts.values() if with_text else ())]
  dataset = dataset.map(lambda row: {key: row[key] for key in kept})
  for chunk in dataset.ragged_batch(CHUNK_ROWS):
    rows = {name: _ragged_ids(chunk[name]) for name in FEATURES}
    if with_text:
      rows |= {name: _ragged_text(chunk[key]) for name, key in texts.items()}
    yield rows


def _ragged_ids(batch: tf.RaggedTensor | tf.Tensor) -> Ragged:
  if isinstance(batch, tf.RaggedTensor):
    return Ragged(batch.flat_values.numpy().astype(np.int32), batch.row_lengths().numpy())
  ids = batch.numpy().astype(np.int32)  # [rows, n]: every row is known to have n ids
  return Ragged(ids.reshape(-1), np.full(len(ids), ids.shape[1]))


def _ragged_text(batch: tf.Tensor) -> Ragged:
  texts = batch.numpy().tolist()
  return Ragged(b"".join(texts), np.fromiter(map(len, texts), np.int64, len(texts)))


def _check_task(task: seqio.Task, split: str, use_cached: bool) -> None:
  for name in FEATURES:
    if name not in task.output_features:
      raise UserError(f"The task {task.name!r} has no {name!r}",
                      found="features " + ", ".join(task.output_features),
                      wanted="inputs and targets", fix="add the feature to the task's row")
  if split not in task.splits:
    raise UserError(f"The task {task.name!r} has no split {split!r}",
                    found=repr(split), wanted="one of " + ", ".join(task.splits),
                    fix=nearest(split, task.splits))
  if use_cached and not (task.supports_caching and task.cache_dir):
    raise UserError(f"The task {task.name!r} has no offline cache",
                    found="USE_CACHED_TASKS = True and no cached files",
                    wanted="seqio's cache in one of seqio.add_global_cache_dirs",
                    fix="run seqio_cache_tasks first, or set USE_CACHED_TASKS = False")
  if not use_cached and task.requires_caching:
    raise UserError(f"The task {task.name!r} can only be read from seqio's offline cache",
                    found="USE_CACHED_TASKS = False", wanted="USE_CACHED_TASKS = True",
                    fix="set USE_CACHED_TASKS = True and point seqio at the cached files")


def _check_eos(task: seqio.Task, cache: TokenCache) -> None:
  for name in FEATURES:
    feature = task.output_features[name]
    if not feature.add_eos or feature.vocabulary.eos_id is None:
      continue
    open_rows = int((cache.last_ids(name) != feature.vocabulary.eos_id).sum())
    if open_rows:
      raise UserError(f"The {name} of {task.name!r} don't end with the end-of-sequence id",
                      found=f"{open_rows} of {len(cache)} rows without it",
                      wanted=f"{feature.vocabulary.eos_id} at the end: the feature has add_eos",
                      fix="end the task's preprocessors with seqio.preprocessors.append_eos, or "
                          f"set add_eos=False for {name}")


def _check_task_names(names: Collection[str], tasks: list[seqio.Task]) -> None:
  known = [each.name for each in tasks]
  for name in names:
    if name not in known:
      raise UserError("That task isn't in the mixture", found=repr(name),
                      wanted="one of " + ", ".join(known), fix=nearest(name, known))
