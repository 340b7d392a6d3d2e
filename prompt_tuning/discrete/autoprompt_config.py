"""The settings of `prompt-tuning autoprompt`, and the rows and answers that they name."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from prompt_tuning import labelled_rows
from prompt_tuning.batches import fold
from prompt_tuning.checkpoints import prompt_files
from prompt_tuning.converter import trim
from prompt_tuning.discrete.templates import SENTINEL, answers
from prompt_tuning.errors import UserError
from prompt_tuning.labelled_rows import LabelledRows
from prompt_tuning.placement import Placement
from prompt_tuning.prompts.initializers import check_prompt
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import ModelConfig, TaskConfig

_COUNTS = ("train_steps", "candidates", "search_rows", "pool_rows", "batch_size", "eval_period")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoPromptConfig:
  """A search for trigger tokens.

  Attributes:
    model: with a soft prompt of P rows, which hold the trigger; its template places them.
    task: with labels.
    model_dir: MODEL_DIR.
    train_steps: TRAIN_STEPS, exchanges that are tried; 0 only scores the start.
    candidates: CANDIDATES, k, tokens that are tried exactly in each step.
    search_rows: SEARCH_ROWS, training rows that they are judged on: fixed, so that the loss there
      never rises.
    pool_rows: POOL_ROWS, other training rows that gradients come from, BATCH_SIZE in each step.
    batch_size: BATCH_SIZE, also the rows of one forward pass; it divides SEARCH_ROWS.
    eval_period: EVAL_PERIOD, steps between evaluations on SPLIT, which choose the best trigger.
    split, test_split, max_examples: SPLIT, TEST_SPLIT (or None), MAX_EXAMPLES of each.
    sentinel: SENTINEL, the answer stands for `<extra_id_0>`, which the template must hold.
    label_words: LABEL_WORDS, K tokens for each class that a classifier finds; None: the labels.
    words_only: WORDS_ONLY, triggers of whole words.
    over_labels: LOSS_OVER_LABELS, the loss of the class among the classes; else the paper's.
    start: PROMPT_TEXT, words to start from; None: words drawn by the seed.
    prompt_file: PROMPT_FILE, a soft prompt whose nearest words are the start; None.
    seed: RANDOM_SEED, of the rows, the start and the order of positions.
  """

  model: ModelConfig
  task: TaskConfig
  model_dir: str
  train_steps: int
  candidates: int = 16
  search_rows: int = 128
  pool_rows: int = 1000
  batch_size: int = 32
  eval_period: int = 25
  split: str = "validation"
  test_split: str | None = None
  max_examples: int | None = 256
  sentinel: bool = False
  label_words: int | None = None
  words_only: bool = True
  over_labels: bool = False
  start: str | None = None
  prompt_file: str | None = None
  seed: int = 0

  def __post_init__(self):
    for name in _COUNTS:
      value = getattr(self, name)
      least = 0 if name == "train_steps" else 1
      if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name.upper()} is not a count", found=repr(value),
                        wanted=f"a whole number, {least} or more", fix=f"--gin.{name.upper()}=32")
    batch = self.batch_size
    if self.search_rows % batch:
      raise UserError("SEARCH_ROWS is no multiple of BATCH_SIZE",
                      found=f"{self.search_rows} and {batch}",
                      wanted="whole batches, so that every row counts the same",
                      fix=f"--gin.SEARCH_ROWS={-(-self.search_rows // batch) * batch}")
    if not isinstance(self.model.prompt, SoftPrompt) or self.model.prompt.num_prompts > 1:
      raise UserError("A trigger stands where the rows of one soft prompt would",
                      found=type(self.model.prompt).__name__, wanted="SoftPrompt, one of it",
                      fix="use prompts/soft.gin, as runs/autoprompt.gin does")
    if self.start is not None and self.prompt_file is not None:
      raise UserError("A search has one start", found="PROMPT_TEXT and PROMPT_FILE",
                      wanted="one of them", fix="leave the other out")
    if self.sentinel and self.model.tokenizer().sentinel(0) not in (
        *self.model.placement().before, *self.model.placement().after):
      raise UserError("The template does not say where the answer stands",
                      found=f"SENTINEL = True and PROMPT_TEMPLATE = {self.model.template!r}",
                      wanted=f"{SENTINEL} in the template",
                      fix="--gin.PROMPT_TEMPLATE=\"'{inputs}{prompt} " + SENTINEL + "'\"")


@dataclasses.dataclass(frozen=True)
class Rows:
  """Attributes:
    tokens: `[n, S]` int32, virtual ids included.  classes: `[n]` int32.
  """

  tokens: np.ndarray
  classes: np.ndarray

  def take(self, index: Sequence[int] | np.ndarray | slice) -> "Rows":
    return Rows(self.tokens[index], self.classes[index])


@dataclasses.dataclass(frozen=True)
class Data:
  """Attributes:
    search: rows that exchanges are judged on.
    pool: rows that gradients come from.
    splits: rows of SPLIT and TEST_SPLIT.
    labels: of the classes.
    fingerprint: of the task.
    long_inputs: rows that lost their end, of all that were read.
  """

  search: Rows
  pool: Rows
  splits: dict[str, Rows]
  labels: tuple[str, ...]
  fingerprint: str
  long_inputs: int

  def batch(self, seed: int, step: int, size: int) -> Rows:
    """The pool rows whose gradient is taken in a step; a function of the two numbers alone."""
    generator = np.random.default_rng(fold(seed, "gradient", step))
    return self.pool.take(generator.choice(len(self.pool.tokens), size, replace=False))


def read(config: AutoPromptConfig) -> Data:
  """Reads and checks all rows.

  Raises:
    UserError: too few training rows, or too many that are too long.
  """
  read_rows = {"train": labelled_rows.read(
    config.task, config.model.vocabulary, "train", config.search_rows + config.pool_rows,
    config.seed)}
  train = read_rows["train"]
  if len(train) < config.search_rows + config.batch_size:
    raise UserError("There are too few training rows for the search", found=f"{len(train)} rows",
                    wanted=f"SEARCH_ROWS + BATCH_SIZE = {config.search_rows + config.batch_size}",
                    fix="lower SEARCH_ROWS")
  for split in {config.split, config.test_split} - {None}:
    read_rows[split] = labelled_rows.read(config.task, config.model.vocabulary, split,
                                          config.max_examples)
  length, placement = config.task.feature_lengths["inputs"], config.model.placement()
  long = {name: sum(len(ids) > length for ids in rows.ids) for name, rows in read_rows.items()}
  for name, count in long.items():
    if count > config.task.max_truncated_inputs * len(read_rows[name]):
      raise UserError(f"Too many inputs are longer than {length} tokens",
                      found=f"{count} of {len(read_rows[name])} rows of {name}",
                      wanted=f"at most {config.task.max_truncated_inputs:.2%} of them "
                      "(MAX_TRUNCATED_INPUTS)",
                      fix="raise TASK_FEATURE_LENGTHS['inputs'], or MAX_TRUNCATED_INPUTS")
  made = {name: place(rows, placement, length) for name, rows in read_rows.items()}
  return Data(made["train"].take(slice(config.search_rows)),
              made["train"].take(slice(config.search_rows, None)),
              {name: rows for name, rows in made.items() if name != "train"}, train.labels,
              train.fingerprint, sum(long.values()))


def place(rows: LabelledRows, placement: Placement, length: int) -> Rows:
  return Rows(placement.rows([trim(ids, length) for ids in rows.ids], length), rows.classes)


def prefix(config: AutoPromptConfig) -> tuple[int, ...]:
  """What the decoder is given ahead of the answer."""
  return (config.model.tokenizer().sentinel(0),) if config.sentinel else ()


def label_answers(config: AutoPromptConfig, labels: Sequence[str]) -> np.ndarray:
  """`[C, 1, U]`: the labels themselves, with the end of sequence."""
  return answers(labels, None, config.model.tokenizer(), sentinel=False).ids[:, None]


def soft_prompt(config: AutoPromptConfig) -> np.ndarray | None:
  """`[P, D]` of PROMPT_FILE."""
  if config.prompt_file is None:
    return None
  return check_prompt(prompt_files.read(config.prompt_file), config.model.prompt.length,
                      config.model.backbone.emb_dim)


def start_words(config: AutoPromptConfig, allowed: np.ndarray) -> np.ndarray:
  """`[P]` tokens of PROMPT_TEXT, repeated to fill the trigger, or words drawn by the seed."""
  length = config.model.prompt.length
  if config.start is None:
    generator = np.random.default_rng(fold(config.seed, "start"))
    return generator.choice(np.flatnonzero(allowed), length).astype(np.int32)
  ids = np.array(config.model.tokenizer().encode(config.start), np.int32)
  if not len(ids) or len(ids) > length:
    raise UserError("PROMPT_TEXT does not fit the trigger", found=f"{len(ids)} tokens",
                    wanted=f"1 to {length} (PROMPT_LENGTH)",
                    fix=f"--gin.PROMPT_LENGTH={max(len(ids), 1)}")
  return np.resize(ids, length)

