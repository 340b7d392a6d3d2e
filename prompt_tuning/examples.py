"""What predictions are made for: lines of a file or of standard input, or the rows of a task."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.spec import UNLABELLED, label_texts

STANDARD = "-"


@dataclasses.dataclass(frozen=True)
class Examples:
  """Attributes:
    texts: the inputs.
    ids: of each, untrimmed, with the end of sequence.
    targets: where they are known, else None.
    tasks: the task of each, where there are several; else None.
  """

  texts: list[str]
  ids: list[np.ndarray]
  targets: list[str] | None = None
  tasks: list[str] | None = None


def of_lines(lines: Sequence[str], tokenizer: vocabularies.Tokenizer) -> Examples:
  """An input a line."""
  return Examples(list(lines), [_ids(text, tokenizer) for text in lines])


def of_mixed_lines(lines: Sequence[str], known: Mapping[str, object],
                   tokenizer: vocabularies.Tokenizer) -> Examples:
  """Lines `TASK<tab>input`.

  Args:
    known: the tasks that have a prompt.

  Raises:
    UserError: a line without a tab, or of an unknown task.
  """
  tasks, texts = [], []
  for number, line in enumerate(lines, start=1):
    task, tab, text = line.partition("\t")
    if not tab:
      raise UserError(f"Line {number} of INPUT_FILE does not say its task", found=repr(line[:60]),
                      wanted="TASK, a tab, and the input",
                      fix="put one of " + ", ".join(known) + " and a tab in front")
    if task not in known:
      raise UserError(f"Line {number} of INPUT_FILE is of a task that has no prompt",
                      found=repr(task), wanted="one of " + ", ".join(known),
                      fix=nearest(task, known))
    tasks.append(task)
    texts.append(text)
  return Examples(texts, [_ids(text, tokenizer) for text in texts], tasks=tasks)


def of_task(task: TaskConfig, split: str, vocabulary: str, most: int | None,
            tokenizer: vocabularies.Tokenizer) -> Examples:
  """The rows of a task's split.

  Args:
    most: the first rows; None: all.
  """
  # Lines of a file need no TensorFlow, which takes seconds to import.
  from prompt_tuning.data import cache_task
  from prompt_tuning.task_setup import set_up
  setup = set_up(task, vocabulary)
  if len(setup.parts) > 1:
    raise UserError("Predictions are of one task at a time", found=f"{task.name}, a mixture",
                    wanted="a task", fix="choose one of: " + ", ".join(setup.parts))
  (name, part), = setup.parts.items()
  cache = cache_task(part, split, cache_dir=task.folder(),
                     epoch_seed=0 if name in setup.stochastic else None,
                     fingerprint=setup.fingerprint, use_cached=task.use_cached)
  rows = [cache[i] for i in range(min(len(cache), most or len(cache)))]
  # Denoising tasks, and some of users, keep no texts.
  texts = {name: [row[f"{name}_text"] or tokenizer.decode(row[name].tolist()) for row in rows]
           for name in ("inputs", "targets")}
  return Examples(texts["inputs"], [row["inputs"] for row in rows], texts["targets"])


def read_lines(path: str, setting: str = "INPUT_FILE") -> list[str]:
  """The lines of a utf-8 file, or of standard input (`-`).

  Args:
    setting: what the path was given as, for the messages.

  Raises:
    UserError: no such file, no line, or bytes that are not utf-8 (with their line).
  """
  name = "standard input" if path == STANDARD else path
  try:
    content = sys.stdin.buffer.read() if path == STANDARD else pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{setting} cannot be read", found=f"{path}: {error.strerror}",
                    wanted="a text file, an input a line",
                    fix=f"correct --gin.{setting}") from error
  if not content.strip():
    raise UserError(f"{setting} is empty", found=f"{len(content)} bytes in {name}",
                    wanted="an input a line", fix="write at least one line to it")
  lines = []
  for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
    try:
      lines.append(line.removesuffix(b"\r").decode("utf-8"))
    except UnicodeDecodeError as error:
      raise UserError(f"{setting} is not utf-8 text",
                      found=f"{name} line {number}: byte {line[error.start]:#04x} at column "
                      f"{error.start + 1}", wanted="utf-8",
                      fix="save it as utf-8, e.g. with iconv -t utf-8") from error
  return lines


def label_ids(labels: Sequence[str], tokenizer: vocabularies.Tokenizer,
              leading_sentinel: bool = False) -> np.ndarray:
  """`[C, U]` int32: the labels' ids with the end of sequence, padded.

  Args:
    leading_sentinel: `<extra_id_0>` stands ahead of each.

  Raises:
    UserError: two labels have the same ids.
  """
  start = [tokenizer.sentinel(0)] if leading_sentinel else []
  rows = [[*start, *tokenizer.encode(label), tokenizer.eos_id] for label in labels]
  check_apart(labels, rows)
  ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for i, row in enumerate(rows):
    ids[i, :len(row)] = row
  return ids


def class_names(labels: Any) -> tuple[str, ...]:
  """LABELS as texts, as training on files has them.

  Raises:
    UserError: they are not two or more different ones.
  """
  if not isinstance(labels, str) and isinstance(labels, Sequence):
    texts = label_texts(labels)
    if all(texts) and len(set(texts)) == len(texts) >= 2:
      return texts
  raise UserError("LABELS do not name classes", found=repr(labels),
                  wanted="a list of two or more different texts",
                  fix="--gin.LABELS=\"['yes', 'no']\"")


def check_targets(task: str, split: str, targets: Iterable[tuple[int, str]],
                  labels: Sequence[str] | None) -> None:
  """Whether the targets of a split are known.

  Args:
    targets: numbers of rows and their texts; "" where a text was not kept.
    labels: the only ones there may be, or None.

  Raises:
    UserError: one is not published, or none of the labels.
  """
  for row, text in targets:
    if text == UNLABELLED:
      raise UserError(f"The split {split!r} of {task!r} has no labels",
                      found=f"row {row}: its label is not published", wanted="known targets",
                      fix="choose another split; `prompt-tuning infer` needs no targets")
    if labels is not None and text and text not in labels:
      raise UserError(f"A target of {task!r} is none of its labels",
                      found=f"{text!r} in row {row} of {split!r}",
                      wanted="one of " + ", ".join(map(repr, labels)),
                      fix="correct the task's labels or its data")


def check_apart(labels: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
  """Whether a model can tell labels apart.

  Args:
    rows: the ids of each.

  Raises:
    UserError: two have the same ids.
  """
  first: dict[tuple[int, ...], str] = {}
  for label, ids in zip(labels, map(tuple, rows), strict=True):
    other = first.setdefault(ids, label)
    if other is not label:
      unknown = vocabularies.UNK_ID in ids
      raise UserError("Two labels are the same ids to the model",
                      found=f"{other!r} and {label!r}: {list(ids)}"
                      + (f", where {vocabularies.UNK_ID} is a character that VOCABULARY does not "
                         "have" if unknown else ""),
                      wanted="other ids for each label",
                      fix="write other words for them, or set VOCABULARY to one that has their "
                      "characters")


def answer(ids: Sequence[int] | np.ndarray, tokenizer: vocabularies.Tokenizer,
           leading_sentinel: bool = False) -> str:
  """The text that was generated, without the `<extra_id_0>` that leads it."""
  found = [int(token) for token in ids]
  if leading_sentinel and found[:1] == [tokenizer.sentinel(0)]:
    del found[0]
  return tokenizer.decode(found)


def check_lengths(examples: Examples, length: int, most: float) -> int:
  """How many inputs lose their end.

  Args:
    most: MAX_TRUNCATED_INPUTS, the share that may.
  """
  found = np.array([len(ids) for ids in examples.ids])
  long = int((found > length).sum())
  if long > most * len(found):
    first = int(np.argmax(found > length))
    raise UserError(f"Too many inputs are longer than {length} tokens",
                    found=f"{long} of {len(found)} would lose their end, the first is number "
                    f"{first + 1}; the longest has {found.max()}",
                    wanted=f"at most {most:.2%} of them (MAX_TRUNCATED_INPUTS)",
                    fix=f"set TASK_FEATURE_LENGTHS[\"inputs\"] to {-(-int(found.max()) // 8) * 8}, "
                    "or raise MAX_TRUNCATED_INPUTS")
  return long


def _ids(text: str, tokenizer: vocabularies.Tokenizer) -> np.ndarray:
  return np.array([*tokenizer.encode(text), tokenizer.eos_id], np.int32)
