"""A step has the matrix products of its method's docstring, and no other: counted in the HLO.

Prefix and deep prompts of which there is one have theirs in files of their own.
"""

import dataclasses

import pytest
from descriptors import CASES, CONFIG, LENGTH, NUM_PROMPTS, batch, loss_and_gradient

from benchmarks.shapes import Shapes, theory_flop
from prompt_tuning.plan.hlo import matmul_flop
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.prefix import PrefixPrompt
from prompt_tuning.t5 import T5

# The sizes of descriptors.py: B 4, S 7 real tokens, U 4, D 8, J = H K = 6, F 12, V 20, P 3.
B, S, U, D, J, F, V, P = 4, 7, 4, 8, 6, 12, 20, LENGTH
# As many layers in both stacks as the formula of shapes.py has.
LAYERS = 2


def backbone(virtual: int) -> float:
  """The frozen model's forward pass and the activations' backward pass."""
  return theory_flop(Shapes(rows=B, inputs=S, prompt=virtual, targets=U, width=D, heads=2,
                            head_width=3, mlp=F, layers=LAYERS, vocabulary=V), "prompt_step")


def lora(virtual: int, rank: int, wo: bool, keys: bool) -> float:
  """6 R (in + out) a token, in every layer: a scan runs those that were not chosen with zeros.

  Queries of both stacks' attentions and values too; cross-attention's values are of the encoder's
  S + virtual positions. wo: the MLP's output too; keys: as values.
  """
  attended, read = B * (S + virtual), B * U
  heads = (attended + 2 * read) + (1 + keys) * (2 * attended + read)
  return 6 * rank * LAYERS * (heads * (D + J) + wo * (attended + read) * (F + D))


def adapters(hidden: int) -> float:
  """After attention's output (both of the decoder's) and the MLP's: 6 R (in + out) a token."""
  return 6 * hidden * 2 * D * LAYERS * (2 * B * S + 3 * B * U)


def prefixes() -> float:
  """12 B Q P J L in each kind of attention: of the encoder, the decoder, and across."""
  return 12 * B * (S + 2 * U) * P * J * LAYERS


def placing() -> float:
  """A table of rows, wherever they stand: once forward and once for its gradient."""
  return 4 * B * (S + P) * P * D


SOFT, PLAIN = backbone(P), backbone(0)
LSTM_UNITS = 7
LSTM = (2 * LSTM_UNITS * (2 * LSTM_UNITS + D)
        + sum(8 * LSTM_UNITS * (size + LSTM_UNITS) for size in (D, 2 * LSTM_UNITS)))
THEORY = {
  "soft": SOFT,
  "soft_bank": SOFT,
  "low_rank": SOFT + 6 * P * 2 * D,
  "residual": SOFT + 12 * P * D * 5,
  "residual_separate": SOFT + 12 * P * D * 5,
  "multitask": SOFT + 6 * NUM_PROMPTS * P * 1 * D,
  "ptuning": SOFT + 6 * P * LSTM,
  "ptuning_mlp": SOFT + 6 * P * (2 * D * 7 + 7 * 7),
  "attempt": SOFT + B * (10 * D * 5 + 6 * 3 * P * D),
  # The output layer's products are the verbaliser's: 6 B U C D in place of 4 B U D V.
  "warp": SOFT - 4 * B * U * D * V + 6 * B * U * 3 * D,
  "lora": PLAIN + lora(0, 2, wo=True, keys=True),
  "combined": SOFT + lora(P, 2, wo=False, keys=False),
  "ia3": PLAIN,
  "adapter": PLAIN + adapters(5),
  "prefix_bank": PLAIN + prefixes(),
  "deep_bank": SOFT + LAYERS * placing(),
}
ELSEWHERE = {"prefix": "test_prefix.py", "deep": "test_deep.py"}


def counted(model: PromptedT5) -> float:
  shapes = abstract_params(model)
  step = loss_and_gradient(model).lower(shapes["prompt"], shapes["backbone"], batch(model))
  return matmul_flop(step.compile().as_text())


def test_every_method_is_counted():
  assert {case.name for case in CASES if not case.is_dummy} == THEORY.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("case", [case for case in CASES if case.name in THEORY],
                         ids=lambda case: case.name)
def test_the_step_has_the_products_of_the_docstring(case):
  theory = THEORY[case.name]
  found = counted(case.model(num_decoder_layers=LAYERS))
  assert 0.98 * theory <= found <= 1.01 * theory, found / theory


@pytest.mark.parametrize("name", ["soft", "soft_bank"])
def test_rows_that_stand_anywhere_are_placed_by_products(name):
  case = next(case for case in CASES if case.name == name)
  found = counted(case.model(num_decoder_layers=LAYERS, prompt_in_front=False))
  assert found == pytest.approx(SOFT + placing(), rel=0.01)


@pytest.mark.parametrize("num_prompts", [1, NUM_PROMPTS])
def test_each_prompt_of_a_bank_of_prefixes_has_an_mlp(num_prompts):
  """Also those that no row of the batch uses: 6 P M (D + 2 J L) N a kind of attention."""
  config, hidden = dataclasses.replace(CONFIG, num_decoder_layers=LAYERS), 50
  found = counted(PromptedT5(T5(config), PrefixPrompt(config, P, hidden=hidden,
                                                      num_prompts=num_prompts)))
  mlps = 3 * 6 * P * hidden * (D + 2 * J * LAYERS) * num_prompts
  # Most of the step, so that it is the MLPs that are counted.
  assert mlps > 0.25 * PLAIN
  assert found == pytest.approx(PLAIN + prefixes() + mlps, rel=0.01)
