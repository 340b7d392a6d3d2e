"""Which rows make the batch of a step: a pure function of the seed and the step's number.

Every task is an endless stream, permuted anew in each epoch from (seed, epoch); a mixture takes the
next row of one of its tasks, at the tasks' rates, by a fixed interleaving. Batch k is rows
`k * B ... (k + 1) * B - 1` of that stream, so nothing has to be replayed to resume, no row is
dropped at an epoch's end, and host h of H makes only its own slice of each batch. Packed, an epoch
of the stream is first laid out in rows (`packing.py`), and batches are taken from those. Rows that
are new in each epoch are made in a thread of their own, half an epoch ahead.
"""

import bisect
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np

from prompt_tuning import packing
from prompt_tuning.converter import Batch, Row, convert
from prompt_tuning.errors import UserError
from prompt_tuning.placement import PLAIN, Placement
from prompt_tuning.sources import Source
from prompt_tuning.token_cache import TokenCache

KEPT_PACKINGS = 2
# So much of an epoch ahead of its first batch, an epoch that has to be made is begun.
AHEAD = 0.5


def fold(seed: int, *purpose: object) -> int:
  """A seed for one purpose, in 31 bits: the same on every machine and in every version."""
  digest = hashlib.sha256(repr((seed, *purpose)).encode("utf-8")).digest()
  return int.from_bytes(digest[:4], "big") >> 1


class Batches:
  """Batches of a task or a mixture, by step.

  Attributes:
    examples_per_epoch: rows of all the tasks together.
    steps_per_epoch: batches it takes to see that many; the last one may reach into the next epoch.
  """

  def __init__(self, sources: Sequence[Source], *, lengths: Mapping[str, int], batch_size: int,
               seed: int, placement: Placement = PLAIN, pack: bool = False, shuffle: bool = True,
               host_index: int = 0, host_count: int = 1, last_step: int | None = None):
    """Args: batch_size: B, of all hosts together. The rest: see `data.TrainData`."""
    self._sources, self._lengths, self._placement = list(sources), lengths, placement
    self._rows_per_host = rows_per_host(batch_size, host_index, host_count)
    self._batch_size, self._host_index = batch_size, host_index
    self._prompted = any(source.prompt_id is not None for source in sources)
    if pack and self._prompted:
      raise UserError("Packed batches can't choose a prompt by task",
                      found="pack = True and prompt ids", wanted="one of the two",
                      fix="set pack to False: the segments of a row share one prompt")
    self._order = _stream(self._sources, seed if shuffle else None)
    self._pack = pack
    self._packings: dict[int, tuple[np.ndarray, packing.Packing]] = {}
    self._packed_rows = [0]
    self._lock = threading.Lock()
    self._last_step = last_step
    self._makes_epochs = any(source.is_new_each_epoch for source in sources)
    self.examples_per_epoch = sum(source.rows for source in sources)
    rows = len(self._packing(0)[1]) if pack else self.examples_per_epoch
    self.steps_per_epoch = -(-rows // batch_size)

  def at(self, step: int) -> Batch:
    """The arrays of step `step` (`converter.py` and, packed, `packing.py` say which).

    `[B / host_count, ...]`: this host's slice of the batch.
    """
    ahead = max(1, round(AHEAD * self.steps_per_epoch))
    # To look ahead costs as much as to make a batch of short rows: a few times an epoch are enough.
    if self._makes_epochs and step % max(1, ahead // 10) == 0:
      self._prepare(step + ahead)
    numbers = self._numbers(step)
    if self._pack:
      rows = [[self._row(*entry) for entry in self._packed_row(number)] for number in numbers]
      return packing.convert_packed(rows, self._lengths, placement=self._placement)
    entries = [self._order[number] for number in numbers]
    prompt_ids = [self._sources[entry[0]].prompt_id for entry in entries]
    return convert([self._row(*entry) for entry in entries], self._lengths,
                   placement=self._placement,
                   prompt_ids=prompt_ids if self._prompted else None)

  def close(self) -> None:
    """Waits for what is made ahead."""
    for source in self._sources:
      source.join()

  def _numbers(self, step: int) -> range:
    """Which rows of the stream this host makes of a step's batch."""
    start = step * self._batch_size + self._host_index * self._rows_per_host
    return range(start, start + self._rows_per_host)

  def _prepare(self, step: int) -> None:
    """Begins to make what the batch of a step needs, if the run has that step."""
    numbers = self._numbers(step if self._last_step is None else min(step, self._last_step))
    if self._pack:
      with self._lock:
        if numbers[-1] < self._packed_rows[-1]:
          return
        first = (len(self._packed_rows) - 1) * self.examples_per_epoch
      # A thousandth of them tells which tasks and epochs there are.
      numbers = range(first, first + self.examples_per_epoch,
                      max(1, self.examples_per_epoch // 1000))
    for source, epoch in {self._order[number][:2] for number in numbers}:
      if self._sources[source].is_new_each_epoch:
        self._sources[source].prepare(int(epoch))

  def _row(self, source: int, epoch: int, row: int) -> Row:
    cache = self._sources[source].cache(int(epoch))
    return cache.ids("inputs", int(row)), cache.ids("targets", int(row))

  def _packed_row(self, number: int) -> np.ndarray:
    """`[segments, 3]` (source, epoch, row) of row `number` of the endless packed stream."""
    with self._lock:
      while self._packed_rows[-1] <= number:
        self._packing(len(self._packed_rows) - 1)
      epoch = bisect.bisect_right(self._packed_rows, number) - 1
      entries, packed = self._packing(epoch)
      return entries[packed[number - self._packed_rows[epoch]]]

  def _packing(self, epoch: int) -> tuple[np.ndarray, packing.Packing]:
    """The stream's examples of one epoch as `[M, 3]` (source, epoch, row), and their rows."""
    if epoch not in self._packings:
      first = epoch * self.examples_per_epoch
      entries = np.array([self._order[number] for number in
                          range(first, first + self.examples_per_epoch)], np.int64)
      found = {name: self._lengths_of(entries, name) for name in ("inputs", "targets")}
      packed = packing.pack(found["inputs"], found["targets"], self._lengths,
                            placement=self._placement)
      if epoch == len(self._packed_rows) - 1:
        self._packed_rows.append(self._packed_rows[-1] + len(packed))
      while len(self._packings) >= KEPT_PACKINGS:
        del self._packings[min(self._packings)]
      self._packings[epoch] = entries, packed
    return self._packings[epoch]

  def _lengths_of(self, entries: np.ndarray, feature: str) -> np.ndarray:
    result = np.empty(len(entries), np.int64)
    for source, epoch in np.unique(entries[:, :2], axis=0):
      chosen = (entries[:, 0] == source) & (entries[:, 1] == epoch)
      cache = self._sources[source].cache(int(epoch))
      result[chosen] = cache.lengths(feature)[entries[chosen, 2]]
    return result


def eval_batches(cache: TokenCache, *, lengths: Mapping[str, int], batch_size: int,
                 placement: Placement = PLAIN, prompt_id: int | None = None,
                 host_index: int = 0, host_count: int = 1) -> Iterator[Batch]:
  """All rows of `cache` once, in its order; every batch has the same shape.

  The last batch is filled up with rows that hold no input and no target, so no loss weight.
  Beside the arrays of `converter.py`: `row_mask [B] bool`, False in rows that only fill up, and
  `row_ids [B] int32`, the row of the cache (-1 where there is none).
  """
  size = rows_per_host(batch_size, host_index, host_count)
  nothing = np.zeros(0, np.int32)
  for start in range(0, len(cache), batch_size):
    first = start + host_index * size
    row_ids = np.array([row if row < len(cache) else -1 for row in range(first, first + size)],
                       np.int32)
    rows = [(cache.ids("inputs", row), cache.ids("targets", row)) if row >= 0 else
            (nothing, nothing) for row in row_ids.tolist()]
    batch = convert(rows, lengths, placement=placement,
                    prompt_ids=None if prompt_id is None else [prompt_id] * size)
    yield {**batch, "row_mask": row_ids >= 0, "row_ids": row_ids}


def rows_per_host(batch_size: int, host_index: int, host_count: int) -> int:
  """How many of `batch_size` rows each host makes; a `UserError` if they don't divide."""
  if batch_size < 1 or host_count < 1 or batch_size % host_count:
    raise UserError("BATCH_SIZE can't be shared out", found=f"{batch_size} rows, "
                    f"{host_count} hosts", wanted="a multiple of the number of hosts, 1 or more",
                    fix="set BATCH_SIZE to a multiple of the number of hosts")
  if not 0 <= host_index < host_count:
    raise UserError("There is no such host", found=f"host_index {host_index}",
                    wanted=f"0 to {host_count - 1}", fix="set host_index to the process's index")
  return batch_size // host_count


def _stream(sources: Sequence[Source], seed: int | None) -> grain.MapDataset:
  """Endless `[number] -> (source, epoch, row)`; grain permutes anew each time a task runs out.

  Without a seed, rows keep their order.
  """
  streams = []
  for index, source in enumerate(sources):
    if not source.rate > 0:
      raise UserError(f"The rate of {source.name!r} in the mixture is not positive",
                      found=source.rate, wanted="a rate above 0",
                      fix="give the task a rate, or leave it out of the mixture")
    rows = grain.MapDataset.range(source.rows)
    shuffled = rows.repeat() if seed is None else rows.shuffle(fold(seed, "order", source.name))
    streams.append(shuffled.map_with_index(_label(index, source.rows)))
  if len(streams) == 1:
    return streams[0]
  return grain.MapDataset.mix(streams, [source.rate for source in sources])


def _label(index: int, rows: int) -> Callable[[int, int], tuple[int, int, int]]:
  return lambda number, row: (index, number // rows, row)
