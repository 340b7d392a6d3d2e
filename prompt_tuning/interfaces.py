"""Shape letters, and the structs that the backbone, the prompts and the loop hand to each other.

Letters, the same in annotations, comments and einsums:

  B batch rows          T encoder input tokens     S encoder positions (P + T)
  U decoder tokens      P prompt (virtual) tokens  N prompts in a bank
  L layers of a stack   H heads                    K head dimension
  D embedding (model) dimension                    F MLP dimension
  V vocabulary          C classes                  R rank

A token id says what a position holds: `> 0` a real token, `0` padding, `-1-p` row p of the prompt.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError, nearest

PAD_ID = 0
EOS_ID = 1

DTYPES = ("float32", "bfloat16", "float16")
REMAT_POLICIES = ("none", "full", "save_projections", "offload")
ACTIVATIONS = ("relu", "gelu", "silu", "linear")


def is_token(tokens: Array) -> Array:
  """`[B, T]` ids -> bool mask of the positions that hold anything.

  The one mask helper: virtual tokens are negative, so `> 0` would hide the prompt.
  """
  return jnp.not_equal(tokens, PAD_ID)


class ProjectionHook(Protocol):
  """What a method does to one projection: `(x [..., in], project) -> y [..., out]`.

  `project` is the projection itself, `[..., in] -> [..., out]`; a hook may change what goes in and
  what comes out.
  """

  def __call__(self, x: Array, project: Callable[[Array], Array]) -> Array: ...


class BlockHook(Protocol):
  """What a method does to a block's input: `(x [B, S, D], tokens) -> x [B, S, D]`.

  `tokens` are the encoder's `[B, S]` ids; in the decoder they are None.
  """

  def __call__(self, x: Array, tokens: Array | None) -> Array: ...


class OutputHook(Protocol):
  """What a method does to the output layer: `(x, tokens, positions, project) -> logits [B, U, V]`.

  `x [B, U, D]` is the decoder's output, `tokens [B, U]` the decoder's input ids, `positions [U]`
  where they stand, `project` the output layer itself, `[B, U, D] -> [B, U, V]` float32.
  """

  def __call__(self, x: Array, tokens: Array, positions: Array,
               project: Callable[[Array], Array]) -> Array: ...


@struct.dataclass
class KeyValues:
  """Extra keys and values ahead of a layer's own; always attended, with no relative bias.

  Attributes:
    key, value: `[L, B or 1, P, H, K]` (no L once the layer scan has sliced them).
  """

  key: Array
  value: Array


@struct.dataclass
class StackValues:
  """What a prompt method adds to one stack. Every leaf has the layer axis L first.

  Hooks are pytrees (`flax.struct.dataclass` with `__call__`), so that the layer scan can slice
  them: a new method defines its own hook and edits nothing in the backbone.

  Attributes:
    self_kv: for the stack's self-attention.
    cross_kv: for the decoder's cross-attention.
    block_input: called on the input of each block.
    projections: by the projection's name in a block, e.g. `attention/query`, `mlp/wo`,
      `encoder_decoder_attention/value`.
  """

  self_kv: KeyValues | None = None
  cross_kv: KeyValues | None = None
  block_input: Any = None
  projections: Mapping[str, Any] = struct.field(default_factory=dict)


@struct.dataclass
class PromptValues:
  """Everything a prompt method contributes to one forward pass.

  Attributes:
    embeds: `[P, D]`, or `[B, P, D]` where rows differ; row p stands wherever the encoder's input
      holds id `-1-p`. None: no virtual tokens.
    encoder, decoder: per-layer values.
    output: an `OutputHook`.
  """

  embeds: Array | None = None
  encoder: StackValues = struct.field(default_factory=StackValues)
  decoder: StackValues = struct.field(default_factory=StackValues)
  output: Any = None


@struct.dataclass
class PromptContext:
  """What a prompt method may look at.

  Attributes:
    prompt_ids: `[B]` int32, which prompt of a bank each row uses; None: the only one.
    tokens: `[B, S]` the encoder's input ids.
    embedded: `[B, S, D]` the frozen embeddings of `tokens` (of no meaning at virtual tokens and
      padding), for methods that look at the input.
  """

  prompt_ids: Array | None = None
  tokens: Array | None = None
  embedded: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """The architecture of a T5, with T5X's field names.

  Attributes:
    vocab_size: V, rows of the embedding table (padded: 32,128 for T5's 32,100 pieces).
    emb_dim, num_heads, head_dim, mlp_dim: D, H, K, F.
    num_encoder_layers, num_decoder_layers: L of each stack.
    mlp_activations: ("gelu", "linear") is the gated MLP of T5 1.1, ("relu",) the MLP of T5 1.0.
    logits_via_embedding: T5 1.0 ties the output to the embedding and scales by D^-0.5.
    relative_attention_num_buckets, relative_attention_max_distance: of the shared bias.
    layer_norm_epsilon: below the root of the norms' mean square.
    dropout_rate: applied where T5 applies it, when dropout is enabled.
    dtype: of the computation.  param_dtype: of the parameters that `init` makes.
    scan_layers: one stacked leaf a kind (`encoder/layers/...`); else `encoder/layers_0/...`.
    remat: what the backward pass computes again: `none`, `full`, `save_projections` (all but the
      projections), `offload` (the same; they wait in the host's memory). Of each stack its own:
      `encoder=full,decoder=none`.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  logits_via_embedding: bool = False
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  dropout_rate: float = 0.0
  layer_norm_epsilon: float = 1e-6
  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_layers: bool = True
  remat: str = "none"

  def __post_init__(self):
    for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim",
                 "num_encoder_layers", "num_decoder_layers", "relative_attention_num_buckets"):
      if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
        raise UserError(f"T5Config.{name} is not a size", found=repr(getattr(self, name)),
                        wanted="a whole number, 1 or more", fix=f"set {name} in the model's file")
    for stack in ("encoder", "decoder"):
      self.remat_of(stack)
    for name, choices in (("dtype", DTYPES), ("param_dtype", DTYPES)):
      if getattr(self, name) not in choices:
        raise UserError(f"T5Config.{name} is unknown", found=repr(getattr(self, name)),
                        wanted="one of " + ", ".join(choices),
                        fix=nearest(str(getattr(self, name)), choices))
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    for activation in self.mlp_activations:
      if activation not in ACTIVATIONS:
        raise UserError("T5Config.mlp_activations has an unknown activation", found=activation,
                        wanted="of " + ", ".join(ACTIVATIONS), fix=nearest(activation, ACTIVATIONS))
    if not 0.0 <= self.dropout_rate < 1.0:
      raise UserError("T5Config.dropout_rate is not a probability", found=self.dropout_rate,
                      wanted="0 <= rate < 1", fix="set DROPOUT_RATE, 0.0 for prompts")

  def remat_of(self, stack: str) -> str:
    """The policy of `encoder` or `decoder`."""
    named = dict(part.strip().partition("=")[::2] for part in str(self.remat).split(","))
    apart = named.keys() == {"encoder", "decoder"}
    policy = named[stack] if apart else self.remat
    if policy not in REMAT_POLICIES:
      raise UserError("T5Config.remat is unknown", found=repr(self.remat),
                      wanted="one of " + ", ".join(REMAT_POLICIES) + ", or of each stack its own: "
                      "'encoder=full,decoder=none'", fix=nearest(str(policy), REMAT_POLICIES))
    return policy
