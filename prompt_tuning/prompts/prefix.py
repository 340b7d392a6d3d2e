"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190, sections 4.2 and 4.3), right on T5.

P trained keys and values a layer, ahead of those that a layer computes itself, in the encoder's
self-attention, the decoder's self-attention and the cross-attention.

Convention for T5, whose only positions are relative: a prefix stands nowhere. Every query sees it
(no mask, the causal one included), no relative bias is added to its logits, and the bias between
real tokens is that of the plain model.

Trains, for each kind of attention (`encoder`, `decoder`, `cross`), an embedding [P, D] and an MLP
of one hidden layer of M tanh units, D -> M -> L * 2 * H * K with biases: the paper found direct
optimisation unstable (section 4.3). With hidden=None trains what is served.
Serves:  prompt/KIND [L, 2, P, H, K]: keys, then values; [N, L, 2, P, H, K] for a bank. The MLP is
folded into it.

Cost, in operations of matrix products of a train step, beyond the frozen model's forward and
backward pass; J = H * K, Q = S in the encoder and U in the decoder, L the layers of the kind's
stack:

  12 B Q P J L               a kind of attention: its 2 products, and 4 in the backward pass
  6 P M (D + 2 J L) N        a kind's MLP, which does not depend on the batch

Without `encoder` nothing before the decoder is trained: the encoder has no backward pass.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.nn import initializers

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import KeyValues, PromptContext, PromptValues, StackValues
from prompt_tuning.prompts.initializers import Sources, token_ids
from prompt_tuning.prompts.method import PromptMethod

# Keys and values start near 0: T5's logits are not scaled by K^-0.5, so keys of size 1 would take
# most of the attention from the words before anything is learned, and values of size 1 would fill
# it with noise. Not 0 itself, where all P rows of a layer would stay the same.
_START = initializers.normal(0.02)


class PrefixPrompt(PromptMethod):
  """Keys and values ahead of each layer's own.

  Without `words`, the direct form starts from N(0, 0.02^2), the MLP form with N(0, 1) embeddings,
  kernels of variance 1 / fan-in and biases 0.

  Attributes:
    length: P.
    encoder, decoder, cross: whether there is a prefix in the encoder's self-attention, in the
      decoder's, and in the cross-attention.
    hidden: M, units of the MLP; None trains keys and values directly.
    words: start from the keys and values that these words leave in the frozen model, repeated to P
      tokens (section 4.3; it helps with little data).
    num_prompts: N; above 1 there is a bank, and every row of a batch names its prompt.
  """

  length: int
  encoder: bool = True
  decoder: bool = True
  cross: bool = True
  hidden: int | None = None
  words: str | None = None
  num_prompts: int = 1

  def __post_init__(self):
    for name, macro in (("length", "PROMPT_LENGTH=10"), ("num_prompts", "NUM_PROMPTS=1"),
                        ("hidden", "PREFIX_HIDDEN=512")):
      value = getattr(self, name)
      if not (isinstance(value, int) and value >= 1 or name == "hidden" and value is None):
        raise UserError(f"PrefixPrompt.{name} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more", fix=f"--gin.{macro}")
    if not (self.encoder or self.decoder or self.cross):
      raise UserError("A prefix in no attention trains nothing",
                      found="encoder, decoder and cross are all off", wanted="at least one of them",
                      fix="--gin.PREFIX_ENCODER=True")
    if self.words is not None and self.hidden is not None and self.hidden + 1 < self.length:
      raise UserError("The MLP is too narrow to start from words",
                      found=f"hidden = {self.hidden} for {self.length} vectors",
                      wanted=f"hidden >= {self.length - 1}, to give any P keys and values",
                      fix=f"--gin.PREFIX_HIDDEN={self.length - 1}, or PREFIX_HIDDEN=None")
    super().__post_init__()

  def layers_by_kind(self) -> dict[str, int]:
    """L of the stack, of each kind of attention that has a prefix."""
    layers = {"encoder": self.config.num_encoder_layers, "decoder": self.config.num_decoder_layers,
              "cross": self.config.num_decoder_layers}
    return {kind: layers[kind] for kind in layers if getattr(self, kind)}

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    made = {}
    for kind, layers in self.layers_by_kind().items():
      table = self._direct(kind, layers) if self.hidden is None else (
        self._folded(self._mlp(kind, layers, self.hidden)))
      # [L, B or 1, P, H, K]
      key, value = (jnp.moveaxis(self.choose(table[:, :, i], context), 1, 0) for i in (0, 1))
      made[kind] = KeyValues(key, value)
    return PromptValues(
      encoder=StackValues(self_kv=made.get("encoder")),
      decoder=StackValues(self_kv=made.get("decoder"), cross_kv=made.get("cross")))

  # Flax takes a model that is made inside a module's method for a part of that module.
  @nn.nowrap
  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    if self.words is None:
      return params
    if sources.activations is None:
      raise UserError("A prefix that starts from words needs the backbone's weights",
                      found="none were given", wanted="a model to run the words through",
                      fix="--gin.PREFIX_TEXT=None starts from random numbers")
    found = sources.activations(
      np.resize(token_ids(self.words, sources), self.length).tolist())
    params = dict(params)
    for kind in self.layers_by_kind():
      # [L, 2, P, H, K]
      wanted = np.stack([np.asarray(x, np.float32)[:, 0] for x in (
        found[kind].key, found[kind].value)], axis=1)
      if self.hidden is None:
        params[kind] = jnp.asarray(np.broadcast_to(wanted, params[kind].shape))
      else:
        params |= self._last_layer(kind, params, wanted)
    return params

  def served(self) -> "PrefixPrompt":
    return self.clone(hidden=None, words=None)

  def fold(self, params: dict) -> dict:
    if self.hidden is None:
      return params
    banks = {kind: self._folded({name: params[f"{kind}_{name}"] if self.num_prompts > 1
                                 else params[f"{kind}_{name}"][None] for name in _MLP_LEAVES})
             for kind in self.layers_by_kind()}
    return {kind: bank if self.num_prompts > 1 else bank[0] for kind, bank in banks.items()}

  def _direct(self, kind: str, layers: int) -> Array:
    """`[N, L, 2, P, H, K]`."""
    return self._leaf(kind, _START, ("layers", "kv", "prompt", "heads", "kv_dim"),
                      (layers, 2, self.length, self.config.num_heads, self.config.head_dim))

  def _mlp(self, kind: str, layers: int, hidden: int) -> dict[str, Array]:
    """One kind's leaves, with the bank's axis in front."""
    width, joined = self.config.emb_dim, self.config.num_heads * self.config.head_dim
    zeros = initializers.zeros
    leaves: dict[str, Any] = {
      "embedding": (initializers.normal(1.0), ("prompt", "prompt_embed"), (self.length, width)),
      "kernel_in": (_fan_in, ("prompt_embed", "hidden"), (width, hidden)),
      "bias_in": (zeros, ("hidden",), (hidden,)),
      "kernel_out": (_fan_in, ("layers", "kv", "hidden", "joined_kv"), (layers, 2, hidden, joined)),
      "bias_out": (zeros, ("layers", "kv", "joined_kv"), (layers, 2, joined))}
    return {name: self._leaf(f"{kind}_{name}", *leaf) for name, leaf in leaves.items()}

  def _leaf(self, name: str, init: Any, axes: tuple[str, ...], shape: tuple[int, ...]) -> Array:
    """A parameter, which has a bank's axis only in a bank; returned with it."""
    if self.num_prompts > 1:
      axes, shape = ("prompt_bank", *axes), (self.num_prompts, *shape)
    leaf = self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return leaf if self.num_prompts > 1 else leaf[None]

  def _folded(self, mlp: dict[str, Array]) -> Array:
    """One kind's MLP, with the bank's axis -> `[N, L, 2, P, H, K]`."""
    # Exact products: what is served must be what was trained, on any device.
    exact = lax.Precision.HIGHEST
    units = jnp.einsum("npd,ndm->npm", mlp["embedding"], mlp["kernel_in"], precision=exact)
    units = jnp.tanh(units + mlp["bias_in"][:, None])
    joined = jnp.einsum("npm,nlcmj->nlcpj", units, mlp["kernel_out"], precision=exact)
    joined = joined + mlp["bias_out"][:, :, :, None]
    return joined.reshape(*joined.shape[:4], self.config.num_heads, self.config.head_dim)

  def _last_layer(self, kind: str, params: dict, wanted: np.ndarray) -> dict:
    """The second layer with which the MLP gives `wanted`: the smallest of those that do.

    P equations in M + 1 unknowns, since the bias is one; tanh of random numbers has full rank.
    """
    mlp = {name: np.asarray(params[f"{kind}_{name}"], np.float64) for name in _MLP_LEAVES}
    units = np.tanh(mlp["embedding"] @ mlp["kernel_in"] + mlp["bias_in"][..., None, :])
    units = np.concatenate([units, np.ones((*units.shape[:-1], 1))], axis=-1)
    # [N, 1, 1, M + 1, P] times [L, 2, P, J].
    inverse = np.linalg.pinv(units)[..., None, None, :, :]
    solved = (inverse @ wanted.reshape(*wanted.shape[:3], -1)).astype(np.float32)
    return {f"{kind}_kernel_out": jnp.asarray(solved[..., :-1, :]),
            f"{kind}_bias_out": jnp.asarray(solved[..., -1, :])}


_MLP_LEAVES = ("embedding", "kernel_in", "bias_in", "kernel_out", "bias_out")


def _fan_in(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """Variance 1 / fan-in; the axes before the last two are separate kernels."""
  return initializers.variance_scaling(1.0, "fan_in", "truncated_normal",
                                       batch_axis=tuple(range(len(shape) - 2)))(key, shape, dtype)
