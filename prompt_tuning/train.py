"""Runs or resumes one training run: of one prompt or a backbone, or of many prompts at once."""

from collections.abc import Callable, Mapping
from typing import Any

from prompt_tuning.member_run import MembersTrainer
from prompt_tuning.train_config import TrainConfig
from prompt_tuning.train_loop import Outcome, Trainer

__all__ = ["Outcome", "TrainConfig", "train"]


def train(config: TrainConfig, operative_config: str = "",
          on_start: Callable[[Mapping[str, Any]], None] | None = None) -> Outcome:
  """Runs or resumes one training run.

  Args:
    operative_config: for config.gin.
    on_start: called with the summary before the first step.

  Raises:
    UserError: a setting, a file or the data is wrong, the disk is full, or the loss diverged;
      what was saved before is kept.
  """
  trainer = Trainer if config.members is None else MembersTrainer
  return trainer(config, operative_config).run(on_start)
