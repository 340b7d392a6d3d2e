"""Machines by name, and programs over shapes: every size with every method, nothing allocated."""

import importlib.util

import jax
import pytest

from prompt_tuning import config, gin_files, trees
from prompt_tuning.errors import UserError
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.plan import program
from prompt_tuning.plan.program import PlanConfig
from prompt_tuning.plan.topologies import find
from prompt_tuning.prompted import abstract_params

SIZES = [name for name in gin_files.shipped_names() if name.startswith("models/")]
METHODS = [name for name in gin_files.shipped_names() if name.startswith("prompts/")]
GIVEN = {"prompts/warp.gin": ["CLASS_LABELS = ['yes', 'no']", "VOCABULARY = 'bytes'"],
         "prompts/attempt.gin": ["SOURCE_PROMPTS = ['one.npy', 'two.npy']"]}
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                  reason="libtpu, of the extra `tpu`, is not installed")


@pytest.mark.parametrize("name,compiler,devices", [
  ("v5e-8", "v5e:2x4", 8), ("v5litepod-16", "v5e:4x4", 16), ("v4-8", "v4:2x2x1", 4),
  ("v5p-16", "v5p:2x2x2", 8), ("v6e-4", "v6e:2x2", 4), ("v3-8", "v3:2x2", 8),
  ("tpu7x-8", "tpu7x:2x2x1", 8), ("v5e-16x2", "v5e:4x4", 32), ("a100-80g-4", "a100-80g:4", 4),
  ("h100-8", "h100:8", 8), ("H100-1", "h100:1", 1)])
def test_machines_by_the_names_they_are_sold_under(name, compiler, devices):
  topology = find(name)
  assert (topology.compiler_name, topology.num_devices) == (compiler, devices)
  assert topology.platform == ("cuda" if "100" in name else "tpu")


@pytest.mark.parametrize("name,words", [
  ("v5f-8", ("no such topology", "'v5e'")), ("v5e", ("no such topology", "v5e-8")),
  ("v5e-12", ("not made in this size", "8, 16", "v5e-8")),
  ("v4-7", ("not made in this size", "v4-8"))])
def test_a_machine_that_is_not_sold(name, words):
  with pytest.raises(UserError) as error:
    find(name)
  assert all(word in str(error.value) for word in words)


def planned(*names, bindings=()):
  config.load(["commands/plan.gin", *names], ["BATCH_SIZE = 8", *bindings])
  return config.build(PlanConfig)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_with_every_method_can_be_laid_out(size):
  """Shapes and shardings of all that a step takes: frozen weights, prompt, optimizer state."""
  partitioner = Partitioner.make("fsdp=2,tensor=2")
  for method in METHODS:
    plan = planned(size, method, bindings=GIVEN.get(method, []) + (
      ["TRAINABLE = ('encoder/.*',)"] if method == "prompts/none.gin" else []))
    if method in ("prompts/soft.gin", "prompts/none.gin"):
      partitioner.layout.check(plan.model.backbone, plan.batch_size)
      state, frozen, batch = program.train_shapes(plan, partitioner)
      everything = trees.count(abstract_params(plan.model.module()))
      assert trees.count(frozen) + trees.count(state.trainable) == everything
      assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(batch)} == {4}
    else:
      assert plan.model.prompt is not None
