"""Distillation from source prompts (Wang et al. 2023, arXiv 2303.02861, section 3.2).

Prompts that were trained one a task teach the prompts of a multitask run: with teacher T and
student S on the same frozen backbone the loss of a target token is

  cross-entropy + weight (KL(T || S) + mean of (H_T - H_S)^2)

KL compares the distributions of the token; H are the encoder's outputs at the real input tokens of
its row, and their mean is over tokens and D. (The paper sums where we average, so that a setting
keeps its meaning with the size of the model and the length of the input.)

Teachers: a bank [N, P', D], row n for the rows of a batch with prompt id n; P' need not be the
student's P. No gradient reaches them. Cost: a forward pass with P' virtual tokens.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prompt_tuning.checkpoints import prompt_files, run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5, add_virtual_tokens
from prompt_tuning.prompts.initializers import check_prompt
from prompt_tuning.prompts.soft import SoftPrompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
  """Attributes:
    teachers: a prompt file or MODEL_DIR a task, in the order of the tasks of the mixture.
    weight: of the teachers' part of the loss; the paper's is 0.9.
  """

  teachers: tuple[str, ...]
  weight: float = 0.9

  def __post_init__(self):
    if (isinstance(self.teachers, str) or not self.teachers
        or not all(isinstance(teacher, str) and teacher for teacher in self.teachers)):
      raise UserError("Distillation.teachers is not a list of prompts", found=repr(self.teachers),
                      wanted="a prompt file or MODEL_DIR for each task",
                      fix="--gin.TEACHER_PROMPTS=\"['runs/mnli', 'runs/squad/prompt.npy']\"")
    object.__setattr__(self, "teachers", tuple(self.teachers))
    if not self.weight > 0:
      raise UserError("Distillation.weight is not one", found=repr(self.weight),
                      wanted="a number above 0", fix="--gin.DISTILLATION_WEIGHT=0.9")

  def check(self, model: PromptedT5) -> None:
    """Checks against the student, before any weight is loaded.

    Raises:
      UserError: not a teacher a task, or virtual tokens that do not stand in front.
    """
    prompts = 0 if model.prompt is None else model.prompt.num_prompts
    if prompts != len(self.teachers):
      raise UserError("Distillation needs a teacher for every prompt",
                      found=f"{len(self.teachers)} teachers, {prompts} prompts",
                      wanted="as many TEACHER_PROMPTS as NUM_PROMPTS, in the order of the tasks",
                      fix=f"--gin.NUM_PROMPTS={len(self.teachers)}, or other TEACHER_PROMPTS")
    if not model.prompt_in_front:
      raise UserError("Distillation compares inputs with the prompt in front",
                      found="PROMPT_TEMPLATE, or packed rows", wanted="the prompt in front",
                      fix="leave PROMPT_TEMPLATE out")

  def bank(self, width: int) -> np.ndarray:
    """The teachers' vectors `[N, P', D]`.

    Raises:
      UserError: no prompt there, or prompts of other widths or of different lengths.
    """
    tables = [check_prompt(_read(path), None, width) for path in self.teachers]
    lengths = {path: len(table) for path, table in zip(self.teachers, tables, strict=True)}
    if len(set(lengths.values())) > 1:
      raise UserError("The teachers differ in length",
                      found=", ".join(f"{path}: {length}" for path, length in lengths.items()),
                      wanted="prompts of one length",
                      fix="train the teachers with one PROMPT_LENGTH")
    return np.stack(tables)

  def term(self, student: PromptedT5, teachers: np.ndarray) -> "Term":
    return Term(self.weight, student, teachers)


class Term:
  """The teachers' part of the loss, for one student."""

  def __init__(self, weight: float, student: PromptedT5, teachers: np.ndarray):
    count, length, _ = teachers.shape
    self.weight, self.student, self.length = weight, student, length
    self.table = teachers if count > 1 else teachers[0]
    config = student.backbone.config
    self.teacher = student.clone(prompt=SoftPrompt(config, length, num_prompts=count))

  def __call__(self, params: Mapping[str, Any], batch: Mapping[str, Array], optional: Any,
               **training: Any) -> tuple[Array, Array]:
    """Logits of the student `[B, U, V]`, and the term summed over the target tokens.

    Args:
      params: the student's.
      optional: what else of the batch the model takes.
      training: `enable_dropout` and `rngs` of the student; teachers have no dropout.
    """
    tokens = batch["encoder_input_tokens"]
    real = tokens[:, self.student.num_virtual_tokens:]
    encoded, logits = _both(self.student, params, tokens, batch, optional, training)
    given = {"backbone": params["backbone"], "prompt": {"embedding": jnp.asarray(self.table)}}
    theirs, their_logits = jax.lax.stop_gradient(_both(
      self.teacher, given, add_virtual_tokens(real, self.length), batch, optional,
      {"enable_dropout": False}))
    weights = batch["decoder_loss_weights"]
    log_p, log_q = jax.nn.log_softmax(their_logits), jax.nn.log_softmax(logits)
    divergence = jnp.sum(weights * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
    is_real = real != 0
    apart = jnp.mean(jnp.square(
      (encoded[:, -real.shape[1]:] - theirs[:, -real.shape[1]:]).astype(jnp.float32)), axis=-1)
    # A mean a row: one over all rows would be another loss in microbatches.
    means = jnp.sum(apart * is_real, axis=1) / jnp.maximum(jnp.sum(is_real, axis=1), 1)
    return logits, self.weight * (divergence + jnp.sum(jnp.sum(weights, axis=1) * means))


def fingerprint(bank: np.ndarray) -> str:
  """16 hex digits over the teachers' vectors."""
  return hashlib.sha256(np.asarray(bank, np.float32).tobytes()).hexdigest()[:16]


def _both(model: PromptedT5, params: Any, tokens: Array, batch: Mapping[str, Array],
          optional: Mapping[str, Array], training: Mapping[str, Any]) -> tuple[Array, Array]:
  """(encoder's outputs, logits)."""
  ids, dropout = optional.get("prompt_ids"), training["enable_dropout"]

  def run(module: PromptedT5) -> tuple[Array, Array]:
    encoded = module.encode(tokens, enable_dropout=dropout, prompt_ids=ids)
    return encoded, module.decode(encoded, tokens, batch["decoder_input_tokens"],
                                  enable_dropout=dropout, prompt_ids=ids)

  return model.apply({"params": params}, method=run, rngs=training.get("rngs"))


def _read(path: str) -> prompt_files.PromptFile:
  if run_prompts.is_run(path):
    path = str(run_prompts.table_of(path, "TEACHER_PROMPTS"))
  return prompt_files.read(path, setting="TEACHER_PROMPTS")
