"""Where virtual tokens and anchor words stand around an input.

A template says it in words (P-tuning, Liu et al. 2021, arXiv 2103.10385, section 3.1):

  "{prompt}{inputs}"                       in front: the default, as prompt tuning has it
  "{inputs}{prompt}"                       after the input
  "{prompt:10}{inputs}{prompt:10}"         both
  "{prompt:3}{inputs} ? {prompt:2} answer: {prompt:1}"   groups, with anchor words between them

Groups take the rows of the prompt in order. What comes after the input stands before its
end-of-sequence id, as if it were text.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID, PAD_ID

_FIELD = re.compile(r"\{([^{}]*)\}")
_GROUP = re.compile(r"prompt(?::(\d+))?")
_WANTED = '{inputs} once, and groups {prompt:n}, e.g. "{prompt:3}{inputs} ? {prompt:2}"'


@dataclasses.dataclass(frozen=True)
class Placement:
  """What stands around every input.

  Attributes:
    before, after: ids, where `-1-p` is row p of the prompt and a positive id an anchor.
  """

  before: tuple[int, ...] = ()
  after: tuple[int, ...] = ()

  @classmethod
  def front(cls, length: int) -> "Placement":
    """The P rows of a prompt ahead of the input."""
    return cls(tuple(-1 - p for p in range(length)))

  @property
  def size(self) -> int:
    """Positions that it adds to every row."""
    return len(self.before) + len(self.after)

  @property
  def is_in_front(self) -> bool:
    """Whether all it adds is the prompt, in order, ahead of the input."""
    return self == Placement.front(len(self.before))

  def around(self, ids: np.ndarray) -> np.ndarray:
    """`[n]` ids of an input -> `[size + n]` int32."""
    end = len(ids) - (len(ids) > 0 and ids[-1] == EOS_ID)
    parts = (self.before, ids[:end], self.after, ids[end:])
    return np.concatenate([np.asarray(part, np.int32) for part in parts])

  def rows(self, inputs: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Inputs of at most `length` ids -> `[B, size + length]` int32, padded."""
    result = np.full((len(inputs), self.size + length), PAD_ID, np.int32)
    for out, ids in zip(result, inputs, strict=True):
      placed = self.around(ids)
      out[:len(placed)] = placed
    return result


# What PROMPT_TEMPLATE = None stands for.
FRONT = "{prompt}{inputs}"
# Nothing around the input.
PLAIN = Placement()


def is_front(template: str, length: int) -> bool:
  """Whether a template puts the prompt, whole and in order, right ahead of the input."""
  # Any word is something: which ids it has does not matter.
  return parse(template, length, lambda text: [1]).is_in_front


def parse(template: str, length: int, encode: Callable[[str], Sequence[int]]) -> Placement:
  """Reads a template.

  Args:
    template: see the module docstring.
    length: P, rows of the prompt; all of them have to stand somewhere.
    encode: text -> ids, without an end-of-sequence id.

  Raises:
    UserError: an unknown field, no input or several, groups that do not add up to P.
  """
  names = [found[1] for found in _FIELD.finditer(template)]
  groups = [_GROUP.fullmatch(name) for name in names]
  for name, group in zip(names, groups, strict=True):
    if name != "inputs" and group is None:
      raise _bad(template, f"the field {{{name}}}", "a field is {inputs}, {prompt} or {prompt:n}")
  if names.count("inputs") != 1 or "{" in _FIELD.sub("", template):
    raise _bad(template, f"{names.count('inputs')} times {{inputs}}", _WANTED)
  sizes = [int(group[1]) if group[1] else None for group in groups if group]
  rest = length - sum(size for size in sizes if size is not None)
  if sizes.count(None) > 1 or rest < 0 or (rest > 0 and None not in sizes):
    raise UserError("The groups of PROMPT_TEMPLATE do not add up to the prompt",
                    found=f"{template!r}, a prompt of {length} vectors",
                    wanted=f"{length} in all; one group without a number takes the rest",
                    fix="set PROMPT_LENGTH, or correct the numbers in PROMPT_TEMPLATE")
  parts: tuple[list[int], list[int]] = ([], [])
  used, side, end = 0, 0, 0
  for found in _FIELD.finditer(template):
    parts[side].extend(_words(template[end:found.start()], encode))
    end = found.end()
    group = _GROUP.fullmatch(found[1])
    if group is None:
      side = 1
      continue
    size = int(group[1]) if group[1] else rest
    parts[side].extend(-1 - p for p in range(used, used + size))
    used += size
  parts[side].extend(_words(template[end:], encode))
  return Placement(tuple(parts[0]), tuple(parts[1]))


def _words(text: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
  return [int(i) for i in encode(text.strip())] if text.strip() else []


def _bad(template: str, found: str, wanted: str) -> UserError:
  return UserError("PROMPT_TEMPLATE is not a template", found=f"{found} in {template!r}",
                   wanted=wanted, fix="correct PROMPT_TEMPLATE")
