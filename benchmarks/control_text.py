"""Docstrings as continuations, and what is measured of what a controlled model writes.

The attribute is the library: docstrings of NumPy and SciPy (`scipy`) against those of TensorFlow
and Keras (`tensorflow`). An input is the first words, the target the next ones. A hash halves the
modules: the prompts and the attribute model see one half, the judge of the texts the other.
"""

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

from prompt_tuning.discrete.words import fit_logistic
from prompt_tuning.tasks.docstring_tasks import stable_hash
from prompt_tuning.tasks.docstrings import corpus

CLASSES = {"numpy": "scipy", "scipy": "scipy", "tensorflow": "tensorflow", "keras": "tensorflow"}
WANTED, OTHER = "scipy", "tensorflow"
START_WORDS, NEXT_WORDS, MOST_ROWS = 8, 24, 2400

Row = tuple[str, str, str]  # Start, continuation, class.


def rows(split: str, half: int | None = None) -> list[Row]:
  """Rows of a split of the corpus, as many of each class; of one half of the modules, or of all."""
  found: dict[str, list[Row]] = {WANTED: [], OTHER: []}
  chosen = [d for d in corpus().docstrings if d.split == split and d.library in CLASSES
            and (half is None or stable_hash("half", d.module) % 2 == half)]
  for docstring in sorted(chosen, key=lambda d: stable_hash(d.module, d.qualname)):
    words = docstring.docstring.split()
    if len(words) >= START_WORDS + NEXT_WORDS:
      label = CLASSES[docstring.library]
      found[label].append((" ".join(words[:START_WORDS]),
                           " ".join(words[START_WORDS:START_WORDS + NEXT_WORDS]), label))
  size = min(MOST_ROWS // 2, *map(len, found.values()))
  return [row for pair in zip(*(each[:size] for each in found.values()), strict=True)
          for row in pair]


def write(folder: pathlib.Path) -> None:
  """`<set>_<split>.tsv` of `all`, and of each class, for the prompts and the attribute model."""
  folder.mkdir(parents=True, exist_ok=True)
  for split in ("train", "validation"):
    found = rows(split, 0 if split == "train" else None)
    for name in ("all", WANTED, OTHER):
      with (folder / f"{name}_{split}.tsv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None,
                         escapechar=None, lineterminator="\n")
        out.writerow(("start", "rest", "kind"))
        out.writerows(row for row in found if name in ("all", row[2]))


def starts(count: int) -> list[str]:
  """First words of test docstrings that are not of the wanted class."""
  return [row[0] for row in rows("test") if row[2] == OTHER][:count]


def words_of(text: str) -> list[str]:
  return re.findall(r"\w+|[^\w\s]", text.lower())


@dataclasses.dataclass(frozen=True)
class Judge:
  """Logistic regression on the words of a continuation, and pairs of them.

  Attributes:
    vocabulary: word or pair -> column.
    weights: `[columns + 1]`, the last one the bias; positive for the wanted class.
    accuracy: on validation rows, which nothing was fitted on.
  """

  vocabulary: dict[str, int]
  weights: np.ndarray
  accuracy: float

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """`[n]` bool: the text is of the wanted class."""
    return _counts(texts, self.vocabulary) @ self.weights[:-1] + self.weights[-1] > 0


def judge(decay: float = 1.0) -> Judge:
  """Fits on the half of the training rows that neither prompts nor attribute model have seen."""
  train, held_out = rows("train", 1), rows("validation")
  count: dict[str, int] = {}
  for _, text, _ in train:
    for feature in set(_features(text)):
      count[feature] = count.get(feature, 0) + 1
  kept = sorted(feature for feature, times in count.items() if times >= 3)
  vocabulary = {feature: i for i, feature in enumerate(kept)}
  classes = np.array([label == WANTED for *_, label in train], int)
  # Two classes share a difference of weights: each pays half of `decay`.
  weights, biases = fit_logistic(_counts([text for _, text, _ in train], vocabulary), classes, 2,
                                 2 * decay / len(train))
  difference = np.append(weights[:, 1] - weights[:, 0], biases[1] - biases[0])
  fitted = Judge(vocabulary, difference, 0.0)
  right = fitted([text for _, text, _ in held_out]) == np.array(
    [label == WANTED for *_, label in held_out])
  return dataclasses.replace(fitted, accuracy=float(right.mean()))


def _features(text: str) -> Iterator[str]:
  words = words_of(text)
  yield from words
  yield from (f"{a} {b}" for a, b in zip(words, words[1:], strict=False))


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> scipy.sparse.csr_matrix:
  """`[n, columns]`: which features a text has."""
  entries = [(i, vocabulary[f]) for i, text in enumerate(texts)
             for f in set(_features(text)) if f in vocabulary]
  row, column = np.array(entries, int).reshape(-1, 2).T
  return scipy.sparse.csr_matrix((np.ones(len(row)), (row, column)),
                                 shape=(len(texts), len(vocabulary)))


def distinct(texts: Sequence[str], n: int) -> float:
  """Different n-grams of words over all n-grams, of all texts together (Li et al. 2016)."""
  grams = [tuple(words[i:i + n]) for words in map(words_of, texts)
           for i in range(len(words) - n + 1)]
  return len(set(grams)) / max(1, len(grams))
