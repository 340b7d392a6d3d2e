"""Numbers about the vectors of prompts: words near them, clusters, labels that persist, distances.

Lester et al. 2021 (arXiv 2104.08691), section 7: the words nearest to a virtual token, by cosine,
are often near to each other too; and where a prompt started from class labels, the labels often are
still the nearest words. Similarities of whole prompts are those of `transfer.py`.

Letters as in `interfaces.py`: a prompt is `[P, D]`, the token table `[V, D]`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform

from prompt_tuning.transfer import cosines


def nearest_words(prompt: np.ndarray, embedding: np.ndarray, piece_of: Callable[[int], str],
                  k: int) -> list[list[tuple[str, float]]]:
  """The k rows of the embedding table nearest to each prompt vector.

  Args:
    prompt: `[P, D]`.  embedding: `[V, D]`.
    piece_of: how an id is written.

  Returns:
    For each of the P vectors, (word, cosine), nearest first; the lower id of two that are equal.
  """
  found, order = _nearest(prompt, embedding, k)
  return [[(piece_of(int(i)), float(row[i])) for i in ids]
          for row, ids in zip(found, order, strict=True)]


def cohesion(prompt: np.ndarray, embedding: np.ndarray, k: int, seed: int = 0) -> tuple[float,
                                                                                       float]:
  """How near the k words nearest to a vector are to each other; and k words drawn at random.

  Returns:
    Mean cosine over the pairs of words of a vector and over the vectors; the same for as many
    random draws from the table.
  """
  _, order = _nearest(prompt, embedding, k)
  generator = np.random.default_rng(seed)
  drawn = [generator.choice(len(embedding), k, replace=False) for _ in order]
  pairs = np.triu_indices(k, 1)

  def mean(groups: Sequence[np.ndarray]) -> float:
    return float(np.mean([cosines(embedding[ids])[pairs].mean() for ids in groups]))

  return mean(order), mean(drawn)


def clusters(prompt: np.ndarray, count: int) -> np.ndarray:
  """`[P]` numbers from 0, the largest cluster first: average linkage over 1 - cosine."""
  if len(prompt) == 1:
    return np.zeros(1, int)
  distance = 1.0 - cosines(prompt)
  np.fill_diagonal(distance, 0.0)
  tree = linkage(squareform((distance + distance.T) / 2, checks=False), method="average")
  found = fcluster(tree, count, criterion="maxclust")
  names, sizes = np.unique(found, return_counts=True)
  # Of equal sizes the one with the first vector.
  first = [int(np.argmax(found == name)) for name in names]
  order = sorted(range(len(names)), key=lambda i: (-sizes[i], first[i]))
  number = {int(names[i]): n for n, i in enumerate(order)}
  return np.array([number[int(name)] for name in found])


def principal_components(prompt: np.ndarray) -> np.ndarray:
  """`[P, D]` -> `[P, 2]`, for a figure; a second component of zeros where there is none."""
  centred = np.asarray(prompt, np.float64) - np.mean(prompt, axis=0)
  left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
  found = np.zeros((len(prompt), 2))
  width = min(2, len(sizes))
  found[:, :width] = left[:, :width] * sizes[:width]
  return found


@dataclasses.dataclass(frozen=True)
class LabelReading:
  """What is left of a label in a prompt.

  Attributes:
    label: the text.
    row: where a start from class labels put it; None beyond the prompt's length.
    row_cosine, row_rank: of that row and the label; 1 is the nearest of all words.
    best_row, best_cosine, best_rank: of the row nearest to the label.
  """

  label: str
  row: int | None
  row_cosine: float | None
  row_rank: int | None
  best_row: int
  best_cosine: float
  best_rank: int


def label_readings(prompt: np.ndarray, embedding: np.ndarray, labels: Sequence[str],
                   encode: Callable[[str], Sequence[int]]) -> list[LabelReading]:
  """Where labels are to be found among a prompt's vectors.

  A label of several tokens is the mean of their embeddings, as the initialisation has it; its rank
  is 1 more than the number of words nearer to the vector.

  Args:
    labels: in the order of CLASS_LABELS: row i started as label i.
  """
  means = np.stack([embedding[list(encode(label))].mean(axis=0) for label in labels])
  of_labels = cosines(prompt, means)  # [P, C]
  of_words = cosines(prompt, embedding)  # [P, V]
  # A label of one token is a word too, and not nearer than itself.
  ranks = 1 + (of_words[:, None, :] > of_labels[..., None] + 1e-9).sum(axis=-1)
  result = []
  for i, label in enumerate(labels):
    best = int(of_labels[:, i].argmax())
    own = i < len(prompt)
    result.append(LabelReading(
      label, i if own else None, float(of_labels[i, i]) if own else None,
      int(ranks[i, i]) if own else None, best, float(of_labels[best, i]), int(ranks[best, i])))
  return result


@dataclasses.dataclass(frozen=True)
class PairReading:
  """How far two prompts are apart.

  Attributes:
    mean_cosine: of their mean vectors.
    row_cosine: mean over rows p, of row p with row p; None where the lengths differ.
    matched_cosine: the same after the rows are paired so that it is largest (prompts of two seeds
      may hold the same vectors in another order); of the shorter one's rows.
    distance: root of the mean squared distance of row p and row p; None where the lengths differ.
    shared_words: words among the k nearest of any vector that both prompts have, of those that
      either has.
  """

  mean_cosine: float
  row_cosine: float | None
  matched_cosine: float
  distance: float | None
  shared_words: float


def pair_reading(first: np.ndarray, second: np.ndarray, embedding: np.ndarray,
                 k: int) -> PairReading:
  table = cosines(first, second)
  rows, columns = linear_sum_assignment(-table)
  words = [set(_nearest(prompt, embedding, k)[1].ravel().tolist()) for prompt in (first, second)]
  means = cosines(np.mean(first, axis=0, keepdims=True), np.mean(second, axis=0, keepdims=True))
  same = first.shape == second.shape
  difference = np.asarray(first, np.float64) - second if same else None
  return PairReading(
    mean_cosine=float(means[0, 0]), row_cosine=float(np.diag(table).mean()) if same else None,
    matched_cosine=float(table[rows, columns].mean()),
    distance=None if difference is None else float(np.sqrt((difference**2).sum(axis=1).mean())),
    shared_words=len(words[0] & words[1]) / len(words[0] | words[1]))


def _nearest(prompt: np.ndarray, embedding: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Cosines `[P, V]` and `[P, k]` ids, nearest first."""
  found = cosines(prompt, embedding)
  return found, np.argsort(-found, axis=1, kind="stable")[:, :k]
