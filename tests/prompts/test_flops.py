"""A step has the matrix products of its method's docstring, and no other: counted in the HLO.

Prefix and deep prompts have theirs in files of their own.
"""

import pytest
from descriptors import CASES, LENGTH, NUM_PROMPTS, batch, loss_and_gradient

from benchmarks.shapes import Shapes, theory_flop
from prompt_tuning.plan.hlo import matmul_flop
from prompt_tuning.prompted import PromptedT5, abstract_params

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
}
ELSEWHERE = {"prefix": "test_prefix.py", "prefix_bank": "test_prefix.py", "deep": "test_deep.py",
             "deep_bank": "test_deep.py"}


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
