"""Rows of many tasks through one model: batches of what can share one, answers in the rows' order.

A batch holds rows of any tasks whose prompts are in one group (`prompt_bank.py`), each row with its
own prompt; rows that are ranked by labels and rows that are generated are different programs, so
they queue apart. All batches of a queue have one shape, so each compiles once; what fills the last
one up is dropped. A row's answer does not depend on the rest of its batch, bit for bit: every
product and softmax is a row's own.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning import constraints, generation, hosts, scoring
from prompt_tuning.constraints import Constraints
from prompt_tuning.converter import trim
from prompt_tuning.generation import Decoding
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompt_bank import Bank
from prompt_tuning.train_state import purpose_key
from prompt_tuning.trees import Split

_NOTHING = np.zeros(0, np.int32)
_NO_SPLIT = Split({})


@dataclasses.dataclass(frozen=True)
class Row:
  """One thing to answer.

  Attributes:
    ids: of the input, untrimmed.
    group: of the bank.
    prompts: rows of the group's bank: one, or what a steering needs to generate, in its order.
    labels: `[C, U]` ids to choose among; None: generate.
  """

  ids: np.ndarray
  group: int
  prompts: tuple[int, ...] = (0,)
  labels: np.ndarray | None = None

  @property
  def queue(self) -> tuple[int, int, bool]:
    return self.group, len(self.prompts), self.labels is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """A bank with its parameters, and how it answers.

  Attributes:
    params: of every group.
    lengths: TASK_FEATURE_LENGTHS.
    batch_size: rows that the model reads at once.
    decoding, limits, steering: of what is generated.
    seed: of sampling; row i draws the same whatever batch it is in.
    partitioner: splits batches as the parameters are; None: all is on one device. Of several
      hosts every one has all rows, and gets all answers.
  """

  bank: Bank
  params: Sequence[Mapping[str, Any]]
  lengths: Mapping[str, int]
  batch_size: int = 64
  decoding: Decoding = Decoding()
  limits: Constraints = constraints.NONE
  steering: Any = None
  seed: int = 0
  partitioner: Partitioner | None = None

  def __call__(self, rows: Sequence[Row]) -> Iterator[np.ndarray]:
    """The rows' answers in their order: label scores `[C]`, or generated ids `[U]`."""
    waiting: dict[tuple, list[int]] = {}
    for number, row in enumerate(rows):
      waiting.setdefault(row.queue, []).append(number)
    sizes = {queue: self._padded(min(max(1, self.batch_size // queue[1]), len(numbers)))
             for queue, numbers in waiting.items()}
    shapes = {queue: np.max([rows[i].labels.shape for i in numbers], axis=0)
              for queue, numbers in waiting.items() if not queue[2]}
    done: dict[int, np.ndarray] = {}
    for number, row in enumerate(rows):
      if number not in done:
        queue, size = waiting[row.queue], sizes[row.queue]
        batch, waiting[row.queue] = queue[:size], queue[size:]
        found = self._batch([rows[i] for i in batch], batch, size, shapes.get(row.queue))
        done |= dict(zip(batch, found, strict=True))
      yield done.pop(number)

  def _padded(self, size: int) -> int:
    return size if self.partitioner is None else self.partitioner.padded(size)

  def _placed(self, array: Any) -> Any:
    if self.partitioner is None or array is None:
      return array
    return hosts.put(array, self.partitioner.over_batch())

  def _batch(self, rows: Sequence[Row], numbers: Sequence[int], size: int,
             label_shape: np.ndarray | None) -> list[np.ndarray]:
    place = rows[0].group
    group, params = self.bank.groups[place], self.params[place]
    filler = Row(_NOTHING, place, rows[0].prompts)
    filled = [*rows, *[filler] * (size - len(rows))]
    length = self.lengths["inputs"]
    prompts = np.array([i for row in filled for i in row.prompts], np.int32)
    tokens = group.rows(prompts, [trim(row.ids, length) for row in filled for _ in row.prompts],
                        length)
    tokens = self._placed(tokens)
    prompt_ids = self._placed(prompts) if len(group.prompts) > 1 else None

    def call(*args: Any, **static: Any) -> np.ndarray:
      return np.asarray(hosts.fetch(scoring.call(
        {}, params, _NO_SPLIT, group.model, *args, partitioner=self.partitioner, **static)))

    if label_shape is None:
      key = purpose_key(self.seed, "sampling")
      keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(
        np.array([*numbers, *[0] * (size - len(rows))], np.uint32))
      made = call(generation.generate, tokens, keys, prompt_ids, self.limits, self.steering,
                  how=self.decoding, max_length=self.lengths["targets"])
      return list(made[:len(rows)])
    labels = np.zeros((size, *label_shape), np.int32)
    for out, row in zip(labels, rows, strict=False):
      out[:row.labels.shape[0], :row.labels.shape[1]] = row.labels
    scores = call(scoring.label_scores, tokens, labels, prompt_ids)
    return [found[:len(row.labels)] for found, row in zip(scores, rows, strict=False)]
