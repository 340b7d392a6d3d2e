"""P-tuning (Liu et al. 2021, arXiv 2103.10385, section 3.2): virtual tokens from a prompt encoder.

Trains:  prompt/embedding [P, D] and the encoder below.   Serves: its output, a table [P, D].

  lstm   a bidirectional LSTM of h units a direction, then 2h -> 2h, ReLU, 2h -> D. The paper's code
         has two layers and 2h = D; PEFT has the same shape.
  mlp    D -> h, ReLU, h -> h, ReLU, h -> D: PEFT's.

Leaves of the LSTM, for layer l, both directions stacked (forward, backward), the four gates in
torch's order (input, forget, cell, output) side by side; `in` is D, then 2h:

  lstm_l_inputs [2, in, 4h]     torch's weight_ih, transposed
  lstm_l_recurrent [2, h, 4h]   torch's weight_hh, transposed
  lstm_l_bias [2, 4h]           the sum of torch's two

Where the virtual tokens stand is the model's template, not the method's.

Cost: 6 P W FLOPs a step (forward and backward), W being the weights of the encoder's products:
2h (2h + D) + sum over layers of 8h (in + h), or D h + h^2 + h D. Nothing once served.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.tables import FoldedTable, uniform

ENCODERS = ("lstm", "mlp")


class PTuning(FoldedTable):
  """A table of virtual tokens behind a prompt encoder.

  Attributes:
    initializer: of the embeddings that enter the encoder.
    encoder: one of `ENCODERS`.
    hidden: h; None: D / 2 (rounded down) for the LSTM, D for the MLP.
    num_layers: of the LSTM, 1 or 2.
  """

  encoder: str = "lstm"
  hidden: int | None = None
  num_layers: int = 2

  def __post_init__(self):
    if self.encoder not in ENCODERS:
      raise UserError("PTuning.encoder is unknown", found=repr(self.encoder),
                      wanted="one of " + ", ".join(ENCODERS),
                      fix=nearest(str(self.encoder), ENCODERS))
    if self.hidden is not None:
      self.check_count("hidden", "PROMPT_ENCODER_HIDDEN")
    if self.num_layers not in (1, 2):
      raise UserError("PTuning.num_layers is not a depth", found=repr(self.num_layers),
                      wanted="1 or 2", fix="--gin.PROMPT_ENCODER_LAYERS=2 is the paper's")
    super().__post_init__()

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    width = self.config.emb_dim
    x = self.table()
    if self.encoder == "lstm":
      hidden = self.hidden or max(width // 2, 1)
      for layer in range(self.num_layers):
        x = self._bidirectional(f"lstm_{layer}", x, hidden)
      x = jax.nn.relu(self.dense("mlp_0", x, 2 * hidden))
      return PromptValues(embeds=self.dense("mlp_1", x, width))
    for layer in range(2):
      x = jax.nn.relu(self.dense(f"mlp_{layer}", x, self.hidden or width))
    return PromptValues(embeds=self.dense("mlp_2", x, width))

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    return {**params, "embedding": self.initializer(key, self.length, sources)}

  def _bidirectional(self, name: str, x: Array, hidden: int) -> Array:
    """`[P, in] -> [P, 2h]`: forward, then backward."""
    init = uniform(hidden)
    leaves = (
      self.leaf(f"{name}_inputs", ("direction", "in", "gates"), (2, x.shape[1], 4 * hidden), init),
      self.leaf(f"{name}_recurrent", ("direction", "in", "gates"), (2, hidden, 4 * hidden), init),
      self.leaf(f"{name}_bias", ("direction", "gates"), (2, 4 * hidden), init))
    forward, backward = jax.vmap(lstm)(jnp.stack([x, x[::-1]]), *leaves)
    return jnp.concatenate([forward, backward[::-1]], axis=1)


def lstm(x: Array, inputs: Array, recurrent: Array, bias: Array) -> Array:
  """One direction of an LSTM that starts from zeros.

  Args:
    x: `[P, in]`.  inputs: `[in, 4h]`.  recurrent: `[h, 4h]`.  bias: `[4h]`.

  Returns:
    `[P, h]`.
  """
  def step(state: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
    output, cell = state
    enter, forget, new, leave = jnp.split(gates + output @ recurrent, 4)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
    output = jax.nn.sigmoid(leave) * jnp.tanh(cell)
    return (output, cell), output

  zeros = jnp.zeros(recurrent.shape[0], x.dtype)
  return jax.lax.scan(step, (zeros, zeros), x @ inputs + bias[None])[1]
