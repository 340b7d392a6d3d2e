"""What is made of a model's next-token distributions before a token is chosen.

  Mean           the mean of N prompts' probabilities (an ensemble; Lester et al. 2021, section 6)
  Experts        base + strength * (log p of an expert prompt - log p of an anti-expert prompt)
                 (DExperts, Liu et al. 2021, arXiv 2105.03023, section 2)
  Discriminator  base + strength * log p(attribute | text so far and the token), of the likeliest
                 tokens (FUDGE, Yang and Klein 2021, arXiv 2104.05218, section 3)
  Gradients      the decoder's cached keys and values follow the gradient of an attribute model
                 (PPLM, Dathathri et al. 2020, arXiv 1912.02164, section 3.2)

All read the same frozen T5. At strength 0 each gives the base logits themselves. A steering is a
pytree, so that strengths and attribute models are arguments of a compiled program, not parts of it.
Rows are those of `generation.py`: R = B * N * beams.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from prompt_tuning.t5 import DecoderCache


class Steering(Protocol):
  """Attributes:
    copies: N, rows that the model reads for one input.
    looks_ahead: positions beyond the text that it reads, for which the cache needs room.
  """

  copies: int
  looks_ahead: int

  def start(self, reader: Any, cache: DecoderCache) -> Any:
    """The state of decoding, from the cache of the R rows."""

  def next_logits(self, reader: Any, last: Array, state: Any) -> tuple[Array, Any]:
    """Token ids `[R, 1]` and the state -> logits `[B * beams, V]`, and the state."""


@struct.dataclass
class AttributeHead:
  """A linear classifier on the mean of the decoder's outputs over a text.

  Attributes:
    kernel: `[D, C]`.  bias: `[C]`.
  """

  kernel: Array
  bias: Array

  def log_probs(self, mean: Array) -> Array:
    """`[..., D]` -> `[..., C]`."""
    return jax.nn.log_softmax(mean.astype(jnp.float32) @ self.kernel
                              + jnp.expand_dims(self.bias, range(mean.ndim - 1)))


class _OfCopies:
  """A steering whose state is the cache alone, and which combines the logits of copies."""

  copies: int
  looks_ahead = 0

  def start(self, reader: Any, cache: DecoderCache) -> DecoderCache:
    return cache

  def next_logits(self, reader: Any, last: Array, state: DecoderCache) -> tuple[Array, Any]:
    logits, _, state = reader.step(last, state)
    inputs = state.cross_key.shape[1] // self.copies
    by_copy = logits.reshape(inputs, self.copies, -1, logits.shape[-1]).swapaxes(0, 1)
    # [N, B * beams, V]
    by_copy = by_copy.reshape(self.copies, -1, logits.shape[-1])
    return self.combine(by_copy), state

  def combine(self, logits: Array) -> Array:
    """`[N, B * beams, V]` -> `[B * beams, V]`."""
    raise NotImplementedError


@struct.dataclass
class Mean(_OfCopies):
  """Attributes: copies: N prompts."""

  copies: int = struct.field(pytree_node=False)

  def combine(self, logits: Array) -> Array:
    if self.copies == 1:
      return logits[0]
    total = jax.nn.logsumexp(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=0)
    return total - jnp.log(jnp.float32(self.copies))


@struct.dataclass
class Experts(_OfCopies):
  """The copies are the base, the expert and, where there is one, the anti-expert.

  Attributes:
    strength: a number; without an anti-expert the base stands for it, so that 0 is the base and 1
      the expert.
    copies: 2 or 3.
  """

  strength: Array
  copies: int = struct.field(pytree_node=False, default=3)

  def combine(self, logits: Array) -> Array:
    base = logits[0].astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    against = log_probs[2] if self.copies == 3 else log_probs[0]
    return base + self.strength * (log_probs[1] - against)


@struct.dataclass
class _Read:
  """Attributes:
    cache: of the decoder.
    total: `[R, D]`, sum of the decoder's outputs so far.
    plain: the cache that no gradient has touched (`Gradients`), or None.
  """

  cache: DecoderCache
  total: Array
  plain: DecoderCache | None = None


def _nothing_read(head: AttributeHead, reader: Any, cache: DecoderCache) -> _Read:
  width = head.kernel.shape[0]
  return _Read(cache, jnp.zeros((len(reader.tokens), width), jnp.float32))


@struct.dataclass
class Discriminator:
  """Attributes:
    head: the attribute model.
    attribute: int32, the class that is wanted.
    strength: a number.
    candidates: k likeliest tokens that are judged; the others count as the worst of them.
  """

  head: AttributeHead
  attribute: Array
  strength: Array
  candidates: int = struct.field(pytree_node=False, default=20)

  copies = 1
  looks_ahead = 1

  def start(self, reader: Any, cache: DecoderCache) -> _Read:
    return _nothing_read(self.head, reader, cache)

  def next_logits(self, reader: Any, last: Array, state: _Read) -> tuple[Array, _Read]:
    logits, output, cache = reader.step(last, state.cache)
    total = state.total + output.astype(jnp.float32)
    _, ids = jax.lax.top_k(logits, min(self.candidates, logits.shape[-1]))
    # A further step for each candidate, from one cache.
    _, after, _ = jax.vmap(lambda token: reader.step(token[:, None], cache))(ids.T)
    mean = (total[None] + after.astype(jnp.float32)) / (cache.index + 1)
    judged = self.head.log_probs(mean)[..., self.attribute].T  # [R, k]
    worst = jnp.min(judged, axis=-1, keepdims=True)
    bonus = jnp.broadcast_to(worst, logits.shape)
    bonus = bonus.at[jnp.arange(len(ids))[:, None], ids].set(judged)
    return logits.astype(jnp.float32) + self.strength * bonus, _Read(cache, total)


@struct.dataclass
class Gradients:
  """Before each token, `steps` times: the cached keys and values of the text so far and of the
  input move by `strength`, in a row's L2 norm, along the gradient of
  log p(attribute | text so far) - kl * KL(changed | plain next-token distribution).

  Attributes:
    head, attribute, strength: as of `Discriminator`.
    kl: weight of the divergence from the plain model.
    fusion: 1 generates from the changed model, 0 from the plain one; between them the geometric
      mean (the paper's gamma_gm).
    steps: updates a token.
  """

  head: AttributeHead
  attribute: Array
  strength: Array
  kl: Array
  fusion: Array
  steps: int = struct.field(pytree_node=False, default=3)

  copies = 1
  looks_ahead = 0

  def start(self, reader: Any, cache: DecoderCache) -> _Read:
    return _nothing_read(self.head, reader, cache).replace(plain=cache)

  def next_logits(self, reader: Any, last: Array, state: _Read) -> tuple[Array, _Read]:
    base, _, plain = reader.step(last, state.plain)
    reference = jax.nn.log_softmax(base.astype(jnp.float32))

    def objective(cache: DecoderCache) -> Array:
      logits, output, _ = reader.step(last, cache)
      log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
      mean = (state.total + output.astype(jnp.float32)) / (cache.index + 1)
      wanted = self.head.log_probs(mean)[:, self.attribute]
      divergence = jnp.sum(jnp.exp(log_probs) * (log_probs - reference), axis=-1)
      return jnp.sum(wanted - self.kl * divergence)

    cache = state.cache
    for _ in range(self.steps):
      past = {name: getattr(cache, name) for name in _PAST}
      slope = jax.grad(lambda past, cache=cache: objective(cache.replace(**past)))(past)
      # Of each row, over all of its layers, positions and heads.
      norm = jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(0, 2, 3, 4))
                          for x in slope.values()))
      size = (self.strength / jnp.maximum(norm, 1e-12))[None, :, None, None, None]
      cache = cache.replace(**{name: past[name] + (size * x).astype(x.dtype)
                               for name, x in slope.items()})
    changed, output, cache = reader.step(last, cache)
    base = base.astype(jnp.float32)
    logits = base + self.fusion * (changed.astype(jnp.float32) - base)
    return logits, _Read(cache, state.total + output.astype(jnp.float32), plain)


_PAST = ("self_key", "self_value", "cross_key", "cross_value")
