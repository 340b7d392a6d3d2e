"""A classification task in words: `"{inputs} It was {targets}."`, and what stands for each class.

Prompt design (Brown et al. 2020, arXiv 2005.14165, section 2) writes solved examples and the
question into the input. How the question ends depends on what the model was trained for:

  sentinels   span corruption: `<extra_id_0>` stands where the answer is missing, and the decoder is
              given `<extra_id_0>` ahead of it (Lester et al. 2021, section 3.3)
  plainly     LM adaptation, or a tuned model: the input stops where the answer starts
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.examples import check_apart
from prompt_tuning.tasks.vocabularies import Tokenizer

SENTINEL = "<extra_id_0>"
_FIELDS = ["inputs", "targets"]


@dataclasses.dataclass(frozen=True)
class Pattern:
  """One template.

  Attributes:
    text: with `{inputs}` and `{targets}` once each.
    sentinel: the answer is asked for by a sentinel; else the text ends with `{targets}`, apart from
      what only closes an example, such as a full stop.
  """

  text: str
  sentinel: bool = False

  def __post_init__(self):
    try:
      parts = list(string.Formatter().parse(self.text))
      fields = [name for _, name, _, _ in parts if name is not None]
      plain = not any(spec or conversion for _, _, spec, conversion in parts)
    except ValueError:
      fields, plain = [], False
    if not plain or sorted(fields) != _FIELDS:
      raise UserError("A template of TEMPLATES cannot be filled", found=repr(self.text),
                      wanted="{inputs} and {targets}, once each",
                      fix="e.g. --gin.TEMPLATES=\"['{inputs} It was {targets}.']\"")
    after = self.text.partition("{targets}")[2]
    if not self.sentinel and any(c.isalnum() or c == "{" for c in after):
      raise UserError("A template goes on behind the answer, which only a sentinel can stand for",
                      found=repr(self.text), wanted="a template that ends with {targets}",
                      fix="put {targets} last, or set SENTINEL = True for a model of span "
                      "corruption")

  def example(self, inputs: str, answer: str) -> str:
    """A solved example."""
    return self.text.format(inputs=inputs, targets=answer)

  def question(self, inputs: str) -> str:
    if self.sentinel:
      return self.text.format(inputs=inputs, targets=SENTINEL)
    return self.text.partition("{targets}")[0].format(inputs=inputs).rstrip()


@dataclasses.dataclass(frozen=True)
class Answers:
  """What the decoder may say, a row a class.

  Attributes:
    words: the C texts.
    ids: `[C, U]` int32: the tokens that are given, the word, the end of sequence, padding.
    given: how many tokens are given.
  """

  words: tuple[str, ...]
  ids: np.ndarray
  given: int

  @property
  def lengths(self) -> np.ndarray:
    """`[C]`: tokens that are scored."""
    return (self.ids != 0).sum(axis=1) - self.given


def answers(labels: Sequence[str], verbalizer: Mapping[str, str] | None, tokenizer: Tokenizer,
            sentinel: bool) -> Answers:
  """The words of each class.

  Args:
    verbalizer: label -> word; None: the labels themselves.

  Raises:
    UserError: a label without a word, two labels with one word or the same ids, or a word without
      tokens.
  """
  chosen = {label: label for label in labels} if verbalizer is None else dict(verbalizer)
  if set(chosen) != set(labels) or len(set(chosen.values())) < len(labels):
    raise UserError("A verbaliser of VERBALIZERS does not give each label a word of its own",
                    found=repr(chosen), wanted="a word for each of " + ", ".join(labels),
                    fix=f"--gin.VERBALIZERS=\"[{ {label: label for label in labels} }]\"")
  prefix = [tokenizer.sentinel(0)] if sentinel else []
  rows = []
  for label in labels:
    word = tokenizer.encode(chosen[label])
    if not word:
      raise UserError("A verbaliser's word has no tokens", found=repr(chosen[label]),
                      wanted="a word", fix="write one")
    rows.append([*prefix, *word, tokenizer.eos_id])
  check_apart([chosen[label] for label in labels], rows)
  ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for out, row in zip(ids, rows, strict=True):
    out[:len(row)] = row
  return Answers(tuple(chosen[label] for label in labels), ids, len(prefix))
