"""Counts matrix products, collectives and modelled cycles of a compiled program, from its HLO text.

XLA's own `cost_analysis()` counts the body of a loop once, whatever its trip count, so it is of no
use for scanned layers. Here a loop's body counts as often as it runs. What XLA has removed or added
since tracing (a dead gradient, a recomputation, a collective) is seen as it is. Everything is per
device: the text of a partitioned program is that of one device.

On TPUs products are convolutions whose batch dimensions stand as dilated windows; only taps that
meet an element of the input count. On GPUs they are calls of cuBLAS. A collective that runs beside
computation is printed at its start, at its end and in between, with one channel id: it counts once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%?([\w.\-]+)\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PRODUCT_CALL = re.compile(r'custom_call_target="[^"]*(?:matmul|dot|gemm)', re.IGNORECASE)
_BLAS_CALL = 'custom_call_target="__cublas$'
_BLAS_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([\d",]*)\]')
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BITS = {"pred": 8, "bf16": 16}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `name = type opcode(operands), attributes`.

  Attributes:
    arrays: (element type, sizes) of the result; several of a tuple.
    rest: what follows the operands.
  """

  name: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]
  opcode: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  @property
  def sizes(self) -> tuple[int, ...]:
    return self.arrays[0][1]

  @property
  def num_bytes(self) -> int:
    """Of the largest array of the result."""
    return max((math.prod(sizes) * _bits(kind) // 8 for kind, sizes in self.arrays), default=0)


@dataclasses.dataclass(frozen=True)
class Counts:
  """Attributes:
    flop: operations of matrix products, two a multiplication.
    cycles: modelled by XLA for what it has a model of: no collective, no custom call. For ratios
      between two programs, never for a time.
    collectives: by channel, (kind, bytes of the larger side).
  """

  flop: float = 0.0
  cycles: float = 0.0
  collectives: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)

  def collective_bytes(self) -> dict[str, float]:
    """By kind."""
    found: dict[str, float] = {}
    for kind, size in self.collectives.values():
      found[kind] = found.get(kind, 0.0) + size
    return found


class UnknownTrips(ValueError):
  """A loop with products in it runs as often as its data says."""


def count(hlo: str, unknown_trips: int | None = None) -> Counts:
  """Counts a module.

  Args:
    hlo: `jax.stages.Compiled.as_text()`.
    unknown_trips: how often a loop runs whose count XLA does not know (decoding stops by its data).

  Raises:
    ValueError: there is such a loop with products in it and no `unknown_trips`; or a product that
      this file cannot count, in a custom call.
  """
  computations, entry = parse(hlo)

  @functools.cache
  def of(name: str) -> Counts:
    shapes = {each.name: each for each in computations[name]}
    flop = cycles = 0.0
    collectives: dict[str, tuple[str, float]] = {}
    for each in computations[name]:
      if _PRODUCT_CALL.search(each.rest) and _BLAS_CALL not in each.rest:
        raise ValueError(f"a product in a custom call cannot be counted: {each.name}")
      flop += _product(each, shapes)
      inner = [of(called) for called in _called(each)]
      times = 1.0
      if each.opcode == "while" and any(part.flop or part.collectives for part in inner):
        times = _trips(each, shapes, computations, unknown_trips)
      flop += times * sum(part.flop for part in inner)
      own = _CYCLES.search(each.rest)
      cycles += float(own[1]) if own else times * sum(part.cycles for part in inner)
      found = [part.collectives for part in inner] + [_collective(each, shapes)]
      for channel, (kind, size) in (item for part in found for item in part.items()):
        old = collectives.get(channel, (kind, 0.0))[1]
        collectives[channel] = kind, max(old, times * size)
    return Counts(flop, cycles, collectives)

  return of(entry)


def matmul_flop(hlo: str, unknown_trips: int | None = None) -> float:
  """Operations of all matrix products of a module; arguments and errors as of `count`."""
  return count(hlo, unknown_trips).flop


def parse(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
  """(instructions by computation, name of the entry)."""
  found: dict[str, list[Instruction]] = {}
  entry, lines = "", []
  for line in hlo.splitlines():
    start = None if line.startswith(" ") else _COMPUTATION.match(line)
    if start:
      lines = found[start[1]] = []
      entry = start[1] if line.startswith("ENTRY") else entry
    elif (instruction := _instruction(line)) is not None:
      lines.append(instruction)
  return found, entry


def _instruction(line: str) -> Instruction | None:
  name = _NAME.match(line)
  if name is None:
    return None
  text = line[name.end():]
  end = _closing(text, 0) if text.startswith("(") else text.index(" ")
  opcode = _OPCODE.match(text, end)
  if opcode is None:
    return None
  last = _closing(text, opcode.end() - 1)
  operands = tuple(found[1] for part in _parts(text[opcode.end():last - 1])
                   if (found := _OPERAND.search(part)))
  arrays = tuple((kind, _numbers(sizes)) for kind, sizes in _ARRAY.findall(text[:end]))
  if opcode[1] == "constant":
    operands = (text[opcode.end():last - 1],)
  return Instruction(name[1], arrays, opcode[1], operands, text[last:],
                     line.lstrip().startswith("ROOT"))


def _product(each: Instruction, shapes: Mapping[str, Instruction]) -> float:
  if each.opcode == "dot":
    left = shapes[each.operands[0]].sizes
    contracted = _numbers(_CONTRACTED.search(each.rest)[1])  # type: ignore[index]
    return 2.0 * math.prod(each.sizes) * math.prod(left[axis] for axis in contracted)
  if _BLAS_CALL in each.rest:
    # Its result is a tuple: the product, and a workspace.
    contracted = _BLAS_CONTRACTED.search(each.rest)
    left = shapes[each.operands[0]].sizes
    axes = _numbers(contracted[1].replace('"', ""))  # type: ignore[index]
    return 2.0 * math.prod(each.sizes) * math.prod(left[axis] for axis in axes)
  if each.opcode == "convolution":
    return _convolution(each, *(shapes[name].sizes for name in each.operands[:2]))
  return 0.0


def _convolution(each: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.rest)
  if labels is None:
    raise ValueError(f"a convolution without dim_labels cannot be counted: {each.name}")
  of_left, of_right, of_result = labels.groups()
  spatial = sorted(set(of_result) - {"b", "f"})
  window = re.search(r"window=\{([^}]*)\}", each.rest)
  options = dict(part.split("=") for part in window[1].split()) if window else {}

  def option(name: str, default: int) -> list[int]:
    return [int(x) for x in options[name].split("x")] if name in options else (
      [default] * len(spatial))

  pads = [tuple(map(int, pair.split("_"))) for pair in options["pad"].split("x")] if (
    "pad" in options) else [(0, 0)] * len(spatial)
  taps = 1
  for i, label in enumerate(spatial):
    taps *= _taps(out=each.sizes[of_result.index(label)], size=left[of_left.index(label)],
                  window=right[of_right.index(label)], stride=option("stride", 1)[i],
                  low=pads[i][0], dilate=option("lhs_dilate", 1)[i],
                  spread=option("rhs_dilate", 1)[i])
  outer = each.sizes[of_result.index("b")] * each.sizes[of_result.index("f")]
  return 2.0 * outer * right[of_right.index("i")] * taps


def _taps(*, out: int, size: int, window: int, stride: int, low: int, dilate: int,
          spread: int) -> int:
  """How many pairs of an output position and a window position meet an element of the input."""
  found = 0
  for position in range(out):
    for tap in range(window):
      at = position * stride + tap * spread - low
      found += at % dilate == 0 and 0 <= at // dilate < size
  return found


def _collective(each: Instruction, shapes: Mapping[str, Instruction]
                ) -> dict[str, tuple[str, float]]:
  kind = each.opcode.removesuffix("-start")
  if kind not in _COLLECTIVES:
    return {}
  channel = _CHANNEL.search(each.rest)
  sizes = [each.num_bytes] + [shapes[name].num_bytes for name in each.operands if name in shapes]
  return {channel[1] if channel else each.name: (kind, float(max(sizes)))}


def _trips(loop: Instruction, shapes: Mapping[str, Instruction],
           computations: Mapping[str, list[Instruction]], unknown: int | None) -> float:
  known = _TRIPS.search(loop.rest)
  if known:
    return float(known[1])
  counted = _counted(loop, shapes, computations)
  if counted is not None:
    return counted
  if unknown is None:
    raise UnknownTrips("a loop with products has no known trip count: give unknown_trips")
  return float(unknown)


def _counted(loop: Instruction, shapes: Mapping[str, Instruction],
             computations: Mapping[str, list[Instruction]]) -> float | None:
  """Trips of a loop `i < bound`, where start, step and bound are constants; None of another."""
  attributes = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.rest))
  condition = {each.name: each for each in computations[attributes["condition"]]}
  root = next(each for each in condition.values() if each.is_root)
  if root.opcode != "compare" or "direction=LT" not in root.rest:
    return None
  counter, bound = (_source(condition, name) for name in root.operands)
  index = re.search(r"index=(\d+)", counter.rest)
  if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or index is None:
    return None
  position = int(index[1])
  body = {each.name: each for each in computations[attributes["body"]]}
  result = next(each for each in body.values() if each.is_root)
  step = _source(body, result.operands[position])
  if step.opcode != "add":
    return None
  steps = [int(each.operands[0]) for name in step.operands
           if (each := _source(body, name)).opcode == "constant"]
  start = _source(shapes, _source(shapes, loop.operands[0]).operands[position])
  first = int(start.operands[0]) if start.opcode == "constant" else 0
  return math.ceil((int(bound.operands[0]) - first) / steps[0]) if len(steps) == 1 else None


def _source(shapes: Mapping[str, Instruction], name: str) -> Instruction:
  """What an instruction is a copy of."""
  each = shapes[name]
  while each.opcode in ("copy", "bitcast") and each.operands[0] in shapes:
    each = shapes[each.operands[0]]
  return each


def _called(each: Instruction) -> Iterator[str]:
  yield from _CALLED.findall(each.rest)
  for branches in _BRANCHES.findall(each.rest):
    yield from (name.strip().lstrip("%") for name in branches.split(","))


def _closing(text: str, start: int) -> int:
  """The position after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] in "({[") - (text[i] in ")}]")
    if depth == 0:
      return i + 1
  raise ValueError(f"a bracket is not closed: {text[:80]}")


def _parts(text: str) -> Iterator[str]:
  """What commas outside of brackets separate."""
  depth = start = 0
  for i, letter in enumerate(text):
    depth += (letter in "({[") - (letter in ")}]")
    if letter == "," and depth == 0:
      yield text[start:i]
      start = i + 1
  yield text[start:]


def _bits(kind: str) -> int:
  digits = re.search(r"\d+", kind)
  return _ITEM_BITS.get(kind) or (int(digits[0]) if digits else 8)


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(size) for size in text.split(",") if size)
