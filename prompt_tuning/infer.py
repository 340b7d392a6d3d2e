"""Predictions for the lines of a file, for standard input, or for a split of a task.

A line is an input as the task would have formatted it; with prompts of several tasks it says its
task first, and a tab. Every batch of a kind has one shape, the last one is filled up, so the model
compiles once. Output is in the input's order, a line each: the text, or with
`output_format = "json"` an object with input, prediction and, where there are any, task, target,
label scores, and the answers of each prompt of an ensemble.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from prompt_tuning import ensembles, examples, prompt_bank, steering, trained_model
from prompt_tuning.control import ANTI_EXPERT, EXPERT, Control
from prompt_tuning.converter import check_feature_lengths
from prompt_tuning.disk import check_writable, report_full
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import STANDARD, Examples
from prompt_tuning.generation import Decoding
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompt_bank import NO_PROMPT, Bank
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.serving import Row, Server

FORMATS = ("text", "json")


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
    labels: LABELS to choose among by likelihood; None: generate text. Of `prompts`, those of each
      task by its name; tasks that are not named generate. A plain list only where there is one.
    decoding: how text is generated.
    control: what steers it, or None.
    model_dir, prompt_file: MODEL_DIR of a run, PROMPT_FILE; what was trained.
    prompts: (task, source) pairs instead of them (`prompt_bank.py`): tasks that are answered
      together, ensembles where one stands several times.
    ensemble: ENSEMBLE, how an ensemble answers (`ensembles.py`).
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
  labels: tuple[str, ...] | Mapping[str, Sequence[str]] | None = None
  decoding: Decoding = Decoding()
  control: Control | None = None
  model_dir: str | None = None
  prompt_file: str | None = None
  prompts: tuple[tuple[str, str], ...] = ()
  ensemble: str = "mean_probability"
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
    if self.ensemble not in ensembles.HOW:
      raise UserError("ENSEMBLE is unknown", found=repr(self.ensemble),
                      wanted="one of " + ", ".join(ensembles.HOW),
                      fix=nearest(str(self.ensemble), ensembles.HOW))
    if self.prompts and (self.model_dir or self.prompt_file):
      raise UserError("There are two kinds of prompts",
                      found="--prompt, and MODEL_DIR or PROMPT_FILE", wanted="one of them",
                      fix=f"--prompt NAME={self.model_dir or self.prompt_file}")
    names = {name for name, _ in self.prompts}
    if len(names) > 1 and self.input_file is None:
      raise UserError("Several tasks have no lines to answer", found="no INPUT_FILE",
                      wanted="lines of TASK, a tab, and an input", fix="give --gin.INPUT_FILE; "
                      "`prompt-tuning eval` takes the rows of the tasks themselves")
    if isinstance(self.labels, Mapping):
      for name in self.labels:
        if name not in names:
          raise UserError("LABELS name a task that has no prompt", found=name,
                          wanted="one of " + ", ".join(sorted(names)), fix=nearest(name, names))
      object.__setattr__(self, "labels", {
        name: examples.class_names(labels) for name, labels in self.labels.items()})
    elif self.labels is not None:
      if len(names) > 1:
        raise UserError("LABELS do not say which task they are of", found=repr(self.labels),
                        wanted="the labels of each task by its name; a task without any generates",
                        fix=f"--gin.LABELS=\"{{{self.prompts[0][0]!r}: {list(self.labels)!r}}}\"")
      object.__setattr__(self, "labels", examples.class_names(self.labels))


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
  bank = _bank(config)
  tokenizer = config.model.tokenizer()
  limits = config.decoding.limits(tokenizer, lengths["targets"])
  found = _examples(config, bank, tokenizer)
  long_inputs = examples.check_lengths(found, lengths["inputs"], config.task.max_truncated_inputs)
  _check_output(config.output_file)
  answers = _Answers(config, bank, found, tokenizer)
  server = Server(bank=bank, params=bank.load(config.seed, partitioner), lengths=lengths,
                  batch_size=config.batch_size, decoding=config.decoding, limits=limits,
                  steering=answers.steering, seed=config.seed, partitioner=partitioner)
  with _output(config.output_file) as output:
    for i, row in enumerate(answers(server)):
      output.write(_line(config, found, i, row) + "\n")
      output.flush()
  return Counts(len(found.ids), long_inputs)


def _bank(config: InferConfig) -> Bank:
  """The prompts, checked, with those of a control."""
  extra = []
  if config.control is not None:
    config.control.check(config.decoding, config.model.backbone.emb_dim)
    extra = config.control.prompts()
    if config.labels is not None:
      raise UserError("A control steers what is generated", found="LABELS", wanted="no LABELS",
                      fix="leave one of the two out")
  if config.prompts or extra:
    given = config.prompts or ((config.task.name or "", config.prompt_file or config.model_dir
                                or NO_PROMPT),)
    bank = prompt_bank.read_bank(config.model, (*given, *extra))
    used = {places[0][0] for places in bank.tasks.values()}
    several = any(len(places) > 1 for places in bank.tasks.values())
    if config.control is not None and several:
      raise UserError("A control steers one prompt, not an ensemble",
                      found=f"{len(config.prompts)} prompts", wanted="a prompt for each task",
                      fix="leave the control or the further prompts out")
    if extra and len(used) > 1:
      raise UserError("The prompts of a control do not share a batch",
                      found=", ".join(source for _, source in (*given, *extra)),
                      wanted="prompts that are tables of vectors",
                      fix="train the expert and the anti-expert with prompts/soft.gin")
    return bank
  trained = trained_model.find(config.model, config.model_dir, config.prompt_file)
  return prompt_bank.of_trained(trained, config.task.name)


def _examples(config: InferConfig, bank: Bank, tokenizer: Any) -> Examples:
  if config.input_file is None:
    task = config.task
    if config.prompts and task.name is None:
      task = dataclasses.replace(task, name=config.prompts[0][0])
    return examples.of_task(task, config.split, config.model.vocabulary, config.max_examples,
                            tokenizer)
  lines = examples.read_lines(config.input_file)[:config.max_examples]
  names = dict(config.prompts)
  return examples.of_mixed_lines(lines, names, tokenizer) if len(names) > 1 else (
    examples.of_lines(lines, tokenizer))


class _Answers:
  """From examples to rows of the model, and from their answers to predictions."""

  def __init__(self, config: InferConfig, bank: Bank, found: Examples, tokenizer: Any):
    self._config, self._tokenizer = config, tokenizer
    names = [name for name in bank.tasks if name not in (EXPERT, ANTI_EXPERT)]
    tasks = found.tasks or names[:1] * len(found.ids)
    labels = {name: self._labels_of(name) for name in names}
    self._check_prompts(bank, labels)
    ids = {name: examples.label_ids(own, tokenizer, config.task.leading_sentinel)
           for name, own in labels.items() if own}
    self.labels = [labels[name] for name in tasks]
    extra = tuple(place for name in (EXPERT, ANTI_EXPERT) for _, place in bank.tasks.get(name, ()))
    self.steering = None if config.control is None else config.control.steering()
    self.rows: list[list[Row]] = []
    for text, name in zip(found.ids, tasks, strict=True):
      places = bank.tasks[name]
      if extra or self._joins(bank, name, ids):
        self.rows.append([Row(text, places[0][0], (*(row for _, row in places), *extra))])
      else:
        self.rows.append([Row(text, group, (row,), ids.get(name)) for group, row in places])
    joined = {len(rows[0].prompts) for rows in self.rows} - {1}
    if joined and self.steering is None:
      self.steering = steering.Mean(max(joined))

  def _check_prompts(self, bank: Bank, labels: Mapping[str, Sequence[str] | None]) -> None:
    """Every prompt can write the labels that it is to choose among."""
    for name, own in labels.items():
      for group, row in bank.tasks[name] if own else ():
        method = bank.groups[group].prompts[row].method
        if method is not None:
          targets = [(text, self._tokenizer.encode(text)) for text in own]
          method.check_task(name or "LABELS", targets,
                            leading_sentinel=self._config.task.leading_sentinel)

  def _labels_of(self, name: str) -> Sequence[str] | None:
    labels = self._config.labels
    return labels.get(name) if isinstance(labels, Mapping) else labels

  def _joins(self, bank: Bank, name: str, ids: Mapping[str, np.ndarray]) -> bool:
    """Whether a task's prompts generate together, a token at a time."""
    places = bank.tasks[name]
    if len(places) == 1 or name in ids or self._config.ensemble != "mean_probability":
      return False
    sizes = {len(other) for task, other in bank.tasks.items() if task not in ids}
    if len({group for group, _ in places}) > 1 or sizes != {len(places)}:
      raise UserError("These prompts cannot generate one text together", found=name,
                      wanted="prompts that share a batch, as many for every task",
                      fix="--gin.ENSEMBLE=\"'majority_vote'\", or prompts of one method")
    return True

  def __call__(self, server: Server) -> Iterator[dict[str, Any]]:
    """A prediction for each example."""
    answers = server([row for rows in self.rows for row in rows])
    for rows, labels in zip(self.rows, self.labels, strict=True):
      found = [next(answers) for _ in rows]
      yield self._ranked(found, labels) if labels else self._generated(found)

  def _ranked(self, scores: list[np.ndarray], labels: Sequence[str]) -> dict[str, Any]:
    if len(scores) == 1:
      chosen, values = labels[int(scores[0].argmax())], scores[0]
      return {"prediction": chosen, "scores": dict(zip(labels, map(float, values), strict=True))}
    own = np.stack(scores)[:, None]
    log_probs = own - np.logaddexp.reduce(own, axis=-1, keepdims=True)
    values = ensembles.label_values(log_probs)[self._config.ensemble][0]
    return {"prediction": labels[int(values.argmax())],
            "scores": dict(zip(labels, map(float, values), strict=True)),
            "members": [labels[int(row.argmax())] for row in scores]}

  def _generated(self, made: list[np.ndarray]) -> dict[str, Any]:
    texts = [examples.answer(ids, self._tokenizer, self._config.task.leading_sentinel)
             for ids in made]
    if len(texts) == 1:
      return {"prediction": texts[0]}
    return {"prediction": ensembles.most_common(texts), "members": texts}


def _line(config: InferConfig, found: Examples, i: int, row: dict[str, Any]) -> str:
  if config.output_format == "text":
    # A line a prediction, so a prediction of several lines becomes one.
    return " ".join(row["prediction"].splitlines())
  task = {} if found.tasks is None else {"task": found.tasks[i]}
  target = {} if found.targets is None else {"target": found.targets[i]}
  return json.dumps({**task, "input": found.texts[i], **row, **target}, ensure_ascii=False)


def _check_output(path: str) -> None:
  parent = pathlib.Path(path).parent
  if path != STANDARD and (pathlib.Path(path).is_dir() or not parent.is_dir()):
    raise UserError("OUTPUT_FILE cannot be written",
                    found=f"{path} (a folder)" if parent.is_dir() else f"no folder {parent}",
                    wanted="a file in a folder that exists", fix="correct --gin.OUTPUT_FILE")
  if path != STANDARD:
    check_writable(parent, "OUTPUT_FILE")


@contextlib.contextmanager
def _output(path: str) -> Iterator[TextIO]:
  """Standard output, or a file that appears under its name once it is whole."""
  if path == STANDARD:
    yield sys.stdout
    return
  partial = pathlib.Path(f"{path}.partial")
  with report_full("predictions", pathlib.Path(path), "run the same command again"):
    try:
      with partial.open("w", encoding="utf-8") as file:
        yield file
      os.replace(partial, path)
    except BaseException:
      partial.unlink(missing_ok=True)
      raise
