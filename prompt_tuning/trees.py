"""Trees of parameters by path: split into what is trained and what is frozen, merge, compare.

Freezing is a split, not a mask: the frozen part is never differentiated because it is never in the
tree that the gradient is taken of. Patterns are regular expressions on whole `/`-joined paths; a
trailing `[start:stop]` takes a slice of the layer axis of stacked leaves
(`encoder/layers/mlp/.*[-2:]`: the last two layers).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.errors import UserError, nearest

Tree = Mapping[str, Any]
# A prompt's leaves whose name starts so are saved with it and never trained: they are frozen.
CONSTANT = "constant_"
_SLICE = re.compile(r"\[(-?\d*):(-?\d*)\]$")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rest:
  """The frozen layers around a trained slice: `[start, ...]` and `[L - stop, ...]`."""

  before: Any
  after: Any


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
  """Nested dicts -> `{"a/b/c": leaf}`, sorted by path."""
  flat: dict[str, Any] = {}
  for name in sorted(tree):
    path = f"{prefix}{name}"
    if isinstance(tree[name], Mapping):
      flat.update(flatten(tree[name], path + "/"))
    else:
      flat[path] = tree[name]
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def map_with_path(function: Callable[[str, Any], Any], tree: Tree) -> dict[str, Any]:
  """`function(path, leaf)` on every leaf."""
  return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


def join(first: Tree, second: Tree) -> dict[str, Any]:
  """The leaves of both; of `second` where a path is in both."""
  return unflatten(flatten(first) | flatten(second))


def is_constant(path: str) -> bool:
  """Whether a leaf of a prompt is never trained."""
  return path.rpartition("/")[2].startswith(CONSTANT)


@dataclasses.dataclass(frozen=True)
class Split:
  """Which leaves are trained, or which layers of them.

  Attributes:
    trained: path -> None for the whole leaf, or (start, stop) on its first axis.
  """

  trained: Mapping[str, tuple[int, int] | None]

  def sliced_stacks(self) -> list[str]:
    """`encoder`, `decoder`: the stacks of which a leaf is trained in some layers only."""
    return sorted({path.split("/")[1] for path, layers in self.trained.items() if layers})

  def split(self, params: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """`params` -> (trainable, frozen)."""
    trainable, frozen = {}, {}
    for path, leaf in flatten(params).items():
      if path not in self.trained:
        frozen[path] = leaf
        continue
      layers = self.trained[path]
      if layers is None:
        trainable[path] = leaf
      else:
        start, stop = layers
        trainable[path] = leaf[start:stop]
        frozen[path] = Rest(leaf[:start], leaf[stop:])
    return unflatten(trainable), unflatten(frozen)

  def merge(self, trainable: Tree, frozen: Tree) -> dict[str, Any]:
    """The inverse of `split`; the layers of a sliced leaf are joined again."""
    flat = flatten(frozen)
    for path, leaf in flatten(trainable).items():
      if self.trained[path] is None:
        flat[path] = leaf
      else:
        rest = flat[path]
        flat[path] = jnp.concatenate(
          [rest.before.astype(leaf.dtype), leaf, rest.after.astype(leaf.dtype)])
    return unflatten(flat)


def patterns_of(given: Sequence[str]) -> tuple[str, ...]:
  """TRAINABLE as a tuple.

  Raises:
    UserError: it is one text, whose letters would be taken for patterns.
  """
  if isinstance(given, str):
    raise UserError("TRAINABLE is one text", found=repr(given), wanted="a list of patterns",
                    fix=f"--gin.TRAINABLE=\"[{given!r}]\"")
  return tuple(given)


def plan_split(params: Tree, patterns: Sequence[str]) -> Split:
  """Decides what is trained.

  Args:
    params: `{"backbone": ..., "prompt": ...}`, arrays or shapes.
    patterns: regular expressions on paths below `backbone/`; what is below `prompt/` is trained in
      any case, but for constants.

  Raises:
    UserError: a pattern is not a regular expression, matches no leaf, takes layers that do not
      exist, or slices a leaf that is not stacked; or nothing at all is trained.
  """
  flat = flatten(params)
  trained: dict[str, tuple[int, int] | None] = {
    p: None for p in flat if p.startswith("prompt/") and not is_constant(p)}
  for pattern in patterns_of(patterns):
    expression, layers = parse_pattern(pattern, "TRAINABLE")
    matches = [p for p in flat if p.startswith("backbone/")
               and expression.fullmatch(p.removeprefix("backbone/"))]
    if not matches:
      names = [p.removeprefix("backbone/") for p in flat if p.startswith("backbone/")]
      raise UserError("A TRAINABLE pattern matches no parameter", found=repr(pattern),
                      wanted="a regular expression that matches whole paths",
                      fix="`prompt-tuning info --paths` lists the paths; "
                      + nearest(pattern, names))
    for path in matches:
      span = None if layers is None else _span(pattern, path, flat[path], layers)
      if path in trained and trained[path] != span:
        raise UserError("Two TRAINABLE patterns take different layers of one parameter",
                        found=f"{path}: {trained[path]} and {span}", wanted="one slice a leaf",
                        fix="join the two patterns")
      trained[path] = span
  if not trained:
    raise UserError("Nothing would be trained", found="no prompt and no TRAINABLE pattern",
                    wanted="one of them", fix="add --gin_file=prompts/soft.gin, or "
                    "--gin_file=runs/model_tune.gin")
  return Split(trained)


def count(tree: Tree) -> int:
  """How many numbers a tree of arrays or shapes holds; of a leaf in few bits those it stands for.
  """
  return sum(int(np.prod(leaf.shape)) for leaf in flatten_arrays(tree).values())


def num_bytes(tree: Tree) -> int:
  """On a device, where two numbers of 4 bits share a byte."""
  return sum(int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize // (
    2 if "int4" in str(leaf.dtype) else 1) for leaf in jax.tree.leaves(dict(tree)))


def flatten_arrays(tree: Tree) -> dict[str, Any]:
  """`flatten`, with the two parts of a `Rest` apart."""
  flat: dict[str, Any] = {}
  for path, leaf in flatten(tree).items():
    if isinstance(leaf, Rest):
      flat[path + "[before]"], flat[path + "[after]"] = leaf.before, leaf.after
    else:
      flat[path] = leaf
  return flat


def differences(first: Tree, second: Tree) -> list[str]:
  """Paths whose leaves are not bit-equal, or stand in one tree only."""
  a, b = flatten_arrays(first), flatten_arrays(second)
  return [path for path in sorted(a.keys() | b.keys())
          if path not in a or path not in b or not _equal(a[path], b[path])]


def _equal(a: Any, b: Any) -> bool:
  a, b = np.asarray(a), np.asarray(b)
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def parse_pattern(pattern: str, setting: str) -> tuple[re.Pattern[str], slice | None]:
  """A regular expression, and the layers that a slice behind it takes; None without one.

  Raises:
    UserError: it is no regular expression.
  """
  found = _SLICE.search(pattern)
  layers = slice(*(int(x) if x else None for x in found.groups())) if found else None
  try:
    return re.compile(pattern[:found.start()] if found else pattern), layers
  except re.error as error:
    raise UserError(f"A pattern of {setting} is not a regular expression",
                    found=f"{pattern!r}: {error}", wanted="such as '.*/mlp/.*' or '.*/mlp/.*[-2:]'",
                    fix="correct the pattern") from error


def span_of(layers: slice, size: int, pattern: str, setting: str) -> tuple[int, int]:
  """The first layer that a slice takes of so many, and the one after its last.

  Raises:
    UserError: it takes none.
  """
  start, stop, _ = layers.indices(size)
  if start >= stop:
    raise UserError(f"A pattern of {setting} takes no layer",
                    found=f"{pattern!r} of {size} layers",
                    wanted=f"start < stop within 0 ... {size}", fix="correct the slice")
  return start, stop


def _span(pattern: str, path: str, leaf: Any, layers: slice) -> tuple[int, int] | None:
  if "/layers/" not in path:
    raise UserError("A TRAINABLE pattern slices a parameter that has no layer axis",
                    found=f"{pattern!r} matches {path}", wanted="leaves below .../layers/",
                    fix="leave the [start:stop] out, or narrow the pattern")
  size = leaf.shape[0]
  span = span_of(layers, size, pattern, "TRAINABLE")
  return None if span == (0, size) else span
