"""Layouts by name and size, where every leaf lies, and that all layouts compute the same."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CONFIG
from eight_devices import LAYOUTS, METHODS

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.layouts import Layout, layout_of, workable
from prompt_tuning.optimizers import Adafactor, AdamW
from prompt_tuning.partitioning import Partitioner, constrain, num_slices
from prompt_tuning.prompted import PromptedT5, abstract_params, logical_axes
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.quantization import Quantized
from prompt_tuning.t5 import T5
from prompt_tuning.train_state import new_state

XXL = T5Config(vocab_size=32128, emb_dim=4096, num_heads=64, head_dim=64, mlp_dim=10240,
               num_encoder_layers=24, num_decoder_layers=24)


@pytest.mark.parametrize("text,devices,slices,wanted", [
  ("replicated", 8, 1, (8, 1, 1)), ("fsdp", 8, 1, (1, 8, 1)), ("tensor", 8, 1, (1, 1, 8)),
  ("tensor_sequence", 4, 1, (1, 1, 4)), ("fsdp=4,tensor=2", 8, 1, (1, 4, 2)),
  ("fsdp, tensor=2", 16, 1, (1, 8, 2)), ("data=2,fsdp=2,tensor_sequence=2", 8, 1, (2, 2, 2)),
  # Slices share only the axis that a prompt's gradient crosses.
  ("fsdp", 16, 2, (2, 8, 1)), ("replicated", 16, 2, (16, 1, 1)),
  ("data=4,tensor", 16, 2, (4, 1, 4)),
])
def test_layouts_by_name_and_size(text, devices, slices, wanted):
  layout = layout_of(text).resolve(devices, slices)
  assert (layout.data, layout.fsdp, layout.model) == wanted
  assert layout.sequence == ("sequence" in text)
  # What is printed can be given.
  assert layout_of(str(layout)).resolve(devices, slices) == layout


@pytest.mark.parametrize("make,words", [
  (lambda: layout_of("tensr"), ("LAYOUT is unknown", "did you mean 'tensor'")),
  (lambda: layout_of("fsdp=x"), ("LAYOUT is unknown", "'fsdp=4,tensor=2'")),
  (lambda: layout_of(3), ("LAYOUT is unknown", "3")),
  (lambda: layout_of("fsdp,fsdp=2"), ("names an axis twice",)),
  (lambda: layout_of("fsdp,tensor"), ("leaves two sizes open",)),
  (lambda: Layout(fsdp=0), ("a size that is none",)),
  (lambda: layout_of("fsdp=3").resolve(8), ("does not fit the devices", "fsdp=3 on 8 devices",
                                            "one of these works: ")),
  (lambda: layout_of("data=1,fsdp=16").resolve(16, 2), ("over a data-centre network",
                                                        "a multiple of 2")),
  # 64 heads are not three times anything.
  (lambda: layout_of("tensor").resolve(6).check(XXL), (
    "64 heads over 6 devices", "one of these works: ", "'data=3,tensor=2'")),
  (lambda: layout_of("fsdp").resolve(8).check(XXL, rows=12), (
    "BATCH_SIZE cannot be split evenly", "a multiple of 8", "--gin.BATCH_SIZE=16",
    "'fsdp=4,tensor=2'")),
  (lambda: layout_of("fsdp").resolve(4).check(XXL, rows=16, pieces=3), (
    "BATCH_SIZE = 16, 4 devices", "3 microbatches", "--gin.BATCH_SIZE=24")),
])
def test_what_is_wrong_with_a_layout(make, words):
  with pytest.raises(UserError) as error:
    make()
  for word in words:
    assert word in str(error.value)


def test_workable_layouts_are_those_that_divide():
  for layout in workable(24, XXL, rows=24):
    assert layout.data * layout.fsdp * layout.model == 24
    assert 64 % layout.model == 0 and 4096 % layout.fsdp == 0
  # Three devices may copy, never split: no size of the model has the factor 3.
  assert {layout.data % 3 for layout in workable(24, XXL)} == {0}


@pytest.fixture(scope="module")
def eight_devices():
  """What eight_devices.py prints: a process may have only one number of devices."""
  folder = Path(__file__).parent
  done = subprocess.run(
    [sys.executable, str(folder / "eight_devices.py")], capture_output=True, text=True,
    cwd=folder.parent, env=os.environ | {
      "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=8"),
      "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])})
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_golden_table_of_every_leaf(eight_devices):
  """The file was read by eye; `make_shardings.py` writes it anew."""
  wanted = (Path(__file__).parent / "golden/shardings.txt").read_text()
  assert eight_devices.endswith(wanted)


def test_every_layout_and_method_computes_what_one_device_does(eight_devices):
  """Loss, gradient and trained prompt in float32; greedy tokens exactly."""
  found = [line.split() for line in eight_devices.splitlines() if line.startswith("= ")]
  differences = {(what, layout): float(value) for _, what, layout, value in found}
  assert {layout for what, layout in differences if what == "trained"} == set(LAYOUTS)
  methods = {what.partition(":")[2] for what, _ in differences if ":" in what}
  assert methods == {case.name for case in METHODS} and len(methods) >= 11
  for (what, layout), value in differences.items():
    assert value <= (0.0 if what == "tokens" else 1e-5), f"{what} {layout}: {value}"


def model_and_params():
  model = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, 3))
  return model, abstract_params(model), logical_axes(model)


@pytest.mark.parametrize("optimizer, count", [
  (AdamW(), 3), (Adafactor(momentum=0.9), 3), (Adafactor(factored=False), 2)])
def test_moments_lie_where_their_parameter_does(optimizer, count):
  """The parameter among them; Adafactor's moments are below a group's name."""
  _, params, axes = model_and_params()
  partitioner = Partitioner.make("fsdp=2,tensor=2")
  trainable, _ = trees.plan_split(params, ("encoder/layers/mlp/.*",)).split(params)
  state = jax.eval_shape(lambda tree: new_state(tree, optimizer.build(tree)), trainable)
  placed = partitioner.state(state, trainable, axes)
  shapes = dict(jax.tree_util.tree_leaves_with_path(state))
  kernel = trees.flatten(params)["backbone/encoder/layers/mlp/wi_0/kernel"]
  moments = [leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
             if "wi_0" in jax.tree_util.keystr(path) and shapes[path].shape == kernel.shape]
  assert len(moments) == count and {str(spec) for spec in moments} == {
    str(jax.sharding.PartitionSpec(None, ("fsdp",), ("model",)))}
  assert all(leaf.spec == jax.sharding.PartitionSpec() for path, leaf
             in jax.tree_util.tree_leaves_with_path(placed)
             if "prompt" in jax.tree_util.keystr(path))


def test_scales_of_a_quantised_leaf_lie_with_their_values():
  model, params, axes = model_and_params()
  leaf = Quantized(jax.ShapeDtypeStruct((2, 8, 12), jnp.int8),
                   jax.ShapeDtypeStruct((2, 1, 12), jnp.float32))
  tree = trees.unflatten({"backbone/encoder/layers/mlp/wi_0/kernel": leaf})
  placed = trees.flatten(Partitioner.make("fsdp=2,tensor=2").params(tree, axes))
  made, = placed.values()
  assert made.values.shard_shape((2, 8, 12)) == (2, 4, 6)
  assert made.scales.shard_shape((2, 1, 12)) == (2, 1, 6)


def test_scales_of_fewer_groups_than_devices_are_not_split():
  _, _, axes = model_and_params()
  leaf = Quantized(jax.ShapeDtypeStruct((2, 8, 12), jnp.int8),
                   jax.ShapeDtypeStruct((2, 2, 12), jnp.float32))
  tree = trees.unflatten({"backbone/encoder/layers/mlp/wi_0/kernel": leaf})
  made, = trees.flatten(Partitioner.make("fsdp=4").params(tree, axes)).values()
  assert made.values.shard_shape((2, 8, 12)) == (2, 2, 12)
  assert made.scales.shard_shape((2, 2, 12)) == (2, 2, 12)


def test_constraints_hold_within_a_scope_alone():
  partitioner = Partitioner.make("data=2,tensor_sequence=2")
  x = np.zeros((4, 6, 3), np.float32)

  def function(x):
    return constrain(x, "batch", "length", None)

  plain = jax.jit(function)(x)
  split = partitioner.jit(function)(x)
  assert len(plain.sharding.device_set) == 1
  assert split.sharding.shard_shape(x.shape) == (2, 3, 3)
  # One decoded token stays whole.
  assert partitioner.jit(function)(x[:, :1]).sharding.shard_shape((4, 1, 3)) == (2, 1, 3)


def test_rows_are_padded_to_what_can_be_split():
  partitioner = Partitioner.make("data=2,fsdp=2")
  assert [partitioner.padded(rows) for rows in (1, 4, 5)] == [4, 4, 8]


def test_slices_are_counted_by_what_joins_their_devices():
  assert num_slices([SimpleNamespace(slice_index=i // 2) for i in range(6)]) == 3
  assert num_slices(jax.devices()) == 1
