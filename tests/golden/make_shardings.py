"""Writes shardings.txt: how every leaf of a T5 lies on eight devices, by layout. Read it by eye.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu \\
    python tests/golden/make_shardings.py
"""

import pathlib

import jax

from prompt_tuning import trees
from prompt_tuning.interfaces import T5Config
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import PromptedT5, abstract_params, logical_axes
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

LAYOUTS = ("replicated", "fsdp", "tensor", "tensor_sequence", "fsdp=2,tensor=4",
           "data=2,fsdp=2,tensor_sequence=2")
CONFIG = T5Config(vocab_size=64, emb_dim=16, num_heads=8, head_dim=4, mlp_dim=32,
                  num_encoder_layers=2, num_decoder_layers=2)


def table(devices) -> str:
  """A line a leaf and layout: layout, path, global shape, axes, shape on one device."""
  model = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, 3))
  params, axes = abstract_params(model), logical_axes(model)
  lines = []
  for layout in LAYOUTS:
    placed = trees.flatten(Partitioner.make(layout, devices).params(params, axes))
    for path, leaf in trees.flatten(params).items():
      sharding = placed[path]
      split = ["+".join(axis) if isinstance(axis, tuple) else axis or "-"
               for axis in (*sharding.spec, *(None,) * (leaf.ndim - len(sharding.spec)))]
      part = sharding.shard_shape(leaf.shape)
      lines.append(f"{layout:32} {path:62} {leaf.shape!s:16} {' '.join(split):20} {part}")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  pathlib.Path(__file__).with_name("shardings.txt").write_text(table(jax.devices()))
