"""Counts the matrix products of a compiled program, from the text of its optimised HLO.

XLA's own `cost_analysis()` counts the body of a loop once, whatever its trip count, so it is of no
use for scanned layers. Here a loop's body counts as often as it runs. What XLA has removed or
added since tracing (a dead gradient, a recomputation) is seen as it is.
"""

import functools
import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"^\w+\[([\d,]*)\]\S* ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


def matmul_flop(hlo: str, unknown_trips: int | None = None) -> float:
  """Operations of all `dot`s of a module.

  Args:
    hlo: `jax.stages.Compiled.as_text()`.
    unknown_trips: how often a loop runs whose count XLA does not know (decoding stops by its data).

  Raises:
    ValueError: there is such a loop with products in it and no `unknown_trips`; or a product that
      this file cannot count, in a custom call.
  """
  computations, entry = _computations(hlo)

  @functools.cache
  def count(name: str) -> float:
    lines = computations[name]
    shapes = {}
    total = 0.0
    for line in lines:
      found = _INSTRUCTION.match(line)
      if found is None:
        continue
      array = _ARRAY.match(found[2])
      if array is not None:
        shapes[found[1]] = _sizes(array[1])
        if array[2] == "dot":
          total += 2 * math.prod(shapes[found[1]]) * _contracted(array[3], line, shapes)
        if array[2] == "convolution":
          raise ValueError(f"a convolution cannot be counted: {line.strip()[:120]}")
      if re.search(r'custom_call_target="[^"]*(?:matmul|dot|gemm)', line, re.IGNORECASE):
        raise ValueError(f"a product in a custom call cannot be counted: {line.strip()[:120]}")
      inner = sum(count(called) for called in _called(line))
      if inner and re.search(r"\swhile\(", line):
        trips = _TRIPS.search(line)
        if trips is None and unknown_trips is None:
          raise ValueError("a loop with products has no known trip count: give unknown_trips")
        inner *= int(trips[1]) if trips else unknown_trips
      total += inner
    return total

  return count(entry)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """(lines by computation, name of the entry)."""
  found: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in hlo.splitlines():
    start = None if line.startswith(" ") else _COMPUTATION.match(line)
    if start:
      lines = found[start[1]] = []
      entry = start[1] if line.startswith("ENTRY") else entry
    else:
      lines.append(line)
  return found, entry


def _called(line: str) -> list[str]:
  names = _CALLED.findall(line)
  for branches in _BRANCHES.findall(line):
    names += [name.strip().lstrip("%") for name in branches.split(",")]
  return names


def _contracted(operands: str, line: str, shapes: dict[str, list[int]]) -> int:
  left = shapes[re.match(r"(?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+)", operands)[1]]
  return math.prod(left[int(axis)] for axis in _sizes(_CONTRACTED.search(line)[1]))


def _sizes(text: str) -> list[int]:
  return [int(size) for size in text.split(",") if size]
