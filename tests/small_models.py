"""A T5 of a few thousand parameters over bytes, as objects and as gin."""

import functools

import numpy as np

from prompt_tuning import trees
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints import method_files
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5
from prompt_tuning.tasks import vocabularies

CONFIG = T5Config(vocab_size=264, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
                  num_encoder_layers=1, num_decoder_layers=1)
PROMPT_LENGTH = 3

GIN = """
from __gin__ import dynamic_registration
from prompt_tuning import interfaces

VOCABULARY = 'bytes'
INITIAL_CHECKPOINT_PATH = 'random'
interfaces.T5Config.vocab_size = 264
interfaces.T5Config.emb_dim = 16
interfaces.T5Config.num_heads = 2
interfaces.T5Config.head_dim = 8
interfaces.T5Config.mlp_dim = 32
interfaces.T5Config.num_encoder_layers = 1
interfaces.T5Config.num_decoder_layers = 1
interfaces.T5Config.logits_via_embedding = False
"""


def model(prompt: bool = True, **changes) -> ModelConfig:
  """The same model as `GIN` on top of models/tiny.gin and prompts/soft.gin."""
  changes = {"initial_checkpoint_path": "random"} | changes
  return ModelConfig(backbone=CONFIG, vocabulary="bytes",
                     prompt=SoftPrompt(CONFIG, PROMPT_LENGTH) if prompt else None, **changes)


def save_prompt(path, seed: int = 0, length: int = PROMPT_LENGTH, width: int = 16):
  """Writes a random prompt `[length, width]`, and returns it."""
  table = np.random.default_rng(seed).normal(size=(length, width)).astype(np.float32)
  np.save(path, table)
  return table


def save_method(path, config: ModelConfig, seed: int = 0) -> None:
  """Writes random leaves of a method that is more than a table."""
  random = np.random.default_rng(seed)
  shapes = trees.flatten(abstract_params(config.module())["prompt"])
  method_files.write(path, {name: random.normal(size=leaf.shape).astype(np.float32)
                            for name, leaf in shapes.items()}, {})


@functools.cache
def backbone(seed: int):
  """Random parameters, without a compilation."""
  rng = np.random.default_rng(seed)
  shapes = abstract_params(PromptedT5(T5(CONFIG)))["backbone"]
  return trees.map_with_path(
    lambda path, leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes)


def save_backbone(folder, seed: int = 3, **about):
  """Writes a random backbone as a checkpoint, and returns its parameters."""
  params = backbone(seed)
  backbone_files.save(folder, params, CONFIG, vocabulary=vocabularies.fingerprint("bytes"),
                      about=about)
  return params
