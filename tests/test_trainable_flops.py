"""A step's matrix products by what is trained, against formulas, counted in the compiled HLO.

One forward pass, and of the backward pass what lies above the lowest trained leaf.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from descriptors import CONFIG

from benchmarks.shapes import Shapes, theory_flop
from prompt_tuning.optimizers import AdamW
from prompt_tuning.plan.hlo import matmul_flop
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.t5 import T5
from prompt_tuning.train_state import LossConfig, make_train_step, new_state
from prompt_tuning.trees import plan_split

# The sizes of descriptors.py and a batch's: D, J = H K, F, V; layers of the stacks; B, S, U.
D, J, F, V = 8, 6, 12, 20
ENCODER_LAYERS, DECODER_LAYERS = 2, 3
B, S, U = 4, 7, 5
# Of one layer: products with kernels, keys and values of the encoder's output, attention's two.
ENCODER, ENCODER_ATTENTION = 2 * B * S * (4 * D * J + 3 * D * F), 4 * B * S * S * J
DECODER, ENCODED = 2 * B * U * (6 * D * J + 3 * D * F), 2 * B * S * 2 * D * J
DECODER_ATTENTION = 4 * B * U * (U + S) * J
OUTPUT = 2 * B * U * D * V
FORWARD = (ENCODER_LAYERS * (ENCODER + ENCODER_ATTENTION)
           + DECODER_LAYERS * (DECODER + ENCODED + DECODER_ATTENTION) + OUTPUT)


def step_flop(trainable: tuple[str, ...], **changes) -> float:
  model = PromptedT5(T5(dataclasses.replace(CONFIG, **changes)))
  params = abstract_params(model)
  split, optimizer = plan_split(params, trainable), AdamW()
  trained, frozen = jax.eval_shape(split.split, params)
  transformation = optimizer.build(trained)
  ids, length = jax.ShapeDtypeStruct((B, U), jnp.int32), jax.ShapeDtypeStruct((B, S), jnp.int32)
  data = {"encoder_input_tokens": length, "decoder_input_tokens": ids,
          "decoder_target_tokens": ids,
          "decoder_loss_weights": jax.ShapeDtypeStruct((B, U), jnp.float32)}
  step = make_train_step(model, split, optimizer, transformation, LossConfig(), seed=0)
  state = jax.eval_shape(lambda tree: new_state(tree, transformation), trained)
  return matmul_flop(jax.jit(step).lower(state, frozen, data).compile().as_text())


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_layers_of_the_decoder_have_nothing_below_them(layers):
  last = "|".join(str(DECODER_LAYERS - 1 - i) for i in range(layers))
  # Each product once more for its input and once for its kernel; the encoder's output has neither.
  backward = 2 * DECODER + ENCODED + 2 * DECODER_ATTENTION
  assert step_flop((f"decoder/layers_({last})/.*",), scan_layers=False) == (
    FORWARD + OUTPUT + layers * backward)


def test_the_last_layer_of_the_encoder_has_all_of_the_decoder_above_it():
  above = OUTPUT + DECODER_LAYERS * (DECODER + ENCODED + 2 * DECODER_ATTENTION)
  # The decoder's first layer reads frozen embeddings: its self-attention has no backward pass, and
  # the queries of its cross-attention have no gradient.
  above -= 2 * B * U * 4 * D * J + 8 * B * U * U * J + 2 * B * U * D * J + 2 * B * U * S * J
  assert step_flop(("encoder/layers_1/.*",), scan_layers=False) == (
    FORWARD + above + 2 * ENCODER + 2 * ENCODER_ATTENTION)


def test_a_slice_of_a_scanned_stack_costs_the_whole_stack():
  """What `train` says where it starts; docs/methods.md."""
  backward = DECODER_LAYERS * (2 * DECODER + ENCODED + 2 * DECODER_ATTENTION)
  assert step_flop(("decoder/layers/.*[-1:]",)) == FORWARD + OUTPUT + backward


def test_model_tuning_is_three_forward_passes():
  # Besides, the gradient of each stack's bias is summed over rows by a product with ones.
  biases = 2 * B * 2 * (ENCODER_LAYERS * S * S + DECODER_LAYERS * U * U)
  found = step_flop((".*",), scan_layers=False)
  assert found == 3 * FORWARD + biases


def test_the_benchmarks_model_step_is_its_theory():
  shapes = Shapes(rows=B, inputs=S, prompt=0, targets=U, width=D, heads=2, head_width=3, mlp=F,
                  layers=2, vocabulary=V)
  found = step_flop((".*",), num_decoder_layers=shapes.layers)
  assert found == pytest.approx(theory_flop(shapes, "model_step"), rel=0.01)
