"""`PromptedT5` behind the calls, names and axes that T5X's models expect.

T5X's batches hold real tokens only, so the virtual ones are put ahead here. Where there is a bank,
the first column of the encoder's tokens is not a token but `-1-n`, the row's prompt: it passes
through T5X's beams unharmed (`model.PromptedModel` puts it there).

Tensors:  encoder_input_tokens [B, T], or [B, 1 + T] of a bank; the encoder sees P + T positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import core
from flax import linen as nn
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5, add_virtual_tokens
from prompt_tuning.t5x_bridge import names


class T5XModule(PromptedT5):
  """The module of a T5X model; `init` and `apply` take and give T5X's trees."""

  # What T5X asks it for is which axis of the decoding cache the batch is: of ours always the
  # second, since one array holds all layers.
  scan_layers = True

  @nn.nowrap
  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """`{"params": ..., "params_axes": ...}`."""
    names.check_layout(self.backbone.config)
    boxed = super().init(rngs, *args, **kwargs)["params"]
    return {"params": names.to_t5x(nn.meta.unbox(boxed)),
            "params_axes": names.axes(nn.get_partition_spec(boxed))}

  @nn.nowrap
  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    variables = core.unfreeze(variables)
    return super().apply(variables | {"params": names.from_t5x(variables["params"])},
                         *args, **kwargs)

  def encode(self, encoder_input_tokens: Array, encoder_segment_ids: Array | None = None,
             enable_dropout: bool = True, prompt_ids: Array | None = None) -> Array:
    _refuse_packing(encoder_segment_ids)
    tokens, prompt_ids = self._with_prompt(encoder_input_tokens)
    return super().encode(tokens, None, enable_dropout, prompt_ids)

  def decode(self, encoded: Array, encoder_input_tokens: Array, decoder_input_tokens: Array,
             decoder_target_tokens: Array | None = None,
             encoder_segment_ids: Array | None = None, decoder_segment_ids: Array | None = None,
             decoder_positions: Array | None = None, decode: bool = False,
             enable_dropout: bool = True, max_decode_length: int | None = None,
             prompt_ids: Array | None = None) -> Array:
    _refuse_packing(decoder_segment_ids)
    tokens, prompt_ids = self._with_prompt(encoder_input_tokens)
    return super().decode(encoded, tokens, decoder_input_tokens.astype(jnp.int32),
                          decode=decode, enable_dropout=enable_dropout,
                          max_decode_length=max_decode_length, prompt_ids=prompt_ids)

  def _with_prompt(self, tokens: Array) -> tuple[Array, Array | None]:
    """`[B, T] -> [B, P + T]`, and the `[B]` prompts of a bank."""
    # T5X initialises with tokens of the type float32 where it evaluates.
    tokens, prompt_ids = tokens.astype(jnp.int32), None
    if num_prompts(self.prompt) > 1:
      prompt_ids, tokens = -1 - tokens[:, 0], tokens[:, 1:]
    return add_virtual_tokens(tokens, self.num_virtual_tokens), prompt_ids


def num_prompts(prompt: Any) -> int:
  """N of a bank; 1 for one prompt or none."""
  return 1 if prompt is None else prompt.num_prompts


def add_prompt_ids(tokens: Array, prompt_ids: Array) -> Array:
  """`[B, T]` and `[B]` -> `[B, 1 + T]`, as `T5XModule` reads them."""
  return jnp.concatenate([(-1 - prompt_ids)[:, None].astype(tokens.dtype), tokens], axis=1)


def freeze_all_but(trained: names.Trained, params: Any) -> Any:
  """T5X's tree with every other leaf cut off from the gradient.

  T5X differentiates all of its parameters, and leaves it to XLA to drop what nobody reads; then a
  gradient norm or accumulation brings all of it back. Cut off here, it is never computed.
  """
  def cut(path: Any, leaf: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return leaf if trained(name) else jax.lax.stop_gradient(leaf)
  return jax.tree_util.tree_map_with_path(cut, params)


def _refuse_packing(segment_ids: Array | None) -> None:
  if segment_ids is not None:
    raise UserError("Packed rows cannot have a prompt in front of each example",
                    found="a batch with segment ids", wanted="one example a row",
                    fix="utils.DatasetConfig.pack = False, as t5x/runs/*.gin set it")
