"""Rows of a classification task as texts, ids and class numbers, for methods without training."""

import dataclasses
from typing import Any

import numpy as np

from prompt_tuning.data import cache_task
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import check_targets
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.task_setup import set_up


@dataclasses.dataclass(frozen=True)
class LabelledRows:
  """Attributes:
    labels: the C texts that targets take.
    texts: the inputs, n of them.
    ids: of each, with the end of sequence, not trimmed.
    classes: `[n]` int32, a row's label.
    fingerprint: of the task's text.
  """

  labels: tuple[str, ...]
  texts: list[str]
  ids: list[np.ndarray]
  classes: np.ndarray
  fingerprint: str

  def __len__(self) -> int:
    return len(self.texts)


def read(task: TaskConfig, vocabulary: str, split: str, limit: int | None = None,
         seed: int | None = None) -> LabelledRows:
  """Reads a split.

  Args:
    limit: how many rows; None: all.
    seed: draws them without repeats; None: the first ones.

  Raises:
    UserError: a mixture, a task without labels, no such split, or one without known labels.
  """
  if task.variant.few_shot is not None:
    raise UserError("Discrete prompts choose their own examples",
                    found=f"FEW_SHOT = {task.variant.few_shot}", wanted="no FEW_SHOT",
                    fix="leave it out; `prompt-tuning design` has SHOTS")
  setup = set_up(task, vocabulary)
  if setup.spec is None or setup.spec.labels is None:
    raise UserError("Discrete prompts are made for one task with labels", found=str(task.name),
                    wanted="a classification task", fix="choose one that `prompt-tuning tasks` "
                    "lists as classification, or give LABELS")
  (_, made), = setup.parts.items()
  if split not in made.splits:
    raise UserError(f"Task {task.name!r} has no split {split!r}", found=", ".join(made.splits),
                    wanted=split, fix=nearest(split, made.splits))
  cache = cache_task(made, split, cache_dir=task.folder(), fingerprint=setup.fingerprint,
                     use_cached=task.use_cached)
  labels = setup.spec.labels
  size = min(len(cache), limit or len(cache))
  chosen = range(size) if seed is None else np.random.default_rng(seed).choice(
    len(cache), size, replace=False)
  check_targets(task.name, split, ((int(i), cache.text("targets_text", i)) for i in chosen), labels)
  rows: list[dict[str, Any]] = [cache[int(i)] for i in chosen]
  return LabelledRows(labels, [row["inputs_text"] for row in rows], [row["inputs"] for row in rows],
                      np.array([labels.index(row["targets_text"]) for row in rows], np.int32),
                      setup.fingerprint)
