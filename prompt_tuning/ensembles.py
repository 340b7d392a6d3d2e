"""Several prompts' answers made one (Lester et al. 2021, section 6).

  majority_vote     what most prompts answer; of equals, of labels the one with the larger mean
                    probability, of texts the one of the earliest prompt
  mean_probability  of labels: the largest mean probability; of texts: a token at a time from the
                    mean of the prompts' distributions (`steering.Mean`)
"""

import collections
from collections.abc import Sequence

import numpy as np

HOW = ("mean_probability", "majority_vote")


def label_values(log_probs: np.ndarray) -> dict[str, np.ndarray]:
  """`[N, B, C]` log-probabilities over the labels -> by name `[B, C]`; the largest wins."""
  probs = np.exp(log_probs.astype(np.float64))
  mean = probs.mean(axis=0)
  votes = np.eye(probs.shape[-1])[probs.argmax(axis=-1)].sum(axis=0)
  # A mean is at most 1: half of it decides between equal counts, and nothing else.
  return {"majority_vote": votes + mean / 2, "mean_probability": mean}


def most_common(texts: Sequence[str]) -> str:
  """The text that comes most often, of equals the first."""
  return collections.Counter(texts).most_common(1)[0][0]
