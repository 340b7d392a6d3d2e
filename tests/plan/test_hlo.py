"""Counting compiled programs: by hand, and against programs that this machine's XLA compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.plan import hlo, theory

# As the TPU compiler writes: batch dimensions as dilated windows, a loop without a known trip count
# that counts to 24 by 2, a collective at its start and end, and cycles of a fusion.
TEXT = """
%fused (p0: bf16[4,128,128], p1: bf16[128,256,1]) -> bf16[4,128,256] {
  %p0 = bf16[4,128,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[128,256,1]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[4,128,256]{2,1,0} convolution(%p0, %p1), window={size=1}, dim_labels=0bf_io0->0bf
}

%body (arg: (s32[], bf16[4,128,128], bf16[128,256])) -> (s32[], bf16[4,128,128], bf16[128,256]) {
  %arg = (s32[]{:T(128)}, bf16[4,128,128]{2,1,0}, bf16[128,256]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %copy.1 = s32[]{:T(128)} copy(%i)
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%copy.1, %two)
  %x = bf16[4,128,128]{2,1,0} get-tuple-element(%arg), index=1
  %w = bf16[128,256]{1,0} get-tuple-element(%arg), index=2
  %ag = bf16[128,256]{1,0} all-gather(%w), channel_id=7, dimensions={0}
  %ag2 = bf16[128,256]{1,0} all-gather(%w), channel_id=7, dimensions={0}
  %f = bf16[4,128,256]{2,1,0} fusion(%x, %ag), calls=%fused, x={"estimated_cycles":"100"}
  ROOT %t = (s32[]{:T(128)}, bf16[4,128,128]{2,1,0}, bf16[128,256]{1,0}) tuple(%next, %x, %w)
}

%condition (arg: (s32[], bf16[4,128,128], bf16[128,256])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  %arg = (s32[]{:T(128)}, bf16[4,128,128]{2,1,0}, bf16[128,256]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (x: bf16[4,128,128], w: bf16[128,256]) -> bf16[4,128,128] {
  %x = bf16[4,128,128]{2,1,0} parameter(0)
  %w = bf16[128,256]{1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[4,128,128]{2,1,0}, bf16[128,256]{1,0}) tuple(%zero, %x, %w)
  %loop = (s32[], bf16[4,128,128], bf16[128,256]) while(%start), condition=%condition, body=%body
  %ar = bf16[4,128,128]{2,1,0} all-reduce(%x), channel_id=9, to_apply=%condition
  ROOT %out = bf16[4,128,128]{2,1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_text_counted_by_hand():
  counts = hlo.count(TEXT)
  assert counts.flop == 12 * 2 * 4 * 128 * 128 * 256
  assert counts.cycles == 12 * 100
  assert counts.collective_bytes() == {"all-gather": 12 * 128 * 256 * 2.0,
                                       "all-reduce": 4 * 128 * 128 * 2.0}


def test_batched_products_that_stand_as_dilated_windows():
  """[4, 2] batches of [128, 64] x [128, 64]: no tap between two batches counts."""
  line = ('ENTRY %m (a: f32[1], b: f32[1]) -> f32[1] {\n'
          '  %a = bf16[4,2,128,64]{3,2,1,0} parameter(0)\n'
          '  %b = bf16[4,2,128,64]{3,2,1,0} parameter(1)\n'
          '  ROOT %c = f32[4,2,128,128]{3,2,1,0} convolution(%a, %b), window={size=4x2 stride=3x1 '
          'lhs_dilate=4x2}, dim_labels=01bf_01oi->01bf\n}\n')
  assert hlo.matmul_flop(line) == 2 * 4 * 2 * 128 * 128 * 64
  reversed_ = line.replace("window={size=4x2 stride=3x1 lhs_dilate=4x2}",
                           "window={size=4x2 stride=4x2 pad=3_3x1_1 lhs_dilate=3x1 "
                           "rhs_reversal=1x1}")
  assert hlo.matmul_flop(reversed_) == 2 * 4 * 2 * 128 * 128 * 64


def blas(result, operands, target, contracted):
  """A line as the GPU compiler writes it."""
  return (f'({result}, s8[33554432]{{0}}) custom-call({operands}), custom_call_target="{target}", '
          'backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
          f'{{"lhs_contracting_dimensions":["{contracted}"],"lhs_batch_dimensions":[]}}}}}}\n')


def test_products_that_a_gpu_calls_a_library_for():
  text = ("ENTRY %m (x: bf16[512,128]) -> bf16[512,256] {\n"
          "  %x = bf16[512,128]{1,0} parameter(0)\n  %w = bf16[128,256]{1,0} parameter(1)\n"
          "  %v = f32[8,32,16]{2,1,0} parameter(2)\n  %each = "
          + blas("f32[8,32,32]{2,1,0}", "%v, %v", "__cublas$lt$matmul", 2) + "  ROOT %all = "
          + blas("bf16[512,256]{1,0}", "%x, %w", "__cublas$gemm", 1) + "}\n")
  assert hlo.matmul_flop(text) == 2 * 8 * 32 * 32 * 16 + 2 * 512 * 128 * 256
  with pytest.raises(ValueError, match="cannot be counted: each"):
    hlo.matmul_flop(text.replace("__cublas$lt$matmul", "my_matmul"))


def test_a_loop_that_ends_by_its_data_needs_a_count():
  text = TEXT.replace("compare(%i, %bound), direction=LT", "and(%i, %bound)")
  with pytest.raises(hlo.UnknownTrips, match="unknown_trips"):
    hlo.count(text)
  assert hlo.count(text, unknown_trips=3).flop == 3 * 2 * 4 * 128 * 128 * 256


def test_theory_and_compiled_program_agree_where_nothing_is_recomputed():
  """A scan of five layers with a gradient in its input: 3 products a layer of `x @ w`, by hand."""
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(5, 16, 16)), jnp.float32)

  def function(x, weights):
    return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0])

  gradient = jax.grad(function, argnums=(0, 1))
  x = jnp.ones((8, 16))
  wanted = 5 * 3 * 2 * 8 * 16 * 16
  assert theory.matmul_flop(gradient, x, weights) == wanted
  assert hlo.matmul_flop(jax.jit(gradient).lower(x, weights).compile().as_text()) == wanted
  # With the weights frozen a third is not there at all.
  assert theory.matmul_flop(jax.grad(function), x, weights) == wanted * 2 / 3


def test_theory_counts_each_trip_of_a_while_as_it_is_told():
  def function(x, w):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x @ w, x)

  shapes = jnp.ones((2, 3)), jnp.ones((3, 3))
  assert theory.matmul_flop(function, *shapes, unknown_trips=7) == 7 * 2 * 2 * 3 * 3
