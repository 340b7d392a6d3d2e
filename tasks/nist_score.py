"""NIST (Doddington 2002): n-gram precision weighted by how much an n-gram tells.

  info(w1..wn) = log2(count(w1..wn-1) / count(w1..wn))      counted over all references
  NIST = sum_n [ info of the n-grams that match / number of n-grams generated ] * penalty
  penalty = exp(beta * log(min(1, L / L_ref))^2)            0.5 where L is 2/3 of L_ref

As mteval-v13a and the E2E challenge compute it: an n-gram matches as often as the reference that
holds it most often, and L_ref is the mean length of a row's references. nltk's `corpus_nist`
instead takes a single reference a row, chosen anew for each n; with one reference they agree.
"""

import collections
import math
from collections.abc import Iterator, Sequence

MAX_N = 5
Words = Sequence[str]

# exp(_BETA * log(2/3)^2) is 0.5.
_BETA = math.log(0.5) / math.log(1.5) ** 2


def corpus_nist(references: Sequence[Sequence[Words]], predictions: Sequence[Words],
                max_n: int = MAX_N) -> float:
  """The score of a corpus: `references[i]` are those of `predictions[i]`, all as words."""
  counts: collections.Counter = collections.Counter()
  for texts in references:
    for text in texts:
      for n in range(1, max_n + 1):
        counts.update(_ngrams(text, n))
  total = sum(len(text) for texts in references for text in texts)
  score = 0.0
  for n in range(1, max_n + 1):
    found, generated = 0.0, 0
    for texts, prediction in zip(references, predictions, strict=True):
      most: collections.Counter = collections.Counter()
      for text in texts:
        most |= collections.Counter(_ngrams(text, n))
      matches = collections.Counter(_ngrams(prediction, n)) & most
      found += sum(times * math.log2((counts[ngram[:-1]] if n > 1 else total) / counts[ngram])
                   for ngram, times in matches.items())
      generated += max(len(prediction) - n + 1, 0)
    score += found / generated if generated else 0.0
  length = sum(map(len, predictions))
  wanted = sum(sum(map(len, texts)) / len(texts) for texts in references)
  ratio = min(1.0, length / wanted) if wanted else 0.0
  return score * math.exp(_BETA * math.log(ratio) ** 2) if ratio else 0.0


def _ngrams(words: Words, n: int) -> Iterator[tuple[str, ...]]:
  return zip(*(words[start:] for start in range(n)), strict=False)
