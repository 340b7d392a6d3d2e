"""Which two words tell two classes apart best on a frozen model, before anything is learned?

  python -m benchmarks.label_words runs/outside/sst2 --backbone tiny

Reads TRAINING rows only (the first column, and the last as the class). For every word of the
vocabulary it takes the logit that the model gives it as the first word of the answer; of the words
that rise most with one class and with the other it shows the pairs whose difference of logits ranks
the rows best (area under the ROC curve, a half by chance). On as many further training rows it
shows the same again: the best of many pairs is the luckiest, too. AutoPrompt's own choice
(LABEL_WORDS of `prompt-tuning autoprompt`) looks at one row of the output layer at a time.
"""

import argparse
import csv

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from prompt_tuning import config
from prompt_tuning.discrete.search import answer_states
from prompt_tuning.discrete.words import allowed
from prompt_tuning.run_config import ModelConfig

ROWS_AT_ONCE = 250


def auc(scores: np.ndarray, is_second: np.ndarray) -> np.ndarray:
  """`[...]`: that a row of the second class has the larger score. Scores `[n, ...]`, classes `[n]`.
  """
  ranks = scipy.stats.rankdata(scores, axis=0)
  seconds = is_second.sum()
  above = ranks[is_second].sum(axis=0) - seconds * (seconds + 1) / 2
  return above / (seconds * (len(is_second) - seconds))


def word_logits(model: ModelConfig, texts: list[str], length: int, words: np.ndarray) -> np.ndarray:
  """`[n, words]`: of each word as the first of the answer. Inputs are cut at `length` tokens."""
  module, backbone = model.module(), model.load_backbone(0)
  params = {"backbone": backbone, "prompt": {}}
  tokenizer = model.tokenizer()
  states = jax.jit(lambda tokens: answer_states(module, params, tokens))
  # A tied output layer; the scale that T5 1.0 puts on it changes no rank.
  rows = np.asarray(backbone["token_embedder"]["embedding"], np.float32)[words]
  found = []
  for start in range(0, len(texts), ROWS_AT_ONCE):
    tokens = np.zeros((ROWS_AT_ONCE, length), np.int32)
    for row, text in zip(tokens, texts[start:start + ROWS_AT_ONCE], strict=False):
      ids = [*tokenizer.encode(text)[:length - 1], tokenizer.eos_id]
      row[:len(ids)] = ids
    found.append(np.asarray(states(jnp.asarray(tokens)), np.float32) @ rows.T)
  return np.concatenate(found)[:len(texts)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("table", help="of outside_data.py, without _train.tsv")
  parser.add_argument("--backbone", default="tiny")
  parser.add_argument("--rows", type=int, default=4000, help="to choose on, and to check on")
  parser.add_argument("--words", type=int, default=100, help="of each class, to pair")
  parser.add_argument("--length", type=int, default=64)
  parser.add_argument("--show", type=int, default=5)
  parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"),
                      help="shown too; may be repeated")
  options = parser.parse_args()
  config.load(["commands/model.gin", "models/tiny.gin", "prompts/none.gin"],
              [f"INITIAL_CHECKPOINT_PATH = {options.backbone!r}"])
  model = config.build(ModelConfig)
  with open(f"{options.table}_train.tsv", encoding="utf-8") as file:
    rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:2 * options.rows + 1]
  labels = sorted({row[-1] for row in rows})
  if len(labels) != 2:
    raise SystemExit(f"{options.table} has the classes {labels}: pairs of words are for two")
  is_second = np.array([row[-1] == labels[1] for row in rows])
  tokenizer = model.tokenizer()
  words = np.flatnonzero(allowed(tokenizer, model.backbone.vocab_size))
  logits = word_logits(model, [row[0] for row in rows], options.length, words)
  chosen, checked = slice(options.rows), slice(options.rows, None)
  # A word by itself also says how long a text is: against the mean of all words it says less of it.
  single = auc(logits[chosen] - logits[chosen].mean(axis=1, keepdims=True), is_second[chosen])
  order = np.argsort(single)
  first, second = order[:options.words], order[::-1][:options.words]
  pairs = [(a, b) for a in first for b in second]
  left, right = (np.array(side) for side in zip(*pairs, strict=True))
  scores = np.concatenate([
    auc(logits[chosen][:, right[i:i + 500]] - logits[chosen][:, left[i:i + 500]], is_second[chosen])
    for i in range(0, len(pairs), 500)])
  names = [tokenizer.piece(int(word))[1:] for word in words]
  print(f"| {labels[0]} | {labels[1]} | AUC, {options.rows} rows | AUC, further rows |")
  print("|---|---|---|---|")
  best = [(left[i], right[i]) for i in np.argsort(-scores)[:options.show]]
  for a, b in [*best, *((names.index(a), names.index(b)) for a, b in options.pair)]:
    ranked = logits[:, b] - logits[:, a]
    print(f"| {names[a]} | {names[b]} | {auc(ranked[chosen], is_second[chosen]):.3f} "
          f"| {auc(ranked[checked], is_second[checked]):.3f} |")


if __name__ == "__main__":
  main()
