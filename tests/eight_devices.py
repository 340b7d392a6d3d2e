"""Run by test_partitioning.py with eight simulated devices: every layout against one device.

Prints a line a comparison: what, layout, largest difference over the largest value; then the table
of shardings.
"""

import functools
import sys

import jax
import numpy as np
from descriptors import CASES, CONFIG, batch, loss, random_params
from golden.make_shardings import table

from prompt_tuning import generation, trees
from prompt_tuning.optimizers import Adafactor
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import abstract_params, logical_axes
from prompt_tuning.train_state import LossConfig, make_train_step, new_state

LAYOUTS = ("fsdp", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor_sequence=2", "data=4,tensor=2",
           "replicated")
jax.config.update("jax_numpy_rank_promotion", "raise")
# One of each file of prompts/; what else CASES has of it (banks, say) lies in the same places.
METHODS = [case for case in CASES[1:] if not case.is_dummy and "_" not in
           case.name.removeprefix("low_")]


def rows(model):
  """Sixteen rows: two a device where all split the batch."""
  return {name: np.tile(x, (4,) + (1,) * (x.ndim - 1)) for name, x in batch(model).items()}


def report(what, layout, found, wanted):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    print("=", what, layout, np.abs(a - b).max() / max(np.abs(b).max(), 1e-30), flush=True)


def placed(partitioner, model, params):
  return jax.device_put(params, partitioner.params(params, logical_axes(model)))


def of_method(case, layout):
  """Loss and gradient, of one layout."""
  model = case.model()
  params, data = random_params(model), rows(model)
  function = jax.value_and_grad(functools.partial(loss, model))
  wanted = jax.jit(function)(params["prompt"], params["backbone"], data)
  partitioner = Partitioner.make(layout)
  own = placed(partitioner, model, params)
  found = partitioner.jit(function)(
    own["prompt"], own["backbone"], partitioner.put_batch(data))
  report(f"gradient:{case.name}", layout, found, wanted)


def trained(layout, devices, remat, pieces, decodes=True):
  """Two steps, then decoding: metrics, prompt, tokens (None: not decoded)."""
  model = CASES[0].model(remat=remat)
  params, axes, data = random_params(model), logical_axes(model), rows(model)
  split = trees.plan_split(abstract_params(model), ())
  partitioner = Partitioner.make(layout, jax.devices()[:devices])
  trainable, frozen = split.split(params)
  optimizer = Adafactor(learning_rate=0.3)
  transformation = optimizer.build(trainable)
  state = new_state(jax.tree.map(jax.numpy.asarray, trainable), transformation)
  state = jax.device_put(state, partitioner.state(state, trainable, axes))
  frozen = jax.device_put(frozen, partitioner.params(frozen, axes))
  made = partitioner.put_batch({
    "encoder_input_tokens": data["tokens"], "decoder_input_tokens": data["decoder_tokens"],
    "decoder_target_tokens": data["decoder_tokens"],
    "decoder_loss_weights": np.ones(data["decoder_tokens"].shape, np.float32)})
  step = partitioner.jit(
    make_train_step(model, split, optimizer, transformation,
                    LossConfig(num_microbatches=pieces), 0))
  for _ in range(2):
    state, metrics = step(state, frozen, made)
  if not decodes:
    return metrics, state.trainable, None
  generate = partitioner.jit(functools.partial(generation.generate, model, max_length=5))
  tokens = generate(split.merge(state.trainable, frozen), made["encoder_input_tokens"])
  return metrics, state.trainable, tokens


if __name__ == "__main__":
  assert jax.device_count() == 8 and CONFIG.num_heads == 2, sys.argv
  reference = trained("replicated", 1, "none", 1)
  for i, each in enumerate(LAYOUTS):
    *found, tokens = trained(each, 8, ("none", "full", "save_projections")[i % 3], 1 + i % 2,
                             decodes=i % 2 == 0)
    report("trained", each, found, reference[:2])
    if tokens is not None:
      report("tokens", each, tokens, reference[2])
  for i, each in enumerate(METHODS):
    of_method(each, LAYOUTS[i % 4])
  print(table(jax.devices()), end="")
