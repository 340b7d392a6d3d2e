"""What methods share that compute their virtual tokens from other parameters.

Letters as in `interfaces.py`. A method that ends in a table `[P, D]` trains a reparameterisation of
prompt tuning: `fold` computes the table once, and `soft.SoftPrompt` serves it.

Cost, in all of them: that of prompt tuning (the encoder runs over P more positions), and what the
method's own module states, once a step however many rows the batch has.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext
from prompt_tuning.prompts.initializers import Initializer, Uniform
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.prompts.soft import SoftPrompt


class VirtualTokens(PromptMethod):
  """Base of methods with virtual tokens.

  Attributes:
    length: P.
    initializer: where the table starts that the method starts from.
  """

  length: int
  initializer: Initializer = Uniform()

  def __post_init__(self):
    self.check_count("length", "PROMPT_LENGTH")
    super().__post_init__()

  @property
  def num_virtual_tokens(self) -> int:
    return self.length

  def check_count(self, name: str, macro: str) -> None:
    """Refuses a field that is no whole number above 0."""
    value = getattr(self, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise UserError(f"{type(self).__name__}.{name} is not a count", found=repr(value),
                      wanted="a whole number, 1 or more", fix=f"set {macro}")

  def leaf(self, name: str, axes: tuple[str, ...], shape: tuple[int, ...],
           init: nn.initializers.Initializer = nn.initializers.zeros) -> Array:
    """A float32 parameter with logical axes."""
    return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)

  def dense(self, name: str, x: Array, features: int) -> Array:
    """`[P, in] -> [P, features]` with bias; both start as torch.nn.Linear's."""
    init = uniform(x.shape[-1])
    kernel = self.leaf(f"{name}_kernel", ("in", "out"), (x.shape[-1], features), init)
    return x @ kernel + self.leaf(f"{name}_bias", ("out",), (features,), init)[None]

  def table(self) -> Array:
    """The parameter `embedding [P, D]`."""
    return self.leaf("embedding", ("prompt", "prompt_embed"), (self.length, self.config.emb_dim))


class FoldedTable(VirtualTokens):
  """Base of reparameterisations of a table, which `soft.SoftPrompt` serves."""

  def served(self) -> PromptMethod:
    # No parent: Flax would take it for a part of this module.
    return SoftPrompt(self.config, self.length, parent=None)

  def fold(self, params: dict) -> dict:
    return {"embedding": self.apply({"params": params}, PromptContext()).embeds}


def uniform(fan_in: int) -> nn.initializers.Initializer:
  """Uniform on [-n, n] with n = fan_in^-0.5."""
  def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -fan_in**-0.5, fan_in**-0.5)
  return init


def layer_norm(x: Array, scale: Array, offset: Array, epsilon: float = 1e-5) -> Array:
  """`[..., D]` to mean 0 and variance 1 over D, then scaled and moved (Ba et al. 2016)."""
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  scale, offset = (jnp.expand_dims(v, tuple(range(x.ndim - v.ndim))) for v in (scale, offset))
  return centred * jax.lax.rsqrt(variance + epsilon) * scale + offset
