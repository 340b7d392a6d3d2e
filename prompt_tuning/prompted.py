"""A T5 with any prompt method in front of it, behind the call surface that T5X's models use.

Parameters are `{"backbone": ..., "prompt": ...}`. The prompt module returns `PromptValues`; this
module places the embeddings where the input holds negative ids and hands the rest to the stacks.

Lester et al. 2021 (arXiv 2104.08691), section 2: the prompt is concatenated ahead of the embedded
input and the whole passes through the encoder, so positions are plainly 0 ... P+T-1.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import KeyValues, PromptContext, PromptValues, T5Config
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.method import virtual_rows
from prompt_tuning.t5 import T5, DecoderCache


class PromptedT5(nn.Module):
  """Backbone and prompt.

  Attributes:
    backbone: the T5.
    prompt: a `prompts.method.PromptMethod`; None is the plain model.
    prompt_in_front: virtual tokens are the first P ids of every row, which is compiled as a
      concatenation. False: they may stand anywhere.
  """

  backbone: T5
  prompt: Any = None
  prompt_in_front: bool = True

  @property
  def num_virtual_tokens(self) -> int:
    return 0 if self.prompt is None else self.prompt.num_virtual_tokens

  @property
  def has_dropout(self) -> bool:
    """Whether training draws what it drops."""
    return self.backbone.config.dropout_rate > 0 or (
      self.prompt is not None and self.prompt.has_dropout)

  def prompt_values(self, tokens: Array, prompt_ids: Array | None = None,
                    enable_dropout: bool = False) -> PromptValues:
    if self.prompt is None:
      return PromptValues()
    embedded = self.backbone.embed(tokens) if self.prompt.reads_input else None
    return self.prompt(PromptContext(prompt_ids=prompt_ids, tokens=tokens, embedded=embedded),
                       enable_dropout)

  def encode(self, encoder_input_tokens: Array, encoder_segment_ids: Array | None = None,
             enable_dropout: bool = False, prompt_ids: Array | None = None) -> Array:
    """`[B, S]` ids, virtual ones included -> `[B, S, D]`."""
    values = self.prompt_values(encoder_input_tokens, prompt_ids, enable_dropout)
    x = self._embed(encoder_input_tokens, values.embeds)
    return self.backbone.encoder(x, encoder_input_tokens, encoder_segment_ids, values.encoder,
                                 enable_dropout)

  def decode(self, encoded: Array, encoder_input_tokens: Array, decoder_input_tokens: Array,
             decoder_target_tokens: Array | None = None,
             encoder_segment_ids: Array | None = None, decoder_segment_ids: Array | None = None,
             decoder_positions: Array | None = None, decode: bool = False,
             enable_dropout: bool = True, max_decode_length: int | None = None,
             prompt_ids: Array | None = None) -> Array:
    """Decoder logits `[B, U, V]`, float32.

    Args:
      encoded: `[B, S, D]`.
      encoder_input_tokens: `[B, S]`, for the mask.
      decoder_input_tokens: `[B, U]`; with `decode` one token a call, `[B, 1]`.
      decoder_target_tokens, decoder_positions: of T5X's surface; T5 needs neither, since the
        causal mask hides padding and positions are relative.
      decode: read and write self-attention in the `cache` collection (T5X's way; our own
        decoding passes `DecoderCache` by value through `start_decoding` and `decode_step`).
      max_decode_length: U of that cache when it is made.
    """
    del decoder_target_tokens, decoder_positions
    if decode:
      return self._decode_in_collection(encoded, encoder_input_tokens, decoder_input_tokens,
                                        max_decode_length, prompt_ids)
    values = self.prompt_values(encoder_input_tokens, prompt_ids, enable_dropout)
    x = self.backbone.embed(decoder_input_tokens)
    x = self.backbone.decoder(x, encoded, encoder_input_tokens, values.decoder,
                              encoder_segment_ids, decoder_segment_ids, enable_dropout)
    return self._logits(values, x, decoder_input_tokens, jnp.arange(x.shape[1]))

  def __call__(self, encoder_input_tokens: Array, decoder_input_tokens: Array,
               decoder_target_tokens: Array | None = None,
               encoder_segment_ids: Array | None = None, decoder_segment_ids: Array | None = None,
               encoder_positions: Array | None = None, decoder_positions: Array | None = None, *,
               enable_dropout: bool = True, decode: bool = False,
               prompt_ids: Array | None = None) -> Array:
    """Teacher-forced logits `[B, U, V]`, float32."""
    del encoder_positions
    encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout, prompt_ids)
    return self.decode(encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens,
                       encoder_segment_ids, decoder_segment_ids, decoder_positions, decode,
                       enable_dropout, None, prompt_ids)

  def start_decoding(self, encoder_input_tokens: Array, max_decode_length: int,
                     prompt_ids: Array | None = None) -> DecoderCache:
    """Encodes `[B, S]` and computes the cross-attention keys and values."""
    values = self.prompt_values(encoder_input_tokens, prompt_ids)
    encoded = self.encode(encoder_input_tokens, prompt_ids=prompt_ids)
    return self.backbone.decoder.start(encoded, encoder_input_tokens, values.decoder,
                                       max_decode_length)

  def decode_step(self, tokens: Array, cache: DecoderCache, encoder_input_tokens: Array,
                  prompt_ids: Array | None = None) -> tuple[Array, DecoderCache]:
    """`[B, 1]` ids at position `cache.index` -> logits `[B, V]` of the next, and the cache."""
    logits, _, cache = self.decode_states(tokens, cache, encoder_input_tokens, prompt_ids)
    return logits, cache

  def decode_states(self, tokens: Array, cache: DecoderCache, encoder_input_tokens: Array,
                    prompt_ids: Array | None = None) -> tuple[Array, Array, DecoderCache]:
    """`decode_step` that gives the decoder's output `[B, D]` too: logits, output, cache."""
    values = self.prompt_values(encoder_input_tokens, prompt_ids)
    position = cache.index[None]
    x, cache = self.backbone.decoder.step(self.backbone.embed(tokens), values.decoder, cache)
    return self._logits(values, x, tokens, position)[:, 0], x[:, 0], cache

  def _logits(self, values: PromptValues, x: Array, tokens: Array, positions: Array) -> Array:
    if values.output is None:
      return self.backbone.logits(x)
    return values.output(x, tokens, positions, self.backbone.logits)

  def _embed(self, tokens: Array, embeds: Array | None) -> Array:
    if embeds is None:
      return self.backbone.embed(tokens)
    if embeds.ndim == 2:
      embeds = embeds[None]
    if self.prompt_in_front:
      length = embeds.shape[1]
      real = self.backbone.embed(tokens[:, length:])
      ahead = jnp.broadcast_to(embeds, (tokens.shape[0], *embeds.shape[1:]))
      return jnp.concatenate([ahead.astype(real.dtype), real], axis=1)
    real = self.backbone.embed(tokens)
    virtual = virtual_rows(tokens, embeds)
    return jnp.where((tokens < 0)[..., None], virtual.astype(real.dtype), real)

  @nn.compact
  def _decode_in_collection(self, encoded: Array, encoder_input_tokens: Array,
                            decoder_input_tokens: Array, max_decode_length: int | None,
                            prompt_ids: Array | None) -> Array:
    """T5X's cached decoding: zeros when the cache is made, then one token's logits a call.

    T5X makes the cache with a batch of ones and hands `encoded` to every step, so the collection
    holds self-attention only; XLA lifts the cross-attention's keys and values out of its loop.
    """
    made = self.has_variable("cache", "cached_key")
    values = self.prompt_values(encoder_input_tokens, prompt_ids)
    cache = self.backbone.decoder.start(encoded, encoder_input_tokens, values.decoder,
                                        max_decode_length or decoder_input_tokens.shape[1])
    key = self.variable("cache", "cached_key", lambda: cache.self_key)
    value = self.variable("cache", "cached_value", lambda: cache.self_value)
    index = self.variable("cache", "cache_index", lambda: cache.index)
    if not made:
      shape = (*decoder_input_tokens.shape, self.backbone.config.vocab_size)
      return jnp.zeros(shape, jnp.float32)
    cache = cache.replace(self_key=key.value, self_value=value.value, index=index.value)
    logits, cache = self.decode_step(decoder_input_tokens, cache, encoder_input_tokens, prompt_ids)
    key.value, value.value, index.value = cache.self_key, cache.self_value, cache.index
    return logits[:, None]


def init_backbone(key: Array, config: T5Config) -> dict:
  """A random backbone tree, without logical-axis boxes."""
  return nn.meta.unbox(_init_boxed(PromptedT5(T5(config)), key))["backbone"]


def abstract_params(model: PromptedT5) -> dict:
  """The parameter tree as shapes; nothing is allocated."""
  return nn.meta.unbox(_boxed_shapes(model))


def logical_axes(model: PromptedT5) -> dict:
  """The parameter tree as `PartitionSpec`s of logical axis names."""
  return nn.get_partition_spec(_boxed_shapes(model))


def init_prompt(key: Array, model: PromptedT5, sources: Sources) -> dict:
  """The prompt's tree `prompt/...`; initialisers that need weights read them from `sources`.

  Raises:
    UserError: the prompt was built for another width than the backbone's.
  """
  if model.prompt is None:
    return {}
  # The prompt alone: a backbone made only to be dropped would not fit beside the real one.
  tokens = jnp.ones((1, model.num_virtual_tokens + 1), jnp.int32)
  embedded = jnp.zeros((*tokens.shape, model.prompt.config.emb_dim))
  context = PromptContext(tokens=tokens, embedded=embedded if model.prompt.reads_input else None)
  params = nn.meta.unbox(model.prompt.init({"params": key}, context, False))["params"]
  if sources.embedding.shape[1] != model.prompt.config.emb_dim:
    raise UserError("The prompt and the backbone differ in width",
                    found=f"prompt D = {model.prompt.config.emb_dim}",
                    wanted=f"D = {sources.embedding.shape[1]}",
                    fix="use one models/*.gin file for both")
  return model.prompt.initial_params(key, params, sources)


def one_of_bank(model: PromptedT5, row: int, prompt: dict) -> tuple[Any, dict]:
  """One prompt of a bank: the method of one, and its parameters.

  Args:
    row: n, which prompt.
    prompt: the bank's tree `prompt/...`; leaves without its axis serve all prompts.
  """
  method = model.prompt.of_one()
  axes = trees.flatten(logical_axes(model)["prompt"])
  shapes = trees.flatten(abstract_params(model.clone(prompt=method))["prompt"])

  def own(path: str, leaf: Array) -> Array:
    if "prompt_bank" not in axes[path]:
      return leaf
    return jnp.take(leaf, row, axis=axes[path].index("prompt_bank")).reshape(shapes[path].shape)

  return method, trees.map_with_path(own, prompt)


@functools.lru_cache(maxsize=4)
def _boxed_shapes(model: PromptedT5) -> dict:
  """Shapes and logical axes; a run asks several times, and each answer is a trace."""
  return jax.eval_shape(lambda key: _init_boxed(model, key), jax.random.key(0))


def _init_boxed(model: PromptedT5, key: Array) -> dict:
  tokens = jnp.ones((1, model.num_virtual_tokens + 1), jnp.int32)
  return model.init({"params": key}, tokens, tokens[:, :1], enable_dropout=False)["params"]


def activations(backbone: Mapping[str, Any], config: T5Config,
                ids: Sequence[int]) -> dict[str, KeyValues]:
  """The keys and values that words leave in each attention of a frozen T5.

  Args:
    ids: P tokens, which the encoder and the decoder read.

  Returns:
    `encoder`, `decoder` (its self-attention) and `cross`: `[L, 1, P, H, K]`.
  """
  tokens = jnp.asarray(ids, jnp.int32)[None]
  # Called by a prompt module too, which must not adopt it.
  _, found = PromptedT5(T5(config, parent=None), parent=None).apply(
    {"params": {"backbone": backbone}}, tokens, tokens, enable_dropout=False,
    mutable="intermediates")

  def of(stack: str, attention: str) -> KeyValues:
    layers = found["intermediates"]["backbone"][stack]
    pairs = layers["layers"][attention]["keys_values"] if config.scan_layers else jax.tree.map(
      lambda *x: jnp.stack(x), *(layers[f"layers_{i}"][attention]["keys_values"]
                                 for i in range(len(layers))))
    return KeyValues(*(x.swapaxes(2, 3) for x in pairs))

  return {"encoder": of("encoder", "attention"), "decoder": of("decoder", "self_attention"),
          "cross": of("decoder", "encoder_decoder_attention")}


def virtual_tokens(num: int) -> Array:
  """`[P]`: -1, -2, ..., -P."""
  return -1 - jnp.arange(num, dtype=jnp.int32)


def add_virtual_tokens(tokens: Array, num: int) -> Array:
  """`[B, T] -> [B, P + T]`, for callers whose batches have none (T5X)."""
  ahead = jnp.broadcast_to(virtual_tokens(num), (tokens.shape[0], num))
  return jnp.concatenate([ahead, tokens], axis=1)
