"""Three prompt methods that exist in the tests only: the proof that the hooks carry a new method.

Each is what a file in prompts/ would be: a Flax module that returns `PromptValues`, its parameters
under `prompt/`, and nothing about it in the backbone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from prompt_tuning.interfaces import (
  KeyValues,
  PromptContext,
  PromptValues,
  StackValues,
)
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.method import PromptMethod


class DummyPrompt(PromptMethod):
  """What the three have in common; no virtual tokens.

  Attributes:
    length: P.
    num_prompts: N of a bank.
  """

  length: int = 3
  num_prompts: int = 1

  def leaf(self, name: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    return self.param(name, init, shape, jnp.float32)

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    leaves, structure = jax.tree.flatten(params)
    # One draw, because each new shape is compiled.
    numbers = np.asarray(0.1 * jax.random.normal(key, (sum(leaf.size for leaf in leaves),)))
    pieces = np.split(numbers, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return structure.unflatten(
      [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)])


class KeyValuePrompt(DummyPrompt):
  """Keys and values ahead of all three kinds of attention, [N, L, 2, P, H, K] each."""

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    config = self.config

    def values(name: str, layers: int) -> KeyValues:
      shape = (self.num_prompts, layers, 2, self.length, config.num_heads, config.head_dim)
      table = self.leaf(name, ("prompt_bank", "layers", "kv", "prompt", "heads", "kv_dim"), shape)
      ids = context.prompt_ids
      table = table[:1] if self.num_prompts == 1 or ids is None else jnp.take(table, ids, axis=0)
      return KeyValues(jnp.moveaxis(table[:, :, 0], 1, 0), jnp.moveaxis(table[:, :, 1], 1, 0))

    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    return PromptValues(
      encoder=StackValues(self_kv=values("encoder", encoder)),
      decoder=StackValues(self_kv=values("decoder", decoder), cross_kv=values("cross", decoder)))


@struct.dataclass
class AddProduct:
  """A hook on a projection: `y + x A B`."""

  a: Array
  b: Array

  def __call__(self, x: Array, project: Callable[[Array], Array]) -> Array:
    return project(x) + jnp.dot(jnp.dot(x, self.a.astype(x.dtype)), self.b.astype(x.dtype))


class ProductPrompt(DummyPrompt):
  """A product of rank R beside kernels of both stacks, [L, in, R] and [L, R, out]."""

  rank: int = 2

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    config = self.config
    joined = config.num_heads * config.head_dim
    shapes = {"query": (config.emb_dim, joined), "key": (config.emb_dim, joined),
              "value": (config.emb_dim, joined), "out": (joined, config.emb_dim),
              "wi_0": (config.emb_dim, config.mlp_dim), "wo": (config.mlp_dim, config.emb_dim)}

    def hooks(stack: str, layers: int, projections: tuple[str, ...]) -> StackValues:
      made = {}
      for projection in projections:
        into, out = shapes[projection.split("/")[1]]
        name = f"{stack}.{projection.replace('/', '.')}"
        made[projection] = AddProduct(
          self.leaf(name + ".a", ("layers", "in", "rank"), (layers, into, self.rank)),
          self.leaf(name + ".b", ("layers", "rank", "out"), (layers, self.rank, out)))
      return StackValues(projections=made)

    return PromptValues(
      encoder=hooks("encoder", config.num_encoder_layers,
                    ("attention/query", "attention/value", "mlp/wi_0")),
      decoder=hooks("decoder", config.num_decoder_layers,
                    ("self_attention/key", "self_attention/out", "encoder_decoder_attention/query",
                     "encoder_decoder_attention/key", "encoder_decoder_attention/value", "mlp/wo")))


@struct.dataclass
class AddVector:
  """A block hook: adds a vector where the input holds a token; the decoder's ids are not given."""

  vector: Array

  def __call__(self, x: Array, tokens: Array | None) -> Array:
    added = self.vector.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)
    return x + added if tokens is None else jnp.where((tokens != 0)[..., None], x + added, x)


class BlockInputPrompt(DummyPrompt):
  """A vector on the input of every block of both stacks, [L, D]."""

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    def values(stack: str, layers: int) -> StackValues:
      shape = (layers, self.config.emb_dim)
      return StackValues(block_input=AddVector(self.leaf(stack, ("layers", "embed"), shape)))

    return PromptValues(encoder=values("encoder", self.config.num_encoder_layers),
                        decoder=values("decoder", self.config.num_decoder_layers))


def merged(backbone: dict, prompt: dict) -> dict:
  """The scanned backbone, flat, with every product of a `ProductPrompt` added to its kernel."""
  flat = dict(backbone)
  for name in [n.removesuffix(".a") for n in prompt if n.endswith(".a")]:
    stack, module, projection = name.split(".")
    path = f"{stack}/layers/{module}/{projection}/kernel"
    flat[path] = flat[path] + prompt[name + ".a"] @ prompt[name + ".b"]
  return flat
