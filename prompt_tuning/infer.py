"""Predictions for the lines of a file, for standard input, or for a split of a task.

A line is an input as the task would have formatted it. Every batch has the shape
`[B, P + T]`, the last one is filled up, so the model compiles once. Output is in the input's order,
a line each: the text, or with `output_format = "json"` an object with input, prediction and, where
there are any, target and label scores.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np

from prompt_tuning import scoring, trained_model
from prompt_tuning.converter import check_feature_lengths, trim
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.placement import Placement
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.scoring import Decoding
from prompt_tuning.tasks import vocabularies
from prompt_tuning.train_state import purpose_key
from prompt_tuning.trees import Split

STANDARD = "-"
FORMATS = ("text", "json")
_NOTHING = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig:
  """One run of predictions.

  Attributes:
    model: what predicts.
    task: its lengths; and its rows, where there is no `input_file`.
    split: SPLIT of the task.
    input_file: INPUT_FILE, utf-8, an input a line; `-` is standard input.
    output_file: OUTPUT_FILE; `-` is standard output.
    output_format: OUTPUT_FORMAT, `text` or `json`.
    labels: LABELS to choose among by likelihood; None: generate text.
    decoding: how text is generated.
    model_dir, prompt_file: MODEL_DIR of a run, PROMPT_FILE; what was trained.
    batch_size: BATCH_SIZE.
    max_examples: MAX_EXAMPLES, the first rows; None: all.
    seed: RANDOM_SEED, of sampling.
  """

  model: ModelConfig
  task: TaskConfig
  split: str = "validation"
  input_file: str | None = None
  output_file: str = STANDARD
  output_format: str = "text"
  labels: tuple[str, ...] | None = None
  decoding: Decoding = Decoding()
  model_dir: str | None = None
  prompt_file: str | None = None
  batch_size: int = 64
  max_examples: int | None = None
  seed: int = 0

  def __post_init__(self):
    if self.output_format not in FORMATS:
      raise UserError("OUTPUT_FORMAT is unknown", found=repr(self.output_format),
                      wanted="one of " + ", ".join(FORMATS),
                      fix=nearest(str(self.output_format), FORMATS))
    for name in ("batch_size", "max_examples"):
      value = getattr(self, name)
      if value is not None and (not isinstance(value, int) or value < 1):
        raise UserError(f"{name.upper()} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more", fix=f"--gin.{name.upper()}=64")
    if self.input_file is None and self.task.name is None:
      raise UserError("There is nothing to predict for", found="neither a file nor a task",
                      wanted="INPUT_FILE or MIXTURE_OR_TASK_NAME",
                      fix="give --gin.INPUT_FILE=lines.txt, or - for standard input")
    if self.labels is not None:
      labels = self.labels
      if isinstance(labels, str) or not all(isinstance(x, str) and x for x in labels) or (
          len(set(labels)) < max(2, len(labels))):
        raise UserError("LABELS do not name classes", found=repr(labels),
                        wanted="a list of two or more different texts",
                        fix="--gin.LABELS=\"['yes', 'no']\"")
      object.__setattr__(self, "labels", tuple(labels))


@dataclasses.dataclass(frozen=True)
class Examples:
  """Attributes:
    texts: the inputs.
    ids: of each, untrimmed, with the end of sequence.
    targets: where they are known, else None.
  """

  texts: list[str]
  ids: list[np.ndarray]
  targets: list[str] | None


@dataclasses.dataclass(frozen=True)
class Counts:
  """Attributes:
    predictions: lines that were written.
    long_inputs: inputs that lost their end.
  """

  predictions: int
  long_inputs: int


def infer(config: InferConfig) -> Counts:
  """Predicts and writes.

  Raises:
    UserError: a setting, a file or the data is wrong; too many inputs are too long.
  """
  lengths = check_feature_lengths(config.task.feature_lengths)
  partitioner = Partitioner.make(config.model.layout)
  partitioner.layout.check(config.model.backbone)
  trained = trained_model.find(config.model, config.model_dir, config.prompt_file)
  prompt_id = trained.prompt_id(config.task.name)
  tokenizer = trained.config.tokenizer()
  labels = None if config.labels is None else label_ids(config.labels, tokenizer)
  read = _from_task if config.input_file is None else _from_lines
  examples = read(config, tokenizer)
  long_inputs = _check_lengths(examples, lengths["inputs"], config)
  _check_output(config.output_file)
  params = trained.load(config.seed, partitioner)
  model, placement = trained.config.module(), trained.config.placement()
  with _output(config.output_file) as output:
    for first, rows in _predict(config, model, params, examples, lengths, labels, tokenizer,
                                placement, prompt_id, partitioner):
      for i, row in enumerate(rows, start=first):
        output.write(_line(config, examples, i, row) + "\n")
      output.flush()
  return Counts(len(examples.ids), long_inputs)


def read_lines(path: str) -> list[str]:
  """The lines of a utf-8 file, or of standard input (`-`).

  Raises:
    UserError: no such file, no line, or bytes that are not utf-8 (with their line).
  """
  name = "standard input" if path == STANDARD else path
  try:
    content = sys.stdin.buffer.read() if path == STANDARD else pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError("INPUT_FILE cannot be read", found=f"{path}: {error.strerror}",
                    wanted="a text file, an input a line",
                    fix="correct --gin.INPUT_FILE") from error
  if not content.strip():
    raise UserError("INPUT_FILE is empty", found=f"{len(content)} bytes in {name}",
                    wanted="an input a line", fix="write at least one line to it")
  lines = []
  for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
    try:
      lines.append(line.removesuffix(b"\r").decode("utf-8"))
    except UnicodeDecodeError as error:
      raise UserError("INPUT_FILE is not utf-8 text",
                      found=f"{name} line {number}: byte {line[error.start]:#04x} at column "
                      f"{error.start + 1}", wanted="utf-8",
                      fix="save it as utf-8, e.g. with iconv -t utf-8") from error
  return lines


def label_ids(labels: Sequence[str], tokenizer: vocabularies.Tokenizer) -> np.ndarray:
  """`[C, U]` int32: the labels' ids with the end of sequence, padded."""
  rows = [[*tokenizer.encode(label), tokenizer.eos_id] for label in labels]
  ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for i, row in enumerate(rows):
    ids[i, :len(row)] = row
  return ids


def _from_lines(config: InferConfig, tokenizer: vocabularies.Tokenizer) -> Examples:
  texts = read_lines(config.input_file)[:config.max_examples]
  ids = [np.array([*tokenizer.encode(text), tokenizer.eos_id], np.int32) for text in texts]
  return Examples(texts, ids, None)


def _from_task(config: InferConfig, tokenizer: vocabularies.Tokenizer) -> Examples:
  # Lines of a file need no TensorFlow, which takes seconds to import.
  from prompt_tuning.data import cache_task
  from prompt_tuning.task_setup import set_up
  setup = set_up(config.task, config.model.vocabulary)
  if len(setup.parts) > 1:
    raise UserError("Predictions are of one task at a time", found=f"{config.task.name}, a mixture",
                    wanted="a task", fix="choose one of: " + ", ".join(setup.parts))
  (name, task), = setup.parts.items()
  cache = cache_task(task, config.split, cache_dir=config.task.folder(),
                     epoch_seed=0 if name in setup.stochastic else None,
                     fingerprint=setup.fingerprint, use_cached=config.task.use_cached)
  rows = [cache[i] for i in range(min(len(cache), config.max_examples or len(cache)))]
  # Denoising tasks, and some of users, keep no texts.
  texts = {name: [row[f"{name}_text"] or tokenizer.decode(row[name].tolist()) for row in rows]
           for name in ("inputs", "targets")}
  return Examples(texts["inputs"], [row["inputs"] for row in rows], texts["targets"])


def _check_lengths(examples: Examples, length: int, config: InferConfig) -> int:
  found = np.array([len(ids) for ids in examples.ids])
  long = int((found > length).sum())
  if long > config.task.max_truncated_inputs * len(found):
    first = int(np.argmax(found > length))
    raise UserError(f"Too many inputs are longer than {length} tokens",
                    found=f"{long} of {len(found)} would lose their end, the first is number "
                    f"{first + 1}; the longest has {found.max()}",
                    wanted=f"at most {config.task.max_truncated_inputs:.2%} of them "
                    "(MAX_TRUNCATED_INPUTS)",
                    fix=f"set TASK_FEATURE_LENGTHS[\"inputs\"] to {-(-int(found.max()) // 8) * 8}, "
                    "or raise MAX_TRUNCATED_INPUTS")
  return long


def _predict(config: InferConfig, model: Any, params: Any, examples: Examples,
             lengths: Mapping[str, int], labels: np.ndarray | None,
             tokenizer: vocabularies.Tokenizer, placement: Placement,
             prompt_id: int | None, partitioner: Partitioner,
             ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
  """(number of the first row, predictions) of each batch."""
  size = partitioner.padded(min(config.batch_size, len(examples.ids)))
  key = purpose_key(config.seed, "sampling")
  prompt_ids = None if prompt_id is None else (
    partitioner.put_batch(np.full(size, prompt_id, np.int32)))
  call = functools.partial(scoring.call, {}, params, Split({}), model, partitioner=partitioner)
  for first in range(0, len(examples.ids), size):
    rows = examples.ids[first:first + size]
    # Rows without an input fill the last batch up.
    inputs = [trim(ids, lengths["inputs"]) for ids in rows] + [_NOTHING] * (size - len(rows))
    tokens = partitioner.put_batch(placement.rows(inputs, lengths["inputs"]))
    if labels is None:
      made = call(scoring.generate, tokens, jax.random.fold_in(key, first), prompt_ids,
                  max_length=lengths["targets"], how=config.decoding)
      yield first, [{"prediction": tokenizer.decode(ids)}
                    for ids in np.asarray(made)[:len(rows)].tolist()]
    else:
      scores = np.asarray(call(scoring.label_scores, tokens, labels, prompt_ids))[:len(rows)]
      yield first, [{"prediction": config.labels[int(row.argmax())],
                     "scores": dict(zip(config.labels, map(float, row), strict=True))}
                    for row in scores]


def _line(config: InferConfig, examples: Examples, i: int, row: dict[str, Any]) -> str:
  if config.output_format == "text":
    # A line a prediction, so a prediction of several lines becomes one.
    return " ".join(row["prediction"].splitlines())
  target = {} if examples.targets is None else {"target": examples.targets[i]}
  return json.dumps({"input": examples.texts[i], **row, **target}, ensure_ascii=False)


def _check_output(path: str) -> None:
  parent = pathlib.Path(path).parent
  if path != STANDARD and (pathlib.Path(path).is_dir() or not parent.is_dir()):
    raise UserError("OUTPUT_FILE cannot be written",
                    found=f"{path} (a folder)" if parent.is_dir() else f"no folder {parent}",
                    wanted="a file in a folder that exists", fix="correct --gin.OUTPUT_FILE")


@contextlib.contextmanager
def _output(path: str) -> Iterator[TextIO]:
  """Standard output, or a file that appears under its name once it is whole."""
  if path == STANDARD:
    yield sys.stdout
    return
  partial = f"{path}.partial"
  with open(partial, "w", encoding="utf-8") as file:
    yield file
  os.replace(partial, path)
