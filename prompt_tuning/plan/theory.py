"""Matrix products that a function needs, counted from its jaxpr.

Nothing has been compiled then: no recomputation, no partitioning. Of a train step this is the
theory that the compiled program is held against: forward pass, the activation gradients down to
what is trained, and the weight gradients of that alone. Two exceptions:

* A scan is one loop over a stack. Where TRAINABLE takes some of its layers, the gradients of all
  are computed, here and in the compiled program (SCAN_LAYERS=False: of those alone).
* The rules of `layers.py` make the gradient of a product's input also where all below it is frozen
  (the encoder's output, if decoder layers alone are trained). It counts here; compilers drop it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def matmul_flop(function: Callable, *args: Any, unknown_trips: int = 1) -> float:
  """Operations of all products of `function(*args)`, two a multiplication.

  Args:
    args: arrays or shapes.
    unknown_trips: how often a `while` runs.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr, unknown_trips)


def _count(jaxpr: Any, unknown_trips: int) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(
        left[axis] for axis in contracted)
    inner = sum(_count(each, unknown_trips) for each in _inner(equation.params))
    times = {"scan": equation.params.get("length", 1), "while": unknown_trips}.get(name, 1)
    total += times * inner
  return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  for name, value in params.items():
    # Of a function with a gradient rule of its own, the rule is no part of what runs.
    if name in ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun", "jvp_jaxpr_thunk"):
      continue
    for each in value if isinstance(value, tuple | list) else (value,):
      if hasattr(each, "eqns"):
        yield each
      elif hasattr(each, "jaxpr") and hasattr(each.jaxpr, "eqns"):
        yield each.jaxpr
