"""The sizes that the benchmark runs, and how many floating point operations they need.

Letters are those of `prompt_tuning.interfaces`; J = H * K. A product of [m, k] and [k, n] takes
2 m k n operations. One forward pass of B rows, S encoder positions and U decoder tokens takes

  encoder   L [ 2 B S (4 D J + 3 D F)             projections, gated MLP
              + 4 B S S J ]                       attention's two products
  decoder   L [ 2 B U (6 D J + 3 D F)
              + 2 B S 2 D J                       keys and values of the encoder's output
              + 4 B U (U + S) J ]
  output    2 B U D V

A backward pass repeats each product once a factor that needs a gradient: activations do, and in
attention both factors are activations. So model tuning takes 3 forward passes; prompt tuning, with
its frozen kernels, 2 and once more attention's products. (Model tuning's lacks a product with ones,
2 B H L (S^2 + U^2), that sums the gradient of the relative positions' bias over rows.)
"""

import dataclasses

JOBS = ("prompt_step", "model_step", "decode")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
  """Defaults: T5 1.1 small; 8 rows of 256 tokens and 100 prompt vectors in, 16 out.

  Attributes:
    rows, inputs, prompt, targets: B, T, P of the prompt step and of decoding, U.
    decode_tokens: tokens that are generated a row.
    width, heads, head_width, mlp, layers, vocabulary: D, H, K, F, L of each stack, V.
    scan_layers: our layers run in one loop instead of one after the other (SCAN_LAYERS).
  """

  rows: int = 8
  inputs: int = 256
  prompt: int = 100
  targets: int = 16
  decode_tokens: int = 32
  width: int = 512
  heads: int = 6
  head_width: int = 64
  mlp: int = 1024
  layers: int = 8
  vocabulary: int = 32128
  scan_layers: bool = False


TINY = Shapes(rows=2, inputs=6, prompt=3, targets=4, decode_tokens=5, width=16, heads=2,
              head_width=8, mlp=24, layers=2, vocabulary=64)


def theory_flop(shapes: Shapes, job: str) -> float:
  """The operations of a job's matrix products, by the formula above."""
  if job == "prompt_step":
    positions = shapes.prompt + shapes.inputs
    products, attention = _forward(shapes, positions, shapes.targets)
    return 2 * (products + attention) + attention
  if job == "model_step":
    return 3 * sum(_forward(shapes, shapes.inputs, shapes.targets))
  positions = shapes.prompt + shapes.inputs
  prefill = sum(_forward(shapes, positions, 0))
  # A token attends to those before it and to itself.
  products, _ = _forward(shapes, 0, shapes.decode_tokens)
  seen = shapes.decode_tokens * (shapes.decode_tokens + 1) // 2
  attention = 4 * shapes.layers * shapes.rows * shapes.heads * shapes.head_width * (
    seen + shapes.decode_tokens * positions)
  return prefill + products + attention


def _forward(shapes: Shapes, positions: int, targets: int) -> tuple[float, float]:
  """(products with kernels, products of attention) of S = `positions` and U = `targets`."""
  rows, width, joined = shapes.rows, shapes.width, shapes.heads * shapes.head_width
  mlp = 3 * width * shapes.mlp
  encoder = 2 * rows * positions * (4 * width * joined + mlp)
  decoder = 2 * rows * (targets * (6 * width * joined + mlp) + positions * 2 * width * joined)
  output = 2 * rows * targets * width * shapes.vocabulary
  attention = 4 * rows * joined * (positions**2 + targets * (targets + positions))
  return shapes.layers * (encoder + decoder) + output, shapes.layers * attention
