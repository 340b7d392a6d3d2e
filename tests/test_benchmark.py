"""The benchmark's count of operations, and one run of it on tiny shapes without PyTorch."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench  # noqa: E402
from benchmarks.shapes import TINY, Shapes, theory_flop  # noqa: E402
from prompt_tuning.plan.hlo import matmul_flop  # noqa: E402


def compiled_text(function, *shapes):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function).lower(*arrays).compile().as_text()


def test_products_in_loops_count_as_often_as_they_run():
  def function(x, kernels):
    x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)
    return jnp.einsum("bij,bkj->bik", x.reshape(2, 8, 16), x.reshape(2, 8, 16))

  text = compiled_text(function, (16, 16), (5, 16, 16))
  assert matmul_flop(text) == 5 * 2 * 16**3 + 2 * 2 * 8 * 16 * 8


def test_a_loop_of_unknown_length_needs_a_number():
  def function(x):
    return jax.lax.while_loop(lambda x: x.sum() < 100.0, lambda x: x @ x, x)

  text = compiled_text(function, (16, 16))
  with pytest.raises(ValueError, match="no known trip count"):
    matmul_flop(text)
  assert matmul_flop(text, unknown_trips=3) == 3 * 2 * 16**3


def test_theory_of_t5_small_is_the_published_one():
  assert theory_flop(Shapes(), "prompt_step") == pytest.approx(309.7e9, rel=1e-4)


def test_theory_of_a_case_that_is_counted_by_hand():
  shapes = Shapes(rows=1, inputs=2, prompt=0, targets=1, width=2, heads=1, head_width=2, mlp=3,
                  layers=1, vocabulary=5)
  # q, k, v, o: 4 products of [2, 2] and [2, 2]; the MLP: 3 of [2, 2] and [2, 3].
  encoder = 4 * 16 + 3 * 24
  # Of one token: 6 of [1, 2] and [2, 2], 3 of [1, 2] and [2, 3]; keys and values of two positions.
  decoder = 6 * 8 + 3 * 12 + 2 * 16
  # Two products: the encoder's [2, 2, 2], the decoder's with itself [1, 2, 1] and across [1, 2, 2].
  attention = 2 * 16 + 2 * 4 + 2 * 8
  assert theory_flop(shapes, "model_step") == 3 * (encoder + decoder + 20 + attention)
  assert theory_flop(shapes, "prompt_step") == 2 * (encoder + decoder + 20) + 3 * attention


def test_the_compiled_steps_are_the_theory():
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.bench", "--shapes", "tiny", "--without-peft", "--rounds",
     "1", "--scan-layers", "--jobs", "prompt_step", "decode"], capture_output=True, text=True,
    cwd=ROOT, check=True)
  results = json.loads(done.stdout.splitlines()[-1])
  for job, found in results.items():
    assert {"ours_s", "peft_s", "ratio", "fraction_of_peak", "matmul_gflop", "theory_gflop",
            "compile_s", "ours_gb"} <= found.keys()
    assert found["theory_gflop"] == theory_flop(TINY, job) / 1e9
    assert found["peft_s"] is None and found["ours_s"] > 0
    assert f"\n{'fraction_of_peak':20}" in done.stdout
  # A decode loop also multiplies with the places of the cache that are still empty.
  ours, theory = results["decode"]["matmul_gflop"], results["decode"]["theory_gflop"]
  assert theory < ours < 1.05 * theory
  assert results["prompt_step"]["matmul_gflop"] == results["prompt_step"]["theory_gflop"]


def test_the_table_has_a_column_a_job():
  text = bench.table({"decode": {"a": 1.0, "b": None}, "other": {"a": 2.0}})
  assert [line.split() for line in text.splitlines()] == [["decode", "other"], ["a", "1", "2"],
                                                          ["b"]]


def test_the_default_shapes_are_those_of_the_shipped_size():
  from prompt_tuning import config
  from prompt_tuning.interfaces import T5Config
  config.load(["models/t5_1_1_small.gin"], [])
  size, shapes = config.build(T5Config), dataclasses.asdict(Shapes())
  assert shapes | {"width": size.emb_dim, "heads": size.num_heads, "head_width": size.head_dim,
                   "mlp": size.mlp_dim, "vocabulary": size.vocab_size,
                   "layers": size.num_encoder_layers} == shapes
