"""What is computed with a model that is not being trained: label scores, losses; how it is
compiled.

Each function takes `(model, params, arrays)`; `call` runs one compiled, with the parameters in
their trained and frozen parts. All arrays of a run have one shape, so each compiles once.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.losses import cross_entropy, sequence_log_likelihood
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.trees import Split


def call(trainable: Any, frozen: Any, split: Split, model: PromptedT5, function: Callable,
         *args: Any, partitioner: Partitioner | None = None, **static: Any) -> Any:
  """`function(model, params, *args, **static)`, compiled once a function, model and `static`.

  Args:
    partitioner: lays activations out over the devices that the parameters are on.
  """
  return _compiled(model, _Hashable(split), function, tuple(sorted(static.items())), partitioner)(
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
def _compiled(model: PromptedT5, split: _Hashable, function: Callable, static: tuple,
              partitioner: Partitioner | None) -> Callable:
  def run(trainable, frozen, *args):
    params = split.split.merge(trainable, frozen)
    return function(model, params, *args, **dict(static))
  return jax.jit(run) if partitioner is None else partitioner.jit(run)


def label_scores(model: PromptedT5, params: Any, tokens: Array, labels: Array,
                 prompt_ids: Array | None = None, *, given: int = 0) -> Array:
  """`[B, S]` inputs and `[C, U]` labels, or `[B, C, U]`, -> log-likelihoods `[B, C]`.

  Args:
    prompt_ids: `[B]`, of a bank of prompts.
    given: the first tokens of every label are given (a sentinel, say) and not scored.
  """
  rows, classes = tokens.shape[0], labels.shape[-2]
  encoded = model.apply({"params": params}, tokens, prompt_ids=prompt_ids, method="encode")
  # Row-major: the C labels of an input stand together.
  encoded = jnp.repeat(encoded, classes, axis=0)
  targets = jnp.broadcast_to(labels, (rows, *labels.shape[-2:])).reshape(-1, labels.shape[-1])
  shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  if prompt_ids is not None:
    prompt_ids = jnp.repeat(prompt_ids, classes)
  logits = model.apply({"params": params}, encoded, jnp.repeat(tokens, classes, axis=0), shifted,
                       enable_dropout=False, prompt_ids=prompt_ids, method="decode")
  scored = (targets != 0) & (jnp.arange(targets.shape[1]) >= given)[None]
  scores = sequence_log_likelihood(logits, targets, scored.astype(jnp.float32))
  return scores.reshape(rows, classes)


def output_scores(model: PromptedT5, params: Any, tokens: Array, outputs: Array,
                  prompt_ids: Array | None = None) -> Array:
  """`[B, S]` inputs and `[B, U]` outputs -> the log-likelihood `[B]` of each row's own output."""
  shifted = jnp.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
  logits = model.apply({"params": params}, tokens, shifted, enable_dropout=False,
                       prompt_ids=prompt_ids)
  return sequence_log_likelihood(logits, outputs, (outputs != 0).astype(jnp.float32))


def token_losses(model: PromptedT5, params: Any, batch: Mapping[str, Array]) -> Array:
  """`[2]`: summed cross-entropy of the target tokens, and their number."""
  logits = model.apply({"params": params}, batch["encoder_input_tokens"],
                       batch["decoder_input_tokens"], enable_dropout=False,
                       prompt_ids=batch.get("prompt_ids"))
  loss = cross_entropy(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"],
                       z_loss=0.0)
  return jnp.stack([loss.total, loss.weight_sum])
