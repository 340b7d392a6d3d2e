"""Which tokens a discrete prompt may hold, and which tokens stand for the classes.

Shin et al. 2020 (arXiv 2010.15980), section 2. A trigger may not hold the label's own tokens, nor
anything that is no word. Label tokens are found in two steps (section 2.3): a logistic classifier
from the model's state where the answer stands to the class, and then the tokens whose output
embeddings it would assign to that class with the greatest certainty.
"""

from collections.abc import Iterable

import numpy as np
import scipy.optimize

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.vocabularies import NUM_SENTINELS, Tokenizer

FIRST_PIECE = 3


def allowed(tokenizer: Tokenizer, rows: int, *, excluded: Iterable[int] = (),
            words_only: bool = True) -> np.ndarray:
  """`[V]` bool: the tokens a trigger may hold.

  Never: control ids, sentinels, rows that only pad the table, and `excluded` (the labels' tokens).

  Args:
    rows: V, of the embedding table.
    words_only: pieces that are whole words of letters; else every ordinary piece.

  Raises:
    UserError: nothing is left.
  """
  keep = np.zeros(rows, bool)
  for token in range(FIRST_PIECE, tokenizer.vocab_size - NUM_SENTINELS):
    piece = tokenizer.piece(token)
    keep[token] = not words_only or (piece.startswith("▁") and piece[1:].isalpha())
  keep[[token for token in excluded if 0 <= token < rows]] = False
  if not keep.any():
    raise UserError("No token is left for a trigger", found="0 tokens",
                    wanted="pieces of the vocabulary that are words",
                    fix="set WORDS_ONLY = False (a vocabulary of bytes has no words)")
  return keep


def fit_logistic(states: np.ndarray, classes: np.ndarray, num_classes: int,
                 decay: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
  """Multinomial logistic regression: weights `[D, C]` and biases `[C]`.

  Minimises the mean cross-entropy plus `decay / 2` times the squared weights.

  Args:
    states: `[n, D]`.  classes: `[n]`.
  """
  n, width = states.shape
  targets = np.eye(num_classes)[classes]

  def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
    weights, biases = flat[:-num_classes].reshape(width, num_classes), flat[-num_classes:]
    logits = states @ weights + biases
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    residuals = (np.exp(log_probs) - targets) / n
    value = -(log_probs * targets).sum() / n + decay / 2 * (weights**2).sum()
    gradient = np.concatenate([(states.T @ residuals + decay * weights).ravel(),
                               residuals.sum(axis=0)])
    return value, gradient

  start = np.zeros((width + 1) * num_classes)
  found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B",
                                  options={"maxiter": 1000, "gtol": 1e-8, "ftol": 1e-14}).x
  return found[:-num_classes].reshape(width, num_classes), found[-num_classes:]


def label_words(states: np.ndarray, classes: np.ndarray, output: np.ndarray, keep: np.ndarray,
                num_classes: int, count: int) -> tuple[np.ndarray, float]:
  """`[C, K]` tokens for each class, the best first, and the classifier's accuracy on its own rows.

  A token goes to the class that likes it best, so that no two classes share one.

  Args:
    states: `[n, D]` what the output layer reads where the answer stands.
    output: `[V, D]` the output layer's rows.
    keep: `[V]` bool, tokens to choose from.
    count: K.

  Raises:
    UserError: a class has fewer than K tokens.
  """
  centre, scale = states.mean(axis=0), states.std(axis=0).mean() + 1e-12
  weights, biases = fit_logistic((states - centre) / scale, classes, num_classes)

  def log_probs(rows: np.ndarray) -> np.ndarray:
    logits = rows @ weights + biases
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

  accuracy = float((log_probs((states - centre) / scale).argmax(axis=1) == classes).mean())
  # An output row points where the states point that predict it; brought to their size.
  size = np.linalg.norm(states - centre, axis=1).mean() / scale
  rows = output - output[keep].mean(axis=0)
  rows = rows * (size / (np.linalg.norm(rows, axis=1).mean() + 1e-12))
  scores = log_probs(rows)
  owner = scores.argmax(axis=1)
  chosen = []
  for number in range(num_classes):
    mine = np.flatnonzero(keep & (owner == number))
    if len(mine) < count:
      raise UserError("Too few tokens belong to a class", found=f"{len(mine)} for class {number}",
                      wanted=f"{count} (LABEL_WORDS)", fix="lower LABEL_WORDS")
    chosen.append(mine[np.argsort(-scores[mine, number], kind="stable")[:count]])
  return np.stack(chosen), accuracy
