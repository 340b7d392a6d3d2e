"""Machines by name, and programs over shapes: every size with every method, nothing allocated."""

import importlib.util
import json
import math

import jax
import pytest

from prompt_tuning import config, gin_files, trees
from prompt_tuning.errors import UserError
from prompt_tuning.main import main
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.plan import program, search
from prompt_tuning.plan.program import PlanConfig
from prompt_tuning.plan.row import Row
from prompt_tuning.plan.topologies import KINDS, find
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
    partitioner.layout.check(plan.model.backbone, plan.batch_size)
    state, frozen, batch = program.train_shapes(plan, partitioner)
    backbone = frozen["backbone"]
    here = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(backbone))
    # All but vectors and position biases lies on one of four devices.
    assert trees.num_bytes(backbone) / 4 <= here <= 1.01 * trees.num_bytes(backbone) / 4, method
    assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in batch.values()} == {4}
    prompt = jax.tree.leaves(state.trainable.get("prompt", {}))
    assert bool(prompt) == (method != "prompts/none.gin")
    constants = jax.tree.leaves(frozen.get("prompt", {}))
    assert bool(constants) == (method == "prompts/attempt.gin")
    assert all(leaf.sharding.is_fully_replicated for leaf in prompt + constants)
    if method == "prompts/soft.gin":
      assert prompt[0].shape[0] == 100


def test_a_step_is_planned_with_what_its_gin_files_say():
  plan = planned("models/t5_1_1_small.gin", "prompts/soft.gin", bindings=[
    "FROZEN_DTYPE = 'int8'", "REMAT = 'encoder=full,decoder=none'", "NUM_MICROBATCHES = 2",
    "TASK_FEATURE_LENGTHS = {'inputs': 20, 'targets': 6}", "LAYOUT = 'fsdp,tensor=2'"])
  made = program.build(plan, "train", jax.devices())
  assert plan.loss.num_microbatches == 2
  backbone = trees.count(abstract_params(plan.model.module())["backbone"])
  assert 1.0 <= made.frozen_bytes / backbone <= 1.01
  # A prompt of 100 x 512 and Adafactor's moment of it, which is not factored; a few counts.
  assert 8 * 100 * 512 <= made.trained_bytes <= 8 * 100 * 512 + 64


def test_theory_of_a_prompt_step_by_hand():
  """T5 1.1, prompt only: every product of the forward pass, and each again for the gradient of its
  input, but for what no gradient reaches (the decoder's own embeddings reach nothing trained, yet
  in a scan all layers are alike; the encoder's first layer is reached, by the prompt)."""
  plan = planned("models/t5_1_1_small.gin", "prompts/soft.gin",
                 bindings=["TASK_FEATURE_LENGTHS = {'inputs': 412, 'targets': 32}"])
  c = plan.model.backbone
  rows, s, u = 8, 512, 32
  d, j, f, v = c.emb_dim, c.num_heads * c.head_dim, c.mlp_dim, c.vocab_size
  encoder = rows * s * (4 * d * j + 3 * d * f) + 2 * rows * s * s * j
  decoder = rows * u * (6 * d * j + 3 * d * f) + 2 * rows * s * d * j + (
    2 * rows * u * u * j + 2 * rows * u * s * j)
  forward = 2 * (c.num_encoder_layers * encoder + c.num_decoder_layers * decoder
                 + rows * u * d * v)
  # Attention's two products have two gradients each.
  attention = 2 * (c.num_encoder_layers * 2 * rows * s * s * j + c.num_decoder_layers * (
    2 * rows * u * u * j + 2 * rows * u * s * j))
  made = program.build(plan, "train", jax.devices()[:1])
  assert made.theory == 2 * forward + attention


def row(**changes):
  values = dict(
    topology="v5e-8", program="train", layout="fsdp=8", remat="none", frozen_dtype="bfloat16",
    batch_size=8, microbatches=1, dropout=0.0, devices=8, fits=True, hbm_gib=15.75, peak_gib=8.0,
    argument_gib=1.0, temp_gib=7.0, lower_bound_gib=1.0, trained_gib=0.0, matmul_tflops=2.0,
    theory_tflops=2.0, collective_gb=1.0, collective_gb_by_kind={}, gigacycles=1.0,
    compile_seconds=1.0, program_hash="0", versions={})
  return Row(**values | changes)


def test_the_best_row_is_the_cheapest_that_fits_with_a_margin():
  topology = find("v5e-8")
  rows = [row(gigacycles=1.0, peak_gib=15.0), row(gigacycles=2.0), row(gigacycles=2.0, peak_gib=7),
          row(fits=False, gigacycles=0.1), row(gigacycles=1.5, collective_gb=1000.0)]
  assert search.best(rows, topology, limit_gib=14.0) == rows[2]
  assert search.best(rows, topology, limit_gib=15.5) == rows[0]
  assert search.best(rows[3:4], topology, limit_gib=15.5) is None
  # A gigabyte over links of 133 bytes a cycle is 7.5 megacycles.
  links = KINDS["v5e"].link_bytes_per_cycle
  assert search.cost(row(), topology) == pytest.approx(1.0 + 1.0 / links)


TINY = ["plan", "--json", "--gin_file=models/tiny.gin", "--gin_file=prompts/soft.gin",
        "--gin.BATCH_SIZE=8", "--gin.TASK_FEATURE_LENGTHS={'inputs': 28, 'targets': 8}"]


def tiny_plan(capsys, *flags):
  """What the command prints, as a user runs it."""
  assert main([*TINY, *flags]) == 0
  return json.loads(capsys.readouterr().out)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path))
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  return tmp_path / "plans"


@needs_libtpu
def test_a_tiny_step_is_compiled_for_four_chips(cache, capsys):
  """Twice: the second time nothing is compiled."""
  flags = ["--topology=v5e-4", "--gin.LAYOUT='fsdp,tensor=2'", "--gin.FROZEN_DTYPE='bfloat16'",
           "--gin.REMAT='save_projections'"]
  first, second = tiny_plan(capsys, *flags), tiny_plan(capsys, *flags)
  assert first == second and len(list(cache.iterdir())) == 1
  assert first["fits"] and first["devices"] == 4 and first["layout"] == "fsdp=2,tensor=2"
  assert first["peak_gib"] < first["hbm_gib"] == 15.75
  # Frozen weights once over the devices, trained state on each.
  assert first["argument_gib"] >= first["lower_bound_gib"]
  # Nothing but attention is computed twice.
  assert 1.0 <= first["matmul_tflops"] / first["theory_tflops"] <= 1.1
  assert first["collective_gb"] == pytest.approx(sum(first["collective_gb_by_kind"].values()))


@needs_libtpu
def test_decoding_and_v6e_are_compiled(cache, capsys):
  decoding = tiny_plan(capsys, "--topology=v5e-4", "--program=decode", "--gin.LAYOUT='tensor'",
                       "--gin.FROZEN_DTYPE='int8'")
  assert 0.99 <= decoding["matmul_tflops"] / decoding["theory_tflops"] <= 1.05
  assert decoding["frozen_dtype"] == "int8" and decoding["gigacycles"] > 0
  # Weights of a byte each, a fourth of them a chip.
  assert decoding["lower_bound_gib"] == pytest.approx(2.97e6 / 4 / 2**30, rel=0.05)
  step = tiny_plan(capsys, "--topology=v6e-4", "--gin.LAYOUT='fsdp'")
  assert 1.0 <= step["matmul_tflops"] / step["theory_tflops"] <= 1.1 and step["gigacycles"] > 0


@needs_libtpu
def test_auto_recommends_the_cheapest_layout(cache, capsys):
  # With room for several compilers they are processes of their own.
  found = tiny_plan(capsys, "--topology=v5e-2", "--auto", "--memory_gib=8")
  rows = found["rows"]
  assert {row["layout"] for row in rows} == {
    "data=2", "fsdp=2", "tensor=2", "tensor_sequence=2"} and found["skipped"] == []
  topology = find("v5e-2")
  # All fit without recomputation, so nothing else is tried.
  assert all(row["fits"] and row["remat"] == "none" for row in rows)
  least = min(rows, key=lambda row: search.cost(Row(**row), topology))
  assert found["best"] == least
  # Nothing fits a chip of which nearly all must stay free: the weights alone are too much.
  assert main([*TINY, "--topology=v5e-2", "--auto", "--margin=0.9999"]) == 1
  none = json.loads(capsys.readouterr().out)
  assert none["best"] is None and none["rows"] == [] and len(none["skipped"]) == 4
  assert "weights a device" in none["skipped"][0][1]


def test_decoding_is_planned_with_its_caches():
  """Theory by hand: the encoder and cross-attention's keys and values once, then U cached steps."""
  plan = planned("models/t5_1_1_small.gin", "prompts/soft.gin",
                 bindings=["TASK_FEATURE_LENGTHS = {'inputs': 28, 'targets': 8}"])
  c = plan.model.backbone
  rows, s, u = 8, 128, 8
  d, j, f, v = c.emb_dim, c.num_heads * c.head_dim, c.mlp_dim, c.vocab_size
  encoder = rows * s * (4 * d * j + 3 * d * f) + 2 * rows * s * s * j
  once = c.num_encoder_layers * encoder + c.num_decoder_layers * 2 * rows * s * d * j
  step = c.num_decoder_layers * rows * (6 * d * j + 3 * d * f + 2 * u * j + 2 * s * j) + (
    rows * d * v)
  made = program.build(plan, "decode", jax.devices()[:1])
  assert made.theory == 2 * (once + u * step) and made.unknown_trips == u
