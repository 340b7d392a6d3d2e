"""Deep prompts (P-tuning v2, Liu et al. 2021b, arXiv 2110.07602): vectors in every layer.

P virtual tokens stand in the encoder's input, and at the input of every further encoder block their
hidden states are replaced by that layer's own rows (or get them added), so that every layer is
prompted directly. No reparameterisation. P-tuning v2's released code realises its deep prompts as
keys and values ahead of each layer's own, which here is `prefix.PrefixPrompt` with hidden=None:
cheaper, and in the decoder too; this file is the method as the text and figure 2 have it.

Trains:  prompt/states [L, P, D], L the encoder's layers, or [N, L, P, D] for a bank; row 0 of L is
the virtual tokens' embeddings.   Serves: the same.

Cost, in operations of matrix products of a train step, beyond the frozen model's forward and
backward pass; J = H * K, S = P + T, L_e and L_d the layers of the stacks:

  4 B P L_e (4 D J + 3 D F) + 12 B J L_e (S^2 - T^2)     the encoder over P more positions
  8 B P D J L_d + 12 B U P J L_d                         what the decoder reads of them
  4 B S P D L_e                                          placing the rows, wherever they stand
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import PromptContext, PromptValues, StackValues
from prompt_tuning.prompts.initializers import Initializer, Sources, Uniform
from prompt_tuning.prompts.method import PromptMethod, virtual_rows

MODES = ("replace", "add")


@struct.dataclass
class VirtualStates:
  """A block hook: the hidden states at virtual positions become `keep * x + rows`.

  Attributes:
    rows: `[L, B or 1, P, D]` (no L once the layer scan has sliced it).
    keep: `[L]`, 1 or 0.
  """

  rows: Array
  keep: Array

  def __call__(self, x: Array, tokens: Array | None) -> Array:
    assert tokens is not None, "only the encoder holds virtual tokens"
    rows = virtual_rows(tokens, self.rows.astype(x.dtype))
    return jnp.where((tokens < 0)[..., None], self.keep.astype(x.dtype) * x + rows, x)


class DeepPrompt(PromptMethod):
  """A table of virtual tokens for every encoder layer.

  Attributes:
    length: P.
    mode: `replace` the hidden states of the virtual tokens, or `add` to them.
    initializer: where the rows of each layer start: drawn anew for each, by the same rule, although
      only the first layer's input is made of embeddings.
    num_prompts: N; above 1 there is a bank, and every row of a batch names its prompt.
  """

  length: int
  mode: str = "replace"
  initializer: Initializer = Uniform()
  num_prompts: int = 1

  def __post_init__(self):
    for name, macro in (("length", "PROMPT_LENGTH=20"), ("num_prompts", "NUM_PROMPTS=1")):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise UserError(f"DeepPrompt.{name} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more", fix=f"--gin.{macro}")
    if self.mode not in MODES:
      raise UserError("DeepPrompt.mode is unknown", found=repr(self.mode),
                      wanted="one of " + ", ".join(MODES), fix=nearest(str(self.mode), MODES))
    super().__post_init__()

  @property
  def num_virtual_tokens(self) -> int:
    return self.length

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    axes: tuple[str, ...] = ("layers", "prompt", "prompt_embed")
    shape: tuple[int, ...] = (self.config.num_encoder_layers, self.length, self.config.emb_dim)
    if self.num_prompts > 1:
      axes, shape = ("prompt_bank", *axes), (self.num_prompts, *shape)
    states = self.param("states", nn.with_logical_partitioning(nn.initializers.zeros, axes), shape,
                        jnp.float32)
    rows = self.choose(states if self.num_prompts > 1 else states[None], context)
    rows = jnp.moveaxis(rows, 1, 0)
    # The first block's input has its rows already, after the dropout of embeddings.
    keep = np.full(shape[-3], self.mode == "add", np.float32)
    keep[0] = 1.0
    later = VirtualStates(jnp.pad(rows[1:], ((1, 0), (0, 0), (0, 0), (0, 0))), jnp.asarray(keep))
    return PromptValues(embeds=rows[0], encoder=StackValues(block_input=later))

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    shape = params["states"].shape
    keys = jax.random.split(key, self.num_prompts * self.config.num_encoder_layers)
    tables = jnp.stack([self.initializer(k, self.length, sources) for k in keys])
    return {"states": tables.reshape(shape)}
