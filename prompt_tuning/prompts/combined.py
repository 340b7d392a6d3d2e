"""Several methods at once: any prompt beside any light module (soft prompt and LoRA, say).

What the parts return is joined in their order: virtual tokens, keys and values stand behind those
of the part before; a hook acts on what the part before has made of the projection, the block's
input or the output layer. Every part finds its own virtual tokens under the ids that it would see
alone.

Trains:  prompt/PART/..., every part's own leaves.   Serves: the served form of every part.
Cost: that of the parts together.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID, KeyValues, PromptContext, PromptValues, StackValues
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.method import PromptMethod


@struct.dataclass
class ChainedProjections:
  """A projection hook: the first of `hooks` around the projection, the second around that, ..."""

  hooks: tuple[Any, ...]

  def __call__(self, x: Array, project: Callable[[Array], Array]) -> Array:
    for hook in self.hooks:
      project = functools.partial(hook, project=project)
    return project(x)


@struct.dataclass
class ChainedBlockInputs:
  """A block hook: one of `hooks` after the other."""

  hooks: tuple[Any, ...]

  def __call__(self, x: Array, tokens: Array | None) -> Array:
    for hook in self.hooks:
      x = hook(x, tokens).astype(x.dtype)
    return x


@struct.dataclass
class OwnBlockInput:
  """A block hook of one of several parts with virtual tokens.

  Attributes:
    hook: the part's.
    start: how many virtual tokens stand ahead of the part's own.  length: how many it has.
  """

  hook: Any
  start: int = struct.field(pytree_node=False)
  length: int = struct.field(pytree_node=False)

  def __call__(self, x: Array, tokens: Array | None) -> Array:
    # Other parts' rows look like words: a hook takes every negative id for its own.
    own = None if tokens is None else _own_ids(tokens, self.start, self.length, EOS_ID)
    return self.hook(x, own)


@struct.dataclass
class ChainedOutputs:
  """An output hook, nested as `ChainedProjections`."""

  hooks: tuple[Any, ...]

  def __call__(self, x: Array, tokens: Array, positions: Array,
               project: Callable[[Array], Array]) -> Array:
    def around(x: Array, hook: Any, project: Callable[[Array], Array]) -> Array:
      return hook(x, tokens, positions, project)

    for hook in self.hooks:
      project = functools.partial(around, hook=hook, project=project)
    return project(x)


class Combined(PromptMethod):
  """Attributes:
    parts: name -> method, in the order in which they act.
  """

  parts: Mapping[str, PromptMethod]

  # Parameters stand below the part's name alone, not below `parts_NAME`.
  preserve_adopted_names = True

  def __post_init__(self):
    if not isinstance(self.parts, Mapping) or not self.parts:
      raise UserError("Combined.parts names no method", found=repr(self.parts),
                      wanted="{'soft': @soft.SoftPrompt(), 'lora': @lora.Lora()}",
                      fix="see prompts/combined.gin")
    wrong = [name for name, part in self.parts.items() if not isinstance(part, PromptMethod)]
    if wrong:
      raise UserError("A part of Combined is no prompt method",
                      found=f"{wrong[0]}: {self.parts[wrong[0]]!r}",
                      wanted="@module.Class() of prompts/", fix="mind the () in the gin file")
    taken = [name for name in self.parts if "/" in name or hasattr(type(self), name)
             or name in ("parts", "config", "name", "parent")]
    if taken:
      raise UserError("A part of Combined cannot have this name", found=repr(taken[0]),
                      wanted="a word that is no field of a module", fix="name it by its method")
    other = [name for name, part in self.parts.items() if part.config != self.config]
    if other:
      raise UserError("A part of Combined is for another backbone", found=other[0],
                      wanted="one T5Config for all", fix="set its config to %BACKBONE too")
    banks = {name: part.num_prompts for name, part in self.parts.items() if part.num_prompts > 1}
    if len(set(banks.values())) > 1:
      raise UserError("The parts of Combined have banks of different sizes",
                      found=", ".join(f"{name}: {n}" for name, n in banks.items()),
                      wanted="one number of prompts", fix="--gin.NUM_PROMPTS=... for all of them")
    # A FrozenDict can be hashed, as compiled functions need it.
    object.__setattr__(self, "parts", FrozenDict(
      {name: part if part.name == name else part.clone(name=name)
       for name, part in self.parts.items()}))
    super().__post_init__()

  @property
  def num_virtual_tokens(self) -> int:
    return sum(part.num_virtual_tokens for part in self.parts.values())

  @property
  def num_prompts(self) -> int:  # type: ignore[override]  # a property for a constant
    return max(part.num_prompts for part in self.parts.values())

  @property
  def reads_input(self) -> bool:  # type: ignore[override]
    return any(part.reads_input for part in self.parts.values())

  @property
  def has_dropout(self) -> bool:  # type: ignore[override]
    return any(part.has_dropout for part in self.parts.values())

  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    values, start = [], 0
    for part in self.parts.values():
      length = part.num_virtual_tokens
      values.append(self._part_values(part, start, length, context, enable_dropout))
      start += length
    return PromptValues(
      embeds=_embeds(v.embeds for v in values),
      encoder=_stack([v.encoder for v in values]), decoder=_stack([v.decoder for v in values]),
      output=_chain(ChainedOutputs, (v.output for v in values)))

  def with_vocabulary(self, encode: Callable[[str], Sequence[int]]) -> "Combined":
    return self.clone(parts={name: part.with_vocabulary(encode)
                             for name, part in self.parts.items()})

  def _part_values(self, part: PromptMethod, start: int, length: int, context: PromptContext,
                   enable_dropout: bool) -> PromptValues:
    if length == self.num_virtual_tokens:
      return part(context, enable_dropout)
    if context.tokens is not None:
      # Not as words, which the part may read: other parts' rows are no row of its own.
      own = _own_ids(context.tokens, start, length, -1 - length)
      context = dataclasses.replace(context, tokens=own)
    values = part(context, enable_dropout)
    if values.encoder.block_input is None:
      return values
    hook = OwnBlockInput(values.encoder.block_input, start, length)
    return dataclasses.replace(values, encoder=dataclasses.replace(values.encoder,
                                                                   block_input=hook))

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    """Every part's own start, from a key of its own."""
    return {name: part.initial_params(_key_of(key, name), params.get(name, {}), sources)
            for name, part in self.parts.items()}

  def check_start(self, key: Array, sources: Sources) -> None:
    for part in self.parts.values():
      part.check_start(key, sources)

  def check_task(self, task: str, targets: Iterable[tuple[str, Sequence[int]]], *,
                 leading_sentinel: bool = False, label_smoothing: float = 0.0) -> None:
    each = itertools.tee(targets, len(self.parts))
    for part, own in zip(self.parts.values(), each, strict=True):
      part.check_task(task, own, leading_sentinel=leading_sentinel,
                      label_smoothing=label_smoothing)

  def served(self) -> "Combined":
    return self.clone(parts={name: part.served() for name, part in self.parts.items()})

  def fold(self, params: dict) -> dict:
    return {name: part.fold(params.get(name, {})) for name, part in self.parts.items()}

  def of_one(self) -> "Combined":
    return self.clone(parts={name: part.of_one() for name, part in self.parts.items()})

  def merge(self, backbone: Any, params: dict) -> Any:
    """None where a part cannot be merged."""
    for name, part in self.parts.items():
      backbone = part.merge(backbone, params.get(name, {}))
      if backbone is None:
        return None
    return backbone


def _own_ids(tokens: Array, start: int, length: int, other: int) -> Array:
  """Ids in which rows start ... start + length - 1 are 0 ... length - 1, and other rows `other`."""
  is_own = (tokens < -start) & (tokens >= -start - length)
  return jnp.where(is_own, tokens + start, jnp.where(tokens < 0, other, tokens))


def _key_of(key: Array, name: str) -> Array:
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def _chain(kind: Callable[[tuple], Any], hooks: Iterable[Any]) -> Any:
  """One hook for all that are not None; None where there is none."""
  given = tuple(hook for hook in hooks if hook is not None)
  return kind(given) if len(given) > 1 else next(iter(given), None)


def _stack(values: list[StackValues]) -> StackValues:
  names = {name: None for v in values for name in v.projections}
  return StackValues(
    self_kv=_key_values(v.self_kv for v in values),
    cross_kv=_key_values(v.cross_kv for v in values),
    block_input=_chain(ChainedBlockInputs, (v.block_input for v in values)),
    projections={name: _chain(ChainedProjections, (v.projections.get(name) for v in values))
                 for name in names})


def _embeds(embeds: Iterable[Array | None]) -> Array | None:
  """`[P, D]`s and `[B, P, D]`s -> one of either, P after P."""
  given = [x for x in embeds if x is not None]
  if not given or all(x.ndim == 2 for x in given):
    return jnp.concatenate(given) if given else None
  return _concatenate([x if x.ndim == 3 else x[None] for x in given], rows=0, axis=1)


def _key_values(parts: Iterable[KeyValues | None]) -> KeyValues | None:
  """`[L, B or 1, P, H, K]`, P after P."""
  given = [x for x in parts if x is not None]
  if not given:
    return None
  return KeyValues(_concatenate([x.key for x in given], rows=1, axis=2),
                   _concatenate([x.value for x in given], rows=1, axis=2))


def _concatenate(arrays: list[Array], rows: int, axis: int) -> Array:
  """Along `axis`, after the axis `rows` of size 1 or B is made B in all."""
  count = max(x.shape[rows] for x in arrays)
  return jnp.concatenate([
    jnp.broadcast_to(x, (*x.shape[:rows], count, *x.shape[rows + 1:])) for x in arrays], axis)
