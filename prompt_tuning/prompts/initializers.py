"""Where a prompt starts: the initialisations of Lester et al. 2021 (arXiv 2104.08691), section 3.2.

Every initialiser is a frozen dataclass with `__call__(key, length, sources) -> [P, D]` float32.
They run after the backbone is restored, because most of them copy rows of its embedding table.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prompt_tuning.checkpoints import prompt_files, run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import KeyValues


@dataclasses.dataclass(frozen=True)
class Sources:
  """What an initialiser may read.

  Attributes:
    embedding: `[V, D]` the backbone's token table.
    encode: text -> token ids, without an end-of-sequence id; None where there is no vocabulary.
    num_ordinary: ids below this are the vocabulary's own pieces (above: sentinels, padding rows).
    output: `[V, D]` the output layer's rows; None where it is the token table (T5 1.0).
    activations: `[P]` ids -> the keys and values they leave in `encoder`, `decoder` and `cross`
      attention, `[L, 1, P, H, K]`; None where there are no weights.
  """

  embedding: Any
  encode: Callable[[str], Sequence[int]] | None = None
  num_ordinary: int | None = None
  output: Any = None
  activations: Callable[[Sequence[int]], Mapping[str, KeyValues]] | None = None


class Initializer(Protocol):
  def __call__(self, key: Array, length: int, sources: Sources) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Uniform on [-scale, scale]; the paper's random initialisation has scale 0.5."""

  scale: float = 0.5

  def __post_init__(self):
    if not self.scale > 0:
      raise UserError("Uniform.scale is not a width", found=self.scale, wanted="a number above 0",
                      fix="the paper uses 0.5")

  def __call__(self, key: Array, length: int, sources: Sources) -> Array:
    shape = (length, sources.embedding.shape[1])
    return jax.random.uniform(key, shape, jnp.float32, -self.scale, self.scale)


@dataclasses.dataclass(frozen=True)
class SampledVocabulary:
  """Rows of the token table, drawn without replacement from the most common pieces.

  SentencePiece orders its pieces by frequency, so the most common are the first after the
  control ids (padding, end, unknown), which are never drawn.

  Attributes:
    most_common: how many pieces to draw from; the paper's 5,000. A smaller vocabulary is used
      whole.
  """

  most_common: int = 5000
  first_id: int = 3

  def __call__(self, key: Array, length: int, sources: Sources) -> Array:
    rows = sources.num_ordinary or sources.embedding.shape[0]
    last = min(self.first_id + self.most_common, rows)
    available = last - self.first_id
    if available < 1:
      raise UserError("SampledVocabulary has no piece to draw", found=f"{rows} pieces",
                      wanted=f"more than {self.first_id}", fix="raise most_common")
    # With fewer pieces than prompt rows, repeats cannot be avoided.
    ids = self.first_id + jax.random.choice(key, available, (length,), replace=length > available)
    return jnp.take(jnp.asarray(sources.embedding), ids, axis=0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class ClassLabels:
  """One row a class label: the mean of the label's token embeddings; the rest from `fallback`.

  Attributes:
    labels: the strings that the task's targets take (CLASS_LABELS).
    fallback: initialiser of the rows that are left; more labels than rows keep the first P.
  """

  labels: tuple[str, ...]
  fallback: Initializer = SampledVocabulary()

  def __post_init__(self):
    labels = self.labels
    if isinstance(labels, str) or not labels or not all(isinstance(x, str) and x for x in labels):
      raise UserError("ClassLabels.labels is not a list of labels", found=repr(labels),
                      wanted="strings, one a class", fix="--gin.CLASS_LABELS=\"['yes', 'no']\"")
    # gin gives lists; a module's fields must be hashable.
    object.__setattr__(self, "labels", tuple(labels))

  def __call__(self, key: Array, length: int, sources: Sources) -> Array:
    table = np.asarray(sources.embedding, np.float32)
    rows = np.stack([table[token_ids(label, sources)].mean(axis=0) for label in self.labels])
    rest = self.fallback(key, length, sources)
    rows = jnp.asarray(rows[:length])
    return jnp.concatenate([rows, rest[rows.shape[0]:]], axis=0)


@dataclasses.dataclass(frozen=True)
class Text:
  """The embeddings of a text, without an end-of-sequence token, repeated to fill P rows."""

  text: str

  def __call__(self, key: Array, length: int, sources: Sources) -> Array:
    ids = token_ids(self.text, sources)
    return jnp.asarray(np.asarray(sources.embedding, np.float32)[np.resize(ids, length)])


@dataclasses.dataclass(frozen=True)
class FromFile:
  """A saved prompt `[P, D]`: `.npz`, `.npy`, a PEFT adapter, or the paper's code's MODEL_DIR."""

  path: str

  def __call__(self, key: Array, length: int, sources: Sources) -> Array:
    return jnp.asarray(read_prompt(self.path, length, sources.embedding.shape[1],
                                   setting="INITIAL_PROMPT_FILE"))


@dataclasses.dataclass(frozen=True)
class FromRun:
  """The best prompt of another run, from its MODEL_DIR (prompt transfer, Vu et al. 2022)."""

  model_dir: str

  def __call__(self, key: Array, length: int, sources: Sources) -> Array:
    if not run_prompts.is_run(self.model_dir):
      raise UserError("SOURCE_MODEL_DIR holds no run", found=self.model_dir,
                      wanted="a MODEL_DIR with settings.json", fix="give the folder of a run")
    table = run_prompts.table_of(self.model_dir, "SOURCE_MODEL_DIR")
    return jnp.asarray(read_prompt(str(table), length, sources.embedding.shape[1],
                                   setting="SOURCE_MODEL_DIR"))


@dataclasses.dataclass(frozen=True)
class FromBank:
  """The mean of a saved bank `[N, P, D]`.

  Of a multitask prompt's bank that is the shared prompt times the mean of the tasks' matrices,
  with which Wang et al. 2023 (arXiv 2303.02861, section 3.3) start on a new task.
  """

  path: str

  def __call__(self, key: Array, length: int, sources: Sources) -> Array:
    path = self.path
    if run_prompts.is_run(path):
      path = str(run_prompts.table_of(path, "PROMPT_BANK"))
    found = prompt_files.read(path, setting="PROMPT_BANK")
    if found.values.ndim != 3:
      raise UserError("The prompt file is not a bank", found=f"{found.path}: {found.values.shape}",
                      wanted="[N, P, D], the prompts of several tasks",
                      fix="start from one prompt with inits/from_file.gin")
    table = check_prompt(found, length, sources.embedding.shape[1], len(found.values))
    return jnp.asarray(table.mean(axis=0))


def read_prompt(path: str, length: int | None, width: int, num_prompts: int = 1,
                setting: str = "PROMPT_FILE") -> np.ndarray:
  """Reads `[P, D]`, or `[N, P, D]` of a bank, and checks it: float32, in any format of
  `checkpoints/prompt_files.py`.

  Args:
    setting: what the path was given as, for the messages.

  Raises:
    UserError: no such file, not a prompt, pickled, or of another length or width.
  """
  return check_prompt(prompt_files.read(path, setting), length, width, num_prompts)


def check_prompt(prompt: prompt_files.PromptFile, length: int | None, width: int,
                 num_prompts: int = 1) -> np.ndarray:
  """The vectors `[P, D]` of a prompt that was read, or `[N, P, D]` of a bank.

  Raises:
    UserError: a bank where one prompt is wanted or the other way round, another length or width.
  """
  table, path = prompt.values, prompt.path
  if table.ndim != 2 and num_prompts == 1:
    raise UserError("The prompt file is a bank of prompts", found=f"{path}: {table.shape}",
                    wanted="one prompt [P, D]", fix="save one of them with numpy.save")
  if num_prompts > 1 and table.shape[:-2] != (num_prompts,):
    raise UserError("The prompt file is not this bank of prompts", found=f"{path}: {table.shape}",
                    wanted=f"[{num_prompts}, P, {width}]", fix="set NUM_PROMPTS to what it holds")
  if table.shape[-1] != width:
    raise UserError("The prompt file has the wrong width", found=f"{path}: D = {table.shape[-1]}",
                    wanted=f"D = {width}, the backbone's",
                    fix="use the prompt with the T5 size it was trained on")
  if length is not None and table.shape[-2] != length:
    raise UserError("The prompt file has another length", found=f"{path}: P = {table.shape[-2]}",
                    wanted=f"P = {length}", fix=f"--gin.PROMPT_LENGTH={table.shape[-2]}")
  return table


def token_ids(text: str, sources: Sources) -> np.ndarray:
  """The ids of a text that a prompt starts from; a `UserError` if there are none."""
  if sources.encode is None:
    raise UserError("This initialiser needs the vocabulary", found="none was given",
                    wanted="a tokenizer", fix="set VOCABULARY in the model's gin file")
  ids = np.asarray(sources.encode(text), np.int32)
  if ids.size == 0:
    raise UserError("A text to start the prompt from has no tokens", found=repr(text),
                    wanted="at least one token", fix="give a word")
  return ids
