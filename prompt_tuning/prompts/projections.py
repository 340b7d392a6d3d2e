"""The projections of a T5 by name, for methods that act on some of them (LoRA, IA3, adapters).

  encoder/{attention/{query, key, value, out}, mlp/{wi_0, wi_1, wo}}
  decoder/{self_attention/..., encoder_decoder_attention/..., mlp/...}

T5 1.0 has one `mlp/wi`. Patterns are regular expressions on whole names; a trailing
`[start:stop]` takes a slice of the stack's layers (`decoder/.*[-2:]`: its last two), as in
TRAINABLE. A method's leaves then hold those layers only.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from prompt_tuning import trees
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import PromptValues, StackValues, T5Config

_KERNEL = re.compile(r"(encoder|decoder)/layers(?:_(\d+))?/(.+)/kernel")


@dataclasses.dataclass(frozen=True)
class Projection:
  """One projection of every block of a stack, or of some of them.

  Attributes:
    path: `decoder/mlp/wo`.
    in_dim, out_dim: of its kernel.
    num_layers: L of the stack.
    start, stop: the layers that are chosen.
  """

  path: str
  in_dim: int
  out_dim: int
  num_layers: int
  start: int
  stop: int

  @property
  def name(self) -> str:
    """A name for its parameters: `decoder.mlp.wo`."""
    return self.path.replace("/", ".")

  @property
  def num_chosen(self) -> int:
    return self.stop - self.start

  def over_all_layers(self, leaf: Array, neutral: float = 0.0) -> Array:
    """`[chosen, ...] -> [L, ...]`, with a value that changes nothing in the other layers."""
    if self.num_chosen == self.num_layers:
      return leaf
    around = [(self.start, self.num_layers - self.stop)] + [(0, 0)] * (leaf.ndim - 1)
    return jnp.pad(leaf, around, constant_values=neutral)


def all_projections(config: T5Config) -> tuple[Projection, ...]:
  """Every projection of both stacks, over all layers."""
  joined = config.num_heads * config.head_dim
  gates = len(config.mlp_activations)
  inner = ["wi"] if gates == 1 else [f"wi_{i}" for i in range(gates)]
  sizes = {name: (config.emb_dim, joined) for name in ("query", "key", "value")}
  attention = sizes | {"out": (joined, config.emb_dim)}
  mlp = {name: (config.emb_dim, config.mlp_dim) for name in inner}
  mlp |= {"wo": (config.mlp_dim, config.emb_dim)}
  encoder = {"attention": attention, "mlp": mlp}
  decoder = {"self_attention": attention, "encoder_decoder_attention": attention, "mlp": mlp}
  return tuple(
    Projection(f"{stack}/{module}/{name}", *size, layers, 0, layers)
    for stack, modules, layers in (("encoder", encoder, config.num_encoder_layers),
                                   ("decoder", decoder, config.num_decoder_layers))
    for module, names in modules.items() for name, size in names.items())


def as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
  """One pattern, or several, as a tuple."""
  return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def choose(config: T5Config, patterns: Sequence[str], field: str) -> tuple[Projection, ...]:
  """The projections that any of the patterns matches, in the order of `all_projections`.

  Args:
    field: that the patterns stand in, for messages.

  Raises:
    UserError: a pattern is not a regular expression, or matches nothing; it takes no layer; or two
      patterns take different layers of one projection.
  """
  known = {projection.path: projection for projection in all_projections(config)}
  chosen: dict[str, Projection] = {}
  for pattern in patterns:
    expression, layers = trees.parse_pattern(pattern, field)
    paths = [path for path in known if expression.fullmatch(path)]
    if not paths:
      raise UserError(f"A pattern of {field} matches no projection", found=repr(pattern),
                      wanted="a regular expression on whole names such as 'encoder/mlp/wo'",
                      fix=nearest(expression.pattern, known))
    for path in paths:
      start, stop = trees.span_of(layers or slice(None), known[path].num_layers, pattern, field)
      found = dataclasses.replace(known[path], start=start, stop=stop)
      if chosen.setdefault(path, found) != found:
        old = chosen[path]
        raise UserError(f"Two patterns of {field} take different layers of one projection",
                        found=f"{path}: {old.start}:{old.stop} and {found.start}:{found.stop}",
                        wanted="one slice a projection", fix="join the two patterns")
  if not chosen:
    raise UserError(f"{field} chooses no projection", found=repr(tuple(patterns)),
                    wanted="a pattern or more", fix="'.*/(query|value)' is LoRA's choice")
  return tuple(chosen[path] for path in known if path in chosen)


def values(hooks: Mapping[str, Any]) -> PromptValues:
  """Hooks by their projection's path, each with all L layers, as `PromptValues`."""
  def of(stack: str) -> StackValues:
    return StackValues(projections={path.removeprefix(stack + "/"): hook
                                    for path, hook in hooks.items() if path.startswith(stack)})

  return PromptValues(encoder=of("encoder"), decoder=of("decoder"))


def edit_kernels(backbone: Mapping[str, Any], chosen: Sequence[Projection],
                 edit: Callable[[Projection, slice, np.ndarray], np.ndarray]) -> dict[str, Any]:
  """A flat backbone, or a part of one, with the kernels of the chosen layers replaced.

  Args:
    backbone: `{path: leaf}` in either layout of layers.
    edit: `(projection, rows, kernels [n, in, out] float32) -> [n, in, out]`; `rows` are those of
      the method's own leaves that the kernels belong to.

  Returns:
    A new dict; leaves keep their dtype.
  """
  by_path = {projection.path: projection for projection in chosen}
  edited = dict(backbone)
  for path, leaf in backbone.items():
    found = _KERNEL.fullmatch(path)
    projection = by_path.get(f"{found[1]}/{found[3]}") if found else None
    if found is None or projection is None:
      continue
    is_stacked = found[2] is None
    first = 0 if is_stacked else int(found[2])
    kernels = np.asarray(leaf)[... if is_stacked else None].astype(np.float32)
    start, stop = max(projection.start, first), min(projection.stop, first + len(kernels))
    if start < stop:
      rows = slice(start - projection.start, stop - projection.start)
      kernels[start - first:stop - first] = edit(projection, rows,
                                                 kernels[start - first:stop - first])
      edited[path] = (kernels if is_stacked else kernels[0]).astype(leaf.dtype)
  return edited


def over_last_axis(vector: Array, like: Array) -> Array:
  """`[n] -> [1, ..., 1, n]`, with the rank and dtype of `like`."""
  return vector.reshape((1,) * (like.ndim - 1) + (-1,)).astype(like.dtype)
