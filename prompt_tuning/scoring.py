"""What is computed with a model that is not being trained: label scores, generated ids, losses.

Each function takes `(model, params, arrays)`; `call` runs one compiled, with the parameters in
their trained and frozen parts. All arrays of a run have one shape, so each compiles once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning import decoding
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.losses import cross_entropy, sequence_log_likelihood
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.t5 import DecoderCache
from prompt_tuning.trees import Split

STRATEGIES = ("greedy", "sample", "beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How text is generated.

  Attributes:
    strategy: `greedy`, `sample` or `beam`.
    temperature, top_k, top_p: of `sample` (`decoding.sample`).
    num_beams, alpha: of `beam` (`decoding.beam_search`).
  """

  strategy: str = "greedy"
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  num_beams: int = 4
  alpha: float = 0.6

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


def call(trainable: Any, frozen: Any, split: Split, model: PromptedT5, function: Callable,
         *args: Any, **static: Any) -> Any:
  """`function(model, params, *args, **static)`, compiled once a function, model and `static`."""
  return _compiled(model, _Hashable(split), function, tuple(sorted(static.items())))(
    trainable, frozen, *args)


class _Hashable:
  """A split as a key of the cache of compiled functions, by identity of its content."""

  def __init__(self, split: Split):
    self.split = split
    self._key = tuple(sorted(split.trained.items(), key=lambda item: item[0]))

  def __hash__(self) -> int:
    return hash(self._key)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Hashable) and self._key == other._key


@functools.lru_cache(maxsize=32)
def _compiled(model: PromptedT5, split: _Hashable, function: Callable, static: tuple) -> Callable:
  def run(trainable, frozen, *args):
    params = split.split.merge(trainable, frozen)
    return function(model, params, *args, **dict(static))
  return jax.jit(run)


def label_scores(model: PromptedT5, params: Any, tokens: Array, labels: Array,
                 prompt_ids: Array | None = None, *, given: int = 0) -> Array:
  """`[B, S]` inputs and `[C, U]` labels -> log-likelihoods `[B, C]`.

  Args:
    prompt_ids: `[B]`, of a bank of prompts.
    given: the first tokens of every label are given (a sentinel, say) and not scored.
  """
  rows, classes = tokens.shape[0], labels.shape[0]
  encoded = model.apply({"params": params}, tokens, prompt_ids=prompt_ids, method="encode")
  # Row-major: the C labels of an input stand together.
  encoded = jnp.repeat(encoded, classes, axis=0)
  targets = jnp.tile(labels, (rows, 1))
  shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  if prompt_ids is not None:
    prompt_ids = jnp.repeat(prompt_ids, classes)
  logits = model.apply({"params": params}, encoded, jnp.repeat(tokens, classes, axis=0), shifted,
                       enable_dropout=False, prompt_ids=prompt_ids, method="decode")
  scored = (targets != 0) & (jnp.arange(targets.shape[1]) >= given)[None]
  scores = sequence_log_likelihood(logits, targets, scored.astype(jnp.float32))
  return scores.reshape(rows, classes)


def token_losses(model: PromptedT5, params: Any, batch: Mapping[str, Array]) -> Array:
  """`[2]`: summed cross-entropy of the target tokens, and their number."""
  logits = model.apply({"params": params}, batch["encoder_input_tokens"],
                       batch["decoder_input_tokens"], enable_dropout=False,
                       prompt_ids=batch.get("prompt_ids"))
  loss = cross_entropy(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"],
                       z_loss=0.0)
  return jnp.stack([loss.total, loss.weight_sum])


def generate(model: PromptedT5, params: Any, tokens: Array, key: Array | None = None,
             prompt_ids: Array | None = None, *, max_length: int,
             how: Decoding = Decoding()) -> Array:
  """`[B, S]` inputs -> `[B, max_length]` generated ids.

  Args:
    key: for sampling alone.
    prompt_ids: `[B]`, of a bank of prompts.
  """
  apply = functools.partial(model.apply, {"params": params})
  cache = apply(tokens, max_length, prompt_ids, method="start_decoding")
  beams = how.num_beams if how.strategy == "beam" else 1
  if beams > 1:
    cache = _reorder_all(cache, jnp.repeat(jnp.arange(tokens.shape[0]), beams))
  encoder_tokens = jnp.repeat(tokens, beams, axis=0)
  if prompt_ids is not None:
    prompt_ids = jnp.repeat(prompt_ids, beams)

  def next_logits(last: Array, state: DecoderCache) -> tuple[Array, DecoderCache]:
    return apply(last, state, encoder_tokens, prompt_ids, method="decode_step")

  size = {"batch_size": tokens.shape[0], "max_length": max_length}
  if how.strategy == "sample":
    return decoding.sample(next_logits, cache, key=key, temperature=how.temperature,
                           top_k=how.top_k, top_p=how.top_p, **size)
  if how.strategy == "beam":
    found, _ = decoding.beam_search(next_logits, cache, num_beams=beams, alpha=how.alpha,
                                    reorder=_reorder_self, **size)
    return found[:, 0]
  return decoding.greedy(next_logits, cache, **size)


def _reorder_self(cache: DecoderCache, index: Array) -> DecoderCache:
  """Cross-attention is the same for all beams of an input, so it need not move."""
  return cache.replace(self_key=jnp.take(cache.self_key, index, axis=1),
                       self_value=jnp.take(cache.self_value, index, axis=1))


def _reorder_all(cache: DecoderCache, index: Array) -> DecoderCache:
  return _reorder_self(cache, index).replace(
    cross_key=jnp.take(cache.cross_key, index, axis=1),
    cross_value=jnp.take(cache.cross_value, index, axis=1),
    encoder_mask=jnp.take(cache.encoder_mask, index, axis=0))
