"""Text from a prompted T5: one decoding strategy over one way of reading the model.

The model reads R = B * N rows: N copies of each of B inputs, each with a prompt of its own, which a
`Steering` (`steering.py`) makes one distribution of; without one N is 1. Rows are ordered by input,
then copy, then beam. The encoder and the cross-attention's keys and values are computed once a
copy, and kept once for all its beams.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from prompt_tuning import constraints, decoding
from prompt_tuning.constraints import Constraints
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.t5 import DecoderCache

STRATEGIES = ("greedy", "sample", "beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How text is generated.

  Attributes:
    strategy: `greedy`, `sample` or `beam`.
    temperature, top_k, top_p: of `sample` (`decoding.sample`).
    num_beams, alpha: of `beam` (`decoding.beam_search`).
    min_length, no_repeat_ngram: of all (`constraints.Constraints`); 0 is none.
    forced_prefix: a text that every answer begins with, or None.
  """

  strategy: str = "greedy"
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  num_beams: int = 4
  alpha: float = 0.6
  min_length: int = 0
  no_repeat_ngram: int = 0
  forced_prefix: str | None = None

  def __post_init__(self):
    if self.strategy not in STRATEGIES:
      raise UserError("Decoding.strategy is unknown", found=repr(self.strategy),
                      wanted="one of " + ", ".join(STRATEGIES),
                      fix=nearest(str(self.strategy), STRATEGIES))
    owners = {"temperature": "sample", "top_k": "sample", "top_p": "sample",
              "num_beams": "beam", "alpha": "beam"}
    defaults = {field.name: field.default for field in dataclasses.fields(self)}
    for name, owner in owners.items():
      if getattr(self, name) != defaults[name] and self.strategy != owner:
        raise UserError(f"{name.upper()} has no effect on {self.strategy} decoding",
                        found=f"{name} = {getattr(self, name)}", wanted=f"strategy {owner!r}",
                        fix=f"--gin.DECODING=\"'{owner}'\", or leave {name} out")
    decoding.check_sampling(self.temperature, self.top_k, self.top_p)
    decoding.check_beams(self.num_beams, self.alpha)

  def limits(self, tokenizer: Any, max_length: int) -> Constraints:
    """What may not be generated.

    Args:
      tokenizer: encodes the forced prefix.

    Raises:
      UserError: a limit is out of its range.
    """
    prefix = None if not self.forced_prefix else jnp.asarray(
      tokenizer.encode(self.forced_prefix), jnp.int32)
    limits = Constraints(prefix, self.min_length, self.no_repeat_ngram)
    limits.check(max_length)
    return limits


@struct.dataclass
class Reader:
  """The model, a token at a time.

  Attributes:
    params: of the model.
    tokens: `[R, S]`, the encoder's input of every row, beams included.
    prompt_ids: `[R]`, or None.
  """

  model: PromptedT5 = struct.field(pytree_node=False)
  params: Any
  tokens: Array
  prompt_ids: Array | None

  def step(self, last: Array, cache: DecoderCache) -> tuple[Array, Array, DecoderCache]:
    """Token ids `[R, 1]` -> logits `[R, V]`, the decoder's output `[R, D]`, and the cache."""
    return self.model.apply({"params": self.params}, last, cache, self.tokens, self.prompt_ids,
                            method="decode_states")


def generate(model: PromptedT5, params: Any, tokens: Array, key: Array | None = None,
             prompt_ids: Array | None = None, limits: Constraints = constraints.NONE,
             steering: Any = None, *, max_length: int, how: Decoding = Decoding()) -> Array:
  """`[B * N, S]` inputs -> `[B, max_length]` generated ids.

  Args:
    key: for sampling alone: `[B]` keys, or one.
    prompt_ids: `[B * N]`, of a bank of prompts.
    limits: `how.limits(...)`.
    steering: a `steering.Steering`; None: the plain model.
  """
  copies = 1 if steering is None else steering.copies
  beams = how.num_beams if how.strategy == "beam" else 1
  ahead = 0 if steering is None else steering.looks_ahead
  cache = model.apply({"params": params}, tokens, max_length + ahead, prompt_ids,
                      method="start_decoding")
  if beams > 1:
    tokens = jnp.repeat(tokens, beams, axis=0)
    prompt_ids = None if prompt_ids is None else jnp.repeat(prompt_ids, beams)
    cache = cache.replace(self_key=jnp.repeat(cache.self_key, beams, axis=1),
                          self_value=jnp.repeat(cache.self_value, beams, axis=1))
  reader = Reader(model, params, tokens, prompt_ids)

  def next_logits(last: Array, state: Any) -> tuple[Array, Any]:
    if steering is None:
      logits, _, state = reader.step(last, state)
      return logits, state
    return steering.next_logits(reader, _to_copies(last, copies, beams), state)

  state = cache if steering is None else steering.start(reader, cache)
  size = {"batch_size": len(tokens) // (copies * beams), "max_length": max_length,
          "limits": limits}
  if how.strategy == "sample":
    return decoding.sample(next_logits, state, key=key, temperature=how.temperature,
                           top_k=how.top_k, top_p=how.top_p, **size)
  if how.strategy == "beam":
    reorder = functools.partial(_reorder, copies=copies, beams=beams)
    found, _ = decoding.beam_search(next_logits, state, num_beams=beams, alpha=how.alpha,
                                    reorder=reorder, **size)
    return found[:, 0]
  return decoding.greedy(next_logits, state, **size)


def _to_copies(last: Array, copies: int, beams: int) -> Array:
  """Tokens by input and beam `[B * beams, 1]` -> by input, copy and beam `[R, 1]`."""
  by_input = last.reshape(-1, 1, beams)
  return jnp.broadcast_to(by_input, (len(by_input), copies, beams)).reshape(-1, 1)


def _reorder(cache: DecoderCache, index: Array, copies: int, beams: int) -> DecoderCache:
  """Cross-attention is the same for all beams of a copy, so only the rest moves."""
  if copies > 1:
    beam = index.reshape(-1, 1, beams) % beams
    first = jnp.arange(len(beam) * copies).reshape(-1, copies, 1) * beams
    index = (first + beam).reshape(-1)
  return cache.replace(self_key=jnp.take(cache.self_key, index, axis=1),
                       self_value=jnp.take(cache.self_value, index, axis=1))
