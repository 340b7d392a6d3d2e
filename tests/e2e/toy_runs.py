"""Small real runs: shipped gin files, a T5 of a few thousand parameters, bytes for words."""

import csv
import json
from pathlib import Path

import numpy as np

from prompt_tuning import config
from prompt_tuning.train import Outcome, TrainConfig, train

FILES = ("models/tiny.gin", "prompts/soft.gin", "runs/prompt_tune.gin")
TIMINGS = ("steps_per_second", "tokens_per_second")

SMALL = """
from __gin__ import dynamic_registration
from prompt_tuning import interfaces

VOCABULARY = 'bytes'
INITIAL_CHECKPOINT_PATH = 'random'
interfaces.T5Config.vocab_size = 264
interfaces.T5Config.emb_dim = 16
interfaces.T5Config.num_heads = 2
interfaces.T5Config.head_dim = 8
interfaces.T5Config.mlp_dim = 32
interfaces.T5Config.num_encoder_layers = 2
interfaces.T5Config.num_decoder_layers = 2
interfaces.T5Config.logits_via_embedding = False
"""
TOY = """
MIXTURE_OR_TASK_NAME = 'toy_labels'
MIXTURE_OR_TASK_MODULE = 'toy_tasks'
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}
"""
PROMPT = """
from prompt_tuning import train
PROMPT_LENGTH = 4
TRAIN_STEPS = 8
EVAL_PERIOD = 4
BATCH_SIZE = 8
train.TrainConfig.log_period = 3
"""


class Folder:
  """A place for runs.

  Attributes:
    path: where.
    files: shipped gin files of every run here; the small model's is added.
  """

  def __init__(self, path: Path, files=FILES, text: str = SMALL + TOY + PROMPT):
    self.path = path
    self.gin = path / "small.gin"
    self.gin.write_text(text)
    self.files = [*files, str(self.gin)]

  def arguments(self, name: str, **macros) -> list[str]:
    """The command line of the run `name`; macros as Python values."""
    macros = {"MODEL_DIR": str(self.path / name)} | macros
    return ["train", *(f"--gin_file={file}" for file in self.files),
            *(f"--gin.{key.replace('__', '.')}={value!r}" for key, value in macros.items())]

  def config(self, name: str, **macros) -> TrainConfig:
    bindings, _ = config.split_gin_flags(self.arguments(name, **macros))
    config.load(["commands/train.gin", *self.files], bindings)
    return config.build(TrainConfig)

  def train(self, name: str, **macros) -> Outcome:
    settings = self.config(name, **macros)
    return train(settings, config.operative())

  def prompt(self, name: str) -> np.ndarray:
    return np.load(self.path / name / "prompt.npy")

  def prompt_bytes(self, name: str) -> bytes:
    return (self.path / name / "prompt.npy").read_bytes()

  def summary(self, name: str) -> dict:
    return json.loads((self.path / name / "summary.json").read_text())

  def metrics(self, name: str) -> list[tuple[str, ...]]:
    """The rows of metrics.csv as text, without what depends on the clock."""
    with (self.path / name / "metrics.csv").open() as file:
      rows = list(csv.reader(file))
    return [tuple(row) for row in rows if row[2] not in TIMINGS]
