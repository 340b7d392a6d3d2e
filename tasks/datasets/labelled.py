"""T5's casting of labelled rows (Raffel et al. 2020, appendix D): of GLUE, SuperGLUE and others."""

import dataclasses
from typing import Any

from prompt_tuning.tasks.spec import UNLABELLED, Example, Row, Unusable


@dataclasses.dataclass(frozen=True)
class Fields:
  """`prefix name: text name: text ...` -> the word of the label.

  Attributes:
    prefix: the task's name.
    names: columns, in the order in which they are written (T5's: of the alphabet).
    labels: words of the classes, in the order of their numbers.
  """

  prefix: str
  names: tuple[str, ...]
  labels: tuple[str, ...]

  def __call__(self, row: Row) -> Example:
    fields = " ".join(f"{name}: {row[name]}" for name in self.names)
    return {"inputs": f"{self.prefix} {fields}", "targets": word(row["label"], self.labels)}


def word(label: Any, labels: tuple[str, ...]) -> str:
  """The word of a label, which files give as a word, a number, or true and false.

  Raises:
    Unusable: it is none of the labels.
  """
  if label is None or label == -1:
    return UNLABELLED
  if isinstance(label, str) and label in labels:
    return label
  if isinstance(label, str) and label.lower() in ("true", "false"):
    label = label.lower() == "true"
  try:
    number = int(label)
  except (TypeError, ValueError):
    number = -1
  if not 0 <= number < len(labels):
    raise Unusable(f"column 'label': {label!r} is none of {', '.join(labels)}")
  return labels[number]
