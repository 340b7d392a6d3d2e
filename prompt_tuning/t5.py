"""The frozen backbone: T5 1.0, 1.1, LM-adapted, mT5 and ByT5 from one `T5Config`.

Parameters (T5X's names; `[L, ...]` is the scanned layout, `layers_i` the other one):

  token_embedder/embedding [V, D]
  encoder/layers/{pre_attention_layer_norm, attention, pre_mlp_layer_norm, mlp}/...  [L, ...]
  encoder/{relpos_bias/rel_embedding [H, buckets], encoder_norm/scale [D]}
  decoder/layers/{pre_self_attention_layer_norm, self_attention, pre_cross_attention_layer_norm,
                  encoder_decoder_attention, pre_mlp_layer_norm, mlp}/...  [L, ...]
  decoder/{relpos_bias/rel_embedding, decoder_norm/scale, logits_dense/kernel [D, V]}

Nothing here knows a prompt method: the stacks take embeddings and `StackValues`.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import StackValues, T5Config, is_token
from prompt_tuning.layers import (
  MLP,
  SAVED_PROJECTION,
  Attention,
  Dense,
  Embed,
  RelativePositionBias,
  RMSNorm,
)
from prompt_tuning.partitioning import constrain


@struct.dataclass
class DecoderCache:
  """What a decode step reads and writes, passed by value.

  Attributes:
    self_key, self_value: `[L, B, H, U, K]`, filled up to `index`.
    cross_key, cross_value: `[L, B / n, H, S, K]`, computed and kept once an input, whose n beams
      stand together.
    encoder_mask: `[B / n, S]` bool.
    index: int32, the position of the next token.
  """

  self_key: Array
  self_value: Array
  cross_key: Array
  cross_value: Array
  encoder_mask: Array
  index: Array


@struct.dataclass
class Carry:
  """What one layer hands to the next: activations, and the self-attention cache when decoding.

  The cache travels in the carry and is updated in place: as a scan output it would be copied.
  """

  x: Array
  self_key: Array | None = None
  self_value: Array | None = None
  layer: Array | None = None


@struct.dataclass
class Shared:
  """What all layers of a stack read.

  Attributes:
    bias: `[1, H, Q, S]` of the self-attention.
    mask: of the self-attention, broadcastable to `[B, H, Q, S]`.
    tokens: `[B, S]` ids of the stack's input (for block hooks).
    encoded: `[B, S, D]`.
    cross_mask: `[B, 1, Q or 1, S]`.
    index: position of the token that is decoded.
  """

  bias: Array
  mask: Array
  tokens: Array | None = None
  encoded: Array | None = None
  cross_mask: Array | None = None
  index: Array | None = None


class EncoderLayer(nn.Module):
  """One encoder block; the calling convention is the layer scan's."""

  config: T5Config

  def setup(self):
    self.pre_attention_layer_norm = RMSNorm(self.config)
    self.attention = Attention(self.config)
    self.pre_mlp_layer_norm = RMSNorm(self.config)
    self.mlp = MLP(self.config)
    self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))

  def __call__(self, carry: Carry, values: StackValues, shared: Shared,
               enable_dropout: bool) -> tuple[Carry, None]:
    x = _enter(carry.x, values, shared)
    hooks = _hooks(values, "attention")
    normed = self.pre_attention_layer_norm(x)
    key, value = self.attention.keys_values(normed, hooks)
    y = self.attention(normed, key, value, shared.mask, shared.bias, hooks, values.self_kv,
                       enable_dropout)
    x = _residual(x + self.dropout(y, deterministic=not enable_dropout))
    y = self.mlp(self.pre_mlp_layer_norm(x), _hooks(values, "mlp"), enable_dropout)
    return carry.replace(x=_residual(x + self.dropout(y, deterministic=not enable_dropout))), None


class DecoderLayer(nn.Module):
  """One decoder block, teacher-forced or one cached step."""

  config: T5Config

  def setup(self):
    self.pre_self_attention_layer_norm = RMSNorm(self.config)
    self.self_attention = Attention(self.config)
    self.pre_cross_attention_layer_norm = RMSNorm(self.config)
    self.encoder_decoder_attention = Attention(self.config)
    self.pre_mlp_layer_norm = RMSNorm(self.config)
    self.mlp = MLP(self.config)
    self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))

  def __call__(self, carry: Carry, values: StackValues, cross: tuple[Array, Array] | None,
               shared: Shared, enable_dropout: bool, prefill: bool) -> tuple[Carry, Any]:
    """Args:
      cross: this layer's cached cross-attention keys and values; None computes them.
      prefill: only compute those keys and values, and return them.
    """
    cross_hooks = _hooks(values, "encoder_decoder_attention")
    if cross is None:
      cross = self.encoder_decoder_attention.keys_values(shared.encoded, cross_hooks)
    if prefill:
      return carry, cross
    x = _enter(carry.x, values, shared)
    hooks = _hooks(values, "self_attention")
    normed = self.pre_self_attention_layer_norm(x)
    key, value = self.self_attention.keys_values(normed, hooks)
    if carry.self_key is not None:
      carry, key, value = _cached(carry, key, value, shared.index)
    y = self.self_attention(normed, key, value, shared.mask, shared.bias, hooks, values.self_kv,
                            enable_dropout)
    x = _residual(x + self.dropout(y, deterministic=not enable_dropout))
    normed = self.pre_cross_attention_layer_norm(x)
    y = self.encoder_decoder_attention(normed, *cross, shared.cross_mask, None, cross_hooks,
                                       values.cross_kv, enable_dropout)
    x = _residual(x + self.dropout(y, deterministic=not enable_dropout))
    y = self.mlp(self.pre_mlp_layer_norm(x), _hooks(values, "mlp"), enable_dropout)
    return carry.replace(x=_residual(x + self.dropout(y, deterministic=not enable_dropout))), None


class Encoder(nn.Module):
  """`[B, S, D]` embeddings -> `[B, S, D]`."""

  config: T5Config

  def setup(self):
    self.relpos_bias = RelativePositionBias(self.config, bidirectional=True)
    if self.config.scan_layers:
      self.layers = _scanned(EncoderLayer, self.config, self.config.num_encoder_layers,
                             (0, nn.broadcast, nn.broadcast), static=(4,))
    else:
      layer = _remat(EncoderLayer, self.config, static=(4,))
      self.layers = [layer(self.config) for _ in range(self.config.num_encoder_layers)]
    self.encoder_norm = RMSNorm(self.config)
    self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))

  def __call__(self, x: Array, tokens: Array, segment_ids: Array | None, values: StackValues,
               enable_dropout: bool) -> Array:
    _check_projections(values, self.config, ("attention",))
    positions = jnp.arange(x.shape[1])
    mask = is_token(tokens)[:, None, None, :]
    if segment_ids is not None:
      mask = mask & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    shared = Shared(bias=self.relpos_bias(positions, positions), mask=mask, tokens=tokens)
    x = _residual(self.dropout(x, deterministic=not enable_dropout))
    carry, _ = _run(self.layers, self.config, Carry(x), (values,), (shared, enable_dropout))
    x = self.encoder_norm(carry.x)
    return self.dropout(x, deterministic=not enable_dropout)


class Decoder(nn.Module):
  """`[B, U, D]` embeddings and the encoder's output -> `[B, U, D]`, and logits of them."""

  config: T5Config

  def setup(self):
    self.relpos_bias = RelativePositionBias(self.config, bidirectional=False)
    if self.config.scan_layers:
      self.layers = _scanned(DecoderLayer, self.config, self.config.num_decoder_layers,
                             (0, 0, nn.broadcast, nn.broadcast, nn.broadcast), static=(5, 6))
    else:
      layer = _remat(DecoderLayer, self.config, static=(5, 6))
      self.layers = [layer(self.config) for _ in range(self.config.num_decoder_layers)]
    self.decoder_norm = RMSNorm(self.config)
    self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))
    if not self.config.logits_via_embedding:
      self.logits_dense = Dense(self.config, self.config.vocab_size, ("embed", "vocab"))

  def __call__(self, x: Array, encoded: Array, encoder_tokens: Array, values: StackValues,
               encoder_segment_ids: Array | None, decoder_segment_ids: Array | None,
               enable_dropout: bool) -> Array:
    _check_projections(values, self.config, ("self_attention", "encoder_decoder_attention"))
    positions = jnp.arange(x.shape[1])
    mask = (positions[:, None] >= positions[None, :])[None, None]
    cross_mask = is_token(encoder_tokens)[:, None, None, :]
    if decoder_segment_ids is not None and encoder_segment_ids is not None:
      mask = mask & (decoder_segment_ids[:, None, :, None] == decoder_segment_ids[:, None, None, :])
      cross_mask = cross_mask & (
        decoder_segment_ids[:, None, :, None] == encoder_segment_ids[:, None, None, :])
    shared = Shared(bias=self.relpos_bias(positions, positions), mask=mask, encoded=encoded,
                    cross_mask=cross_mask)
    x = _residual(self.dropout(x, deterministic=not enable_dropout))
    carry, _ = _run(self.layers, self.config, Carry(x), (values, None),
                    (shared, enable_dropout, False))
    return self.dropout(self.decoder_norm(carry.x), deterministic=not enable_dropout)

  def start(self, encoded: Array, encoder_tokens: Array, values: StackValues,
            max_length: int) -> DecoderCache:
    """Computes the cross-attention keys and values once; an empty self-attention cache."""
    config = self.config
    _check_projections(values, config, ("self_attention", "encoder_decoder_attention"))
    rows = encoded.shape[0]
    # Shared's other fields are unread in prefill.
    shared = Shared(bias=jnp.zeros(()), mask=jnp.zeros(()), encoded=encoded)
    _, (key, value) = _run(self.layers, config, Carry(encoded), (values, None),
                           (shared, False, True))
    empty = jnp.zeros((config.num_decoder_layers, rows, config.num_heads, max_length,
                       config.head_dim), key.dtype)
    return DecoderCache(self_key=empty, self_value=empty, cross_key=key, cross_value=value,
                        encoder_mask=is_token(encoder_tokens), index=jnp.zeros((), jnp.int32))

  def step(self, x: Array, values: StackValues, cache: DecoderCache) -> tuple[Array, DecoderCache]:
    """`[B, 1, D]` of the token at `cache.index` -> `[B, 1, D]`, and the cache after it."""
    positions = jnp.arange(cache.self_key.shape[3])
    shared = Shared(bias=self.relpos_bias(cache.index[None], positions),
                    mask=(positions <= cache.index)[None, None, None, :],
                    cross_mask=cache.encoder_mask[:, None, None, :], index=cache.index)
    carry = Carry(x, cache.self_key, cache.self_value, jnp.zeros((), jnp.int32))
    carry, _ = _run(self.layers, self.config, carry,
                    (values, (cache.cross_key, cache.cross_value)), (shared, False, False))
    return self.decoder_norm(carry.x), cache.replace(
      self_key=carry.self_key, self_value=carry.self_value, index=cache.index + 1)


class T5(nn.Module):
  """Encoder, decoder and the table they share.

  `prompted.PromptedT5` holds T5X's call surface; here every input is already an embedding.
  """

  config: T5Config

  def setup(self):
    self.token_embedder = Embed(self.config)
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def embed(self, tokens: Array) -> Array:
    return self.token_embedder(tokens)

  def logits(self, x: Array) -> Array:
    """`[..., D] -> [..., V]` in float32."""
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(x) * jnp.asarray(self.config.emb_dim**-0.5, x.dtype)
    else:
      logits = self.decoder.logits_dense(x)
    return constrain(logits.astype(jnp.float32), "batch", None, "vocab")


def _scanned(layer: type[nn.Module], config: T5Config, length: int, in_axes: tuple,
             static: tuple[int, ...]) -> nn.Module:
  return nn.scan(
    _remat(layer, config, static), variable_axes={"params": 0, "intermediates": 0},
    split_rngs={"params": True, "dropout": True}, in_axes=in_axes, length=length,
    metadata_params={nn.PARTITION_NAME: "layers"})(config)


def _remat(layer: type[nn.Module], config: T5Config, static: tuple[int, ...]) -> type[nn.Module]:
  """The layer class with the backward pass's recomputation that REMAT names."""
  name = config.remat_of("encoder" if layer is EncoderLayer else "decoder")
  if name == "none":
    return layer
  policy = None
  if name == "save_projections":
    policy = jax.checkpoint_policies.save_only_these_names(SAVED_PROJECTION)
  if name == "offload":
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[], names_which_can_be_offloaded=[SAVED_PROJECTION],
      offload_src="device", offload_dst="pinned_host")
  # Common subexpressions cannot be merged across scan steps anyway.
  return nn.remat(layer, policy=policy, prevent_cse=not config.scan_layers, static_argnums=static)


def _run(layers: Any, config: T5Config, carry: Carry, per_layer: tuple, shared: tuple) -> Any:
  """Runs a stack on per-layer inputs `[L, ...]`, scanned or one layer after the other."""
  if config.scan_layers:
    return layers(carry, *per_layer, *shared)
  outputs = []
  for i, layer in enumerate(layers):
    own = jax.tree.map(operator.itemgetter(i), per_layer)
    carry, output = layer(carry, *own, *shared)
    outputs.append(output)
  stacked = None if outputs[0] is None else jax.tree.map(lambda *x: jnp.stack(x), *outputs)
  return carry, stacked


def _residual(x: Array) -> Array:
  """The residual stream `[B, S, D]`, which all layers of a backward pass keep."""
  return constrain(x, "batch", "length", None)


def _enter(x: Array, values: StackValues, shared: Shared) -> Array:
  if values.block_input is None:
    return x
  return values.block_input(x, shared.tokens).astype(x.dtype)


def _check_projections(values: StackValues, config: T5Config, attentions: tuple[str, ...]) -> None:
  """Refuses a hook on a projection that no block has; it would never be called."""
  gates = len(config.mlp_activations)
  wi = ["wi"] if gates == 1 else [f"wi_{i}" for i in range(gates)]
  parts = {"mlp": [*wi, "wo"]} | {name: ["query", "key", "value", "out"] for name in attentions}
  known = [f"{module}/{name}" for module, names in parts.items() for name in names]
  for name in values.projections:
    if name not in known:
      raise UserError("A prompt method hooks a projection that no block has", found=name,
                      wanted="one of " + ", ".join(known), fix=nearest(name, known))


def _hooks(values: StackValues, module: str) -> dict[str, Any]:
  """The hooks on one module's projections, by the projection's own name."""
  return {name.split("/", 1)[1]: hook for name, hook in values.projections.items()
          if name.split("/", 1)[0] == module}


def _cached(carry: Carry, key: Array, value: Array,
            index: Array) -> tuple[Carry, Array, Array]:
  """Writes one position into the stacked cache and reads this layer's whole cache."""
  start = (carry.layer, 0, 0, index, 0)
  self_key = jax.lax.dynamic_update_slice(carry.self_key, key[None], start)
  self_value = jax.lax.dynamic_update_slice(carry.self_value, value[None], start)
  read_key = jax.lax.dynamic_index_in_dim(self_key, carry.layer, keepdims=False)
  read_value = jax.lax.dynamic_index_in_dim(self_value, carry.layer, keepdims=False)
  carry = carry.replace(self_key=self_key, self_value=self_value, layer=carry.layer + 1)
  return carry, read_key, read_value
