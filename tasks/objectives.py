"""Denoising objectives as settings; `denoising.py` carries them out on tokens.

All cut a text into chunks that fit, and make (inputs, targets) of each chunk. `length` is the
size of a chunk in tokens before noise; None takes the largest that fits the feature lengths.
`leading_sentinel` puts `<extra_id_0>` ahead of every target.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from prompt_tuning.errors import UserError

# Texts and rests shorter than this are left out: there is nothing to learn from them. A chunk is
# twice as long at least, so that none of the equal chunks of a text is shorter than this.
MIN_TOKENS = 4
MIN_LENGTH = 2 * MIN_TOKENS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What all objectives share.

  Attributes:
    length: tokens of a chunk before noise, or None.
    leading_sentinel: put `<extra_id_0>` ahead of every target.
  """

  length: int | None = None
  leading_sentinel: bool = False

  label: ClassVar[str]

  def __post_init__(self):
    if self.length is not None and self.length < MIN_LENGTH:
      raise _bad(self, "length", self.length, f"{MIN_LENGTH} tokens or more, or None")

  def needed(self, length: int) -> tuple[int, int]:
    """Tokens of inputs and of targets, ends included, that a chunk of `length` may need."""
    return length + 1, length + 1 + self.leading_sentinel

  def chunk_length(self, lengths: Mapping[str, int] | None) -> int:
    """The size of chunks for these feature lengths.

    Raises:
      UserError: a chunk of `length` does not fit, or neither it nor the lengths are given.
    """
    limits = {} if lengths is None else {k: v for k, v in lengths.items() if v is not None}
    if self.length is None and not limits:
      raise UserError(f"{type(self).__name__} does not know how long a chunk is",
                      found="no length and no feature lengths", wanted="one of them",
                      fix="set TASK_FEATURE_LENGTHS, or the objective's length")
    if self.length is not None:
      if not self._fits(self.length, limits):
        inputs, targets = self.needed(self.length)
        raise UserError(f"{type(self).__name__} of {self.length} tokens does not fit",
                        found=f"inputs need {inputs}, targets {targets}",
                        wanted=f"at most {dict(limits)}",
                        fix="raise TASK_FEATURE_LENGTHS or lower the objective's length")
      return self.length
    length = MIN_LENGTH
    if not self._fits(length, limits):
      raise UserError(f"{type(self).__name__} fits no chunk into these lengths",
                      found=dict(limits), wanted=f"room for {MIN_LENGTH} tokens with their noise",
                      fix="raise TASK_FEATURE_LENGTHS")
    while self._fits(length + 1, limits):
      length += 1
    return length

  def _fits(self, length: int, limits: Mapping[str, int]) -> bool:
    inputs, targets = self.needed(length)
    return (inputs <= limits.get("inputs", inputs)) and (targets <= limits.get("targets", targets))


def _bad(objective: Objective, field: str, found: object, wanted: str) -> UserError:
  return UserError(f"{type(objective).__name__}.{field} is out of range", found=found,
                   wanted=wanted, fix=f"correct {field}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SpanNoise(Objective):
  """Objectives whose noise is a set of random spans.

  Attributes:
    noise_density: share of the tokens that are noise.
    mean_span_length: mean number of tokens of a noise span.
  """

  noise_density: float = 0.15
  mean_span_length: float = 3.0

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.noise_density < 1:
      raise _bad(self, "noise_density", self.noise_density, "0 < share < 1")
    if not self.mean_span_length >= 1:
      raise _bad(self, "mean_span_length", self.mean_span_length, "1 or more")

  def noise(self, length: int) -> tuple[int, int]:
    """(noise tokens, noise spans) of a chunk: to the nearest, half to even, in float32 as T5's."""
    tokens = int(np.round(np.float32(length) * np.float32(self.noise_density)))
    tokens = min(max(tokens, 1), length - 1)
    spans = max(int(np.round(np.float32(tokens) / np.float32(self.mean_span_length))), 1)
    return tokens, min(spans, length - tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(_SpanNoise):
  """T5's objective (Raffel et al. 2020, section 3.1.4): restore the spans left out.

  inputs:  the text with span i replaced by `<extra_id_i>`
  targets: `<extra_id_0>` span 0 `<extra_id_1>` span 1 ...
  A text starts outside a span and ends in one. With `leading_sentinel` the spans count from 1,
  `<extra_id_0>` being the one ahead of the target.
  """

  label: ClassVar[str] = "span_corruption"

  def needed(self, length: int) -> tuple[int, int]:
    tokens, spans = self.noise(length)
    return length - tokens + spans + 1, tokens + spans + 1 + self.leading_sentinel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rebuild(_SpanNoise):
  """Rebuild the whole text from one with spans missing (BART's infilling, Lewis et al. 2020;
  the MASS-style row of Raffel et al. 2020, table 4): the decoder has to copy from the encoder.

  inputs:  the text with each span replaced by the last sentinel `<extra_id_99>`, or left out
  targets: the text

  Attributes:
    drop: leave the spans out instead.
  """

  noise_density: float = 0.3
  drop: bool = False
  label: ClassVar[str] = "rebuild"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
  """Continue the text (LM adaptation, Lester et al. 2021): split uniformly into a prefix, which
  is the inputs, and the rest, which is the targets; each has a token at least.

  Attributes:
    min_split, max_split: the share of the text that the prefix may be.
  """

  min_split: float = 0.0
  max_split: float = 1.0
  label: ClassVar[str] = "prefix_lm"

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.min_split <= self.max_split <= 1:
      raise _bad(self, "min_split, max_split", (self.min_split, self.max_split),
                 "0 <= min_split <= max_split <= 1")

  def bounds(self, length: int) -> tuple[int, int]:
    """Least and most tokens of the prefix."""
    least, most = (int(np.round(np.float32(length) * np.float32(share)))
                   for share in (self.min_split, self.max_split))
    least = min(max(least, 1), length - 1)
    return least, min(max(most, least), length - 1)

  def needed(self, length: int) -> tuple[int, int]:
    least, most = self.bounds(length)
    return most + 1, length - least + 1 + self.leading_sentinel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deshuffle(Objective):
  """Put the tokens back in order (Raffel et al. 2020, table 4). inputs: a random order of them."""

  label: ClassVar[str] = "deshuffle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MissingWord(Objective):
  """Name pieces that the text lacks: salient span masking (Guu et al. 2020, section 3.4) with
  rarity for salience. The answer depends on what the text is about, and is all there is to say,
  as in classification.

  inputs:  the text, each occurrence of these rare pieces replaced by `<extra_id_99>` or left out
  targets: the pieces, each once, in a random order

  Attributes:
    first_rank: pieces from this id on count as rare (SentencePiece sorts by frequency); in a text
      without any, the rarest is taken.
    words: the most pieces of a text; a text with fewer rare ones gives those.
    marked: mark the gaps. Closed ones leave only the rest of the text to tell the pieces by.
  """

  first_rank: int = 200
  words: int = 1
  marked: bool = True
  label: ClassVar[str] = "missing_word"

  def __post_init__(self):
    super().__post_init__()
    if self.words < 1:
      raise _bad(self, "words", self.words, "1 or more")

  def needed(self, length: int) -> tuple[int, int]:
    return length + 1, self.words + 1 + self.leading_sentinel


OBJECTIVES = {kind.label: kind
              for kind in (SpanCorruption, Rebuild, PrefixLM, Deshuffle, MissingWord)}
