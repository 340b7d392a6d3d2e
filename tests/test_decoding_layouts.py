"""What a prompted model says does not depend on how its layers are stacked or where they lie."""

import dataclasses

import jax
import numpy as np
from descriptors import CONFIG, random_params, unstacked

from prompt_tuning.generation import Decoding, generate
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import PromptedT5, logical_axes
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

# A row for each of four devices.
ROWS = np.array([[-1, -2, 5 + i, 6, 7 + i % 2, 1] for i in range(4)], np.int32)


def model_of(config):
  return PromptedT5(T5(config), SoftPrompt(config, 2))


def test_scanned_unscanned_and_sharded_say_the_same_greedily_and_with_beams():
  model, apart = model_of(CONFIG), model_of(dataclasses.replace(CONFIG, scan_layers=False))
  params = random_params(model)

  def says(model):
    return lambda params, rows: [
      generate(model, params, rows, max_length=4, how=how)
      for how in (Decoding(), Decoding(strategy="beam", num_beams=2))]

  wanted = jax.jit(says(model))(params, ROWS)
  assert all(len(np.unique(tokens, axis=0)) > 1 for tokens in wanted)
  partitioner = Partitioner.make("fsdp=2,tensor=2", jax.devices()[:4])
  placed = jax.device_put(params, partitioner.params(params, logical_axes(model)))
  for found in (jax.jit(says(apart))(unstacked(params), ROWS),
                partitioner.jit(says(model))(placed, partitioner.put_batch(ROWS))):
    for tokens, same in zip(found, wanted, strict=True):
      np.testing.assert_array_equal(tokens, same)
