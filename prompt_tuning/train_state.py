"""The train state and the step: gradients of the trained part only.

  step: (TrainState, frozen, batch) -> (TrainState, metrics)

`TrainState` holds the trained leaves, their optimizer state and the step count, and is donated.
`frozen` is an argument that is never differentiated, donated or returned: it costs no gradient, no
optimizer state and no copy. Loss: cross-entropy with z-loss over the batch's real target tokens,
divided by their number (T5X's NUM_REAL_TARGET_TOKENS).
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.losses import cross_entropy
from prompt_tuning.optimizers import Optimizer
from prompt_tuning.partitioning import constrain
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.trees import Split

Batch = Mapping[str, Array]
Metrics = dict[str, Array]

# The model's arguments that a batch may carry, by T5X's feature names.
_OPTIONAL = ("encoder_segment_ids", "decoder_segment_ids", "prompt_ids")


@struct.dataclass
class TrainState:
  """What training changes.

  Attributes:
    step: int32, steps of this run that are done.
    trainable: tree of float32 leaves, paths as in `{"backbone": ..., "prompt": ...}`.
    opt_state: the optimizer's, for those leaves alone.
  """

  step: Array
  trainable: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """Attributes:
    z_loss: factor of log(Z)^2.
    label_smoothing: share of a target's probability that the other ids get.
    num_microbatches: NUM_MICROBATCHES, pieces a batch is computed in, one after the other.
  """

  z_loss: float = 1e-4
  label_smoothing: float = 0.0
  num_microbatches: int = 1

  def __post_init__(self):
    if not isinstance(self.num_microbatches, int) or self.num_microbatches < 1:
      raise UserError("LossConfig.num_microbatches is not a count", found=self.num_microbatches,
                      wanted="a whole number, 1 or more",
                      fix="--gin.NUM_MICROBATCHES=1 computes the batch in one piece")


def purpose_key(seed: int | Array, purpose: str) -> Array:
  """One root key a run, folded with a named purpose: init, prompt, dropout, sampling."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def new_state(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """Step 0."""
  return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def make_train_step(model: PromptedT5, split: Split, optimizer: Optimizer,
                    transformation: optax.GradientTransformation, config: LossConfig,
                    seed: int | Array, term: Callable | None = None,
                    ) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
  """Builds the step; the caller compiles it with `donate_argnums=0`.

  Args:
    term: a part of the loss besides the cross-entropy (`distillation.Term`): what computes the
      logits too. It is not in the metric `loss`, but a metric of its own, `term`.

  Metrics are scalars on the device: `loss` (with z-loss, per target token), `z_loss`, `accuracy`
  (of target tokens), `tokens` (real target tokens), `grad_norm`, `learning_rate`.
  """
  enable_dropout = model.has_dropout
  dropout_key = purpose_key(seed, "dropout")

  def loss_sum(trainable: Any, frozen: Any, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    params = split.merge(trainable, frozen)
    optional = {name: batch[name] for name in _OPTIONAL if name in batch}
    training = {"enable_dropout": enable_dropout, "rngs": {"dropout": key}}
    if term is None:
      logits = model.apply(
        {"params": params}, batch["encoder_input_tokens"], batch["decoder_input_tokens"],
        batch["decoder_target_tokens"], **training, **optional)
      more = {}
    else:
      logits, value = term(params, batch, optional, **training)
      more = {"term": value}
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    loss = cross_entropy(logits, targets, weights, z_loss=config.z_loss,
                         label_smoothing=config.label_smoothing)
    # The target's logit is the largest: on CPUs an argmax over V costs more than the whole loss.
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    right = jnp.sum((chosen >= jnp.max(logits, axis=-1)) * weights)
    return sum(more.values(), loss.total), {
      "loss": loss.total, "z_loss": loss.z_loss, "accuracy": right, "tokens": loss.weight_sum,
      **more}

  gradient = jax.grad(loss_sum, has_aux=True)

  def gradient_sums(trainable: Any, frozen: Any, batch: Batch, key: Array) -> tuple[Any, Metrics]:
    pieces = config.num_microbatches
    if pieces == 1:
      return gradient(trainable, frozen, batch, key)
    batches = jax.tree.map(lambda x: x.reshape(pieces, x.shape[0] // pieces, *x.shape[1:]),
                           dict(batch))
    # A piece is spread over all devices again, not computed by those that hold its rows.
    batches = jax.tree.map(lambda x: constrain(x, None, "batch", *(None,) * (x.ndim - 2)), batches)

    def add(total, piece):
      index, rows = piece
      one = gradient(trainable, frozen, rows, jax.random.fold_in(key, index))
      return jax.tree.map(jnp.add, total, one), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(
      gradient, trainable, frozen, jax.tree.map(lambda x: x[0], batches), key))
    return jax.lax.scan(add, zero, (jnp.arange(pieces), batches))[0]

  def train_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(dropout_key, state.step)
    gradients, sums = gradient_sums(state.trainable, frozen, batch, key)
    # A batch of padding alone has no target: its loss is 0, not 0 / 0.
    tokens = jnp.maximum(sums["tokens"], 1.0)
    gradients = jax.tree.map(lambda g: g / tokens, gradients)
    updates, opt_state = transformation.update(gradients, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {name: value / tokens for name, value in sums.items() if name != "tokens"}
    metrics |= {"tokens": sums["tokens"], "grad_norm": optax.tree.norm(gradients),
                "learning_rate": jnp.asarray(optimizer.schedule(state.step), jnp.float32)}
    return TrainState(state.step + 1, trainable, opt_state), metrics

  return train_step
