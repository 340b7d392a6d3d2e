"""Near-duplicate texts by MinHash (Broder 1997), for one pass over some 10^5 short texts.

A text is the set of its shingles (runs of SHINGLE words). The chance that two sets share the
smallest value of a random hash is their Jaccard similarity J. Pairs that agree on a band of
ROWS hashes out of BANDS bands are candidates (J = 0.8 is found with probability
1 - (1 - 0.8^2)^8 = 0.9997), and their exact J decides.
"""

import re
from collections.abc import Sequence

import numpy as np

SHINGLE = 4
BANDS, ROWS = 8, 2
SIMILAR = 0.7
# A bucket longer than this holds boilerplate: comparing with its first members is enough.
MAX_COMPARED = 16

_WORD = re.compile(r"[a-z]+|[0-9]+")


def first_of_each(texts: Sequence[str]) -> list[int]:
  """Indices, in order, of the texts that no earlier kept text repeats (J >= SIMILAR)."""
  shingles = _shingles(texts)
  keys = _band_keys(shingles)  # [texts, BANDS]
  kept: list[int] = []
  buckets: dict[tuple[int, int], list[int]] = {}
  for index, own in enumerate(shingles):
    places = [(band, key) for band, key in enumerate(keys[index].tolist())]
    candidates = {other for place in places for other in buckets.get(place, ())}
    if any(_jaccard(own, shingles[other]) >= SIMILAR for other in candidates):
      continue
    kept.append(index)
    for place in places:
      bucket = buckets.setdefault(place, [])
      if len(bucket) < MAX_COMPARED:
        bucket.append(index)
  return kept


def _shingles(texts: Sequence[str]) -> list[np.ndarray]:
  """Per text, the sorted distinct uint64 hashes of its shingles (one at least)."""
  ids: dict[str, int] = {}
  # Fixed odd multipliers: Python's own string hash changes with every process.
  multipliers = np.random.default_rng(0).integers(
    1, 2**63, size=SHINGLE, dtype=np.uint64) | np.uint64(1)
  result = []
  for text in texts:
    words = np.array([ids.setdefault(word, len(ids) + 1) for word in _WORD.findall(text.lower())],
                     dtype=np.uint64)
    words = np.pad(words, (0, max(0, SHINGLE - len(words))))
    windows = np.lib.stride_tricks.sliding_window_view(words, SHINGLE)
    result.append(np.unique(_mix((windows * multipliers).sum(axis=1, dtype=np.uint64))))
  return result


def _mix(values: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64: spreads every bit of uint64 over all of them."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def _band_keys(shingles: Sequence[np.ndarray]) -> np.ndarray:
  """`[texts, BANDS]` uint64: each the combination of ROWS minima."""
  lengths = np.array([len(values) for values in shingles])
  starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
  flat = np.concatenate(shingles) if len(shingles) else np.zeros(0, np.uint64)
  keys = np.zeros((len(shingles), BANDS), np.uint64)
  if not len(shingles):
    return keys
  seeds = np.random.default_rng(1).integers(1, 2**63, size=(BANDS, ROWS), dtype=np.uint64)
  for band in range(BANDS):
    for row in range(ROWS):
      minima = np.minimum.reduceat(_mix(flat ^ seeds[band, row]), starts)
      keys[:, band] = _mix(keys[:, band] + minima)
  return keys


def _jaccard(left: np.ndarray, right: np.ndarray) -> float:
  shared = len(np.intersect1d(left, right, assume_unique=True))
  return shared / (len(left) + len(right) - shared)
