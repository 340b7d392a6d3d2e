"""Which solved examples stand ahead of a question, and how many of them fit.

  random     K rows of the training pool, the same for every question (`tasks/few_shot.py`)
  balanced   the same, as many of each class; a rest goes to classes drawn at random
  nearest    of each question the K rows whose mean token embedding has the largest cosine with its
             own (Liu et al. 2022, arXiv 2101.06804, with the frozen table for an encoder), the
             nearest one next to the question

Examples are taken from the question outwards, each one that still fits; what does not fit is
counted. The question itself is never left out.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from prompt_tuning.converter import trim
from prompt_tuning.tasks import few_shot

CHOICES = (*few_shot.CHOICES, "nearest")


@dataclasses.dataclass(frozen=True)
class Context:
  """Attributes:
    ids: examples, question and end of sequence.
    examples: pool rows that stand in it, in order.
    left_out: examples that did not fit.
    is_long: the question alone lost its end.
  """

  ids: np.ndarray
  examples: tuple[int, ...]
  left_out: int
  is_long: bool


def nearest(questions: np.ndarray, pool: np.ndarray, shots: int) -> np.ndarray:
  """`[m, D]` and `[n, D]` -> `[m, K]` rows of the pool, the nearest last; of equals the first."""
  few_shot.check_enough(len(pool), shots, "rows")
  cosines = _unit(questions) @ _unit(pool).T
  return np.argsort(-cosines, axis=1, kind="stable")[:, :shots][:, ::-1]


def mean_embeddings(ids: Sequence[np.ndarray], table: np.ndarray) -> np.ndarray:
  """`[n, D]`: the mean of a text's token embeddings; zeros where it has no token."""
  return np.stack([table[row].mean(axis=0) if len(row) else np.zeros(table.shape[1])
                   for row in ids]).astype(np.float64)


def fit(examples: Sequence[np.ndarray], rows: Sequence[int], question: np.ndarray, end: int,
        length: int) -> Context:
  """Joins what fits into `length` tokens.

  Args:
    examples: ids of each example, in order.
    rows: the pool row of each.
    question: its ids, without the end of sequence.
    end: the id of the end of sequence.
  """
  whole = np.append(question, end).astype(np.int32)
  own = trim(whole, length)
  kept = few_shot.fitting([len(example) for example in examples], length - len(own))
  ids = np.concatenate([*(examples[i] for i in kept), own]).astype(np.int32)
  return Context(ids, tuple(int(rows[i]) for i in kept), len(examples) - len(kept),
                 len(own) < len(whole))


def _unit(rows: np.ndarray) -> np.ndarray:
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
