"""The train step or the decoding that gin files describe, over shapes: nothing is allocated.

What is lowered here is what `train` and `infer` lower: the step of `train_state.py`, `generate` of
`generation.py`, the shardings of `partitioning.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning import generation, trees
from prompt_tuning.errors import UserError
from prompt_tuning.layouts import Layout
from prompt_tuning.optimizers import Optimizer
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.plan import theory
from prompt_tuning.prompted import abstract_params, logical_axes
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.train_state import LossConfig, make_train_step, new_state

PROGRAMS = ("train", "decode")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """What is planned.

  Attributes:
    model: with its LAYOUT, REMAT and FROZEN_DTYPE.
    optimizer, trainable, loss: of the train step.
    feature_lengths: TASK_FEATURE_LENGTHS, real tokens.
    batch_size: BATCH_SIZE, rows over all devices.
  """

  model: ModelConfig
  optimizer: Optimizer
  feature_lengths: Mapping[str, int]
  batch_size: int
  trainable: tuple[str, ...] = ()
  loss: LossConfig = LossConfig()

  def __post_init__(self):
    if not isinstance(self.batch_size, int) or self.batch_size < 1:
      raise UserError("BATCH_SIZE is not a count", found=repr(self.batch_size),
                      wanted="a whole number, 1 or more", fix="--gin.BATCH_SIZE=32")
    lengths = self.feature_lengths
    if not isinstance(lengths, Mapping) or not all(
        isinstance(lengths.get(name), int) and lengths[name] > 0 for name in ("inputs", "targets")):
      raise UserError("TASK_FEATURE_LENGTHS does not give both lengths", found=repr(lengths),
                      wanted="inputs and targets, in tokens",
                      fix="--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 32}\"")
    object.__setattr__(self, "trainable", trees.patterns_of(self.trainable))

  def replace(self, *, layout: str | Layout | None = None, remat: Any = None,
              frozen_dtype: str | None = None) -> "PlanConfig":
    """The same with another layout, recomputation or storage."""
    model = self.model
    if layout is not None:
      model = dataclasses.replace(model, layout=layout)
    if frozen_dtype is not None:
      model = dataclasses.replace(model, frozen_dtype=frozen_dtype)
    if remat is not None:
      backbone = dataclasses.replace(model.backbone, remat=remat)
      model = dataclasses.replace(model, backbone=backbone)
    return dataclasses.replace(self, model=model)


@dataclasses.dataclass(frozen=True)
class Program:
  """Attributes:
    lower: makes the `jax.stages.Lowered`.
    frozen_bytes: of all weights that are not trained, over all devices.
    trained_bytes: of what is trained and its optimizer state.
    theory: operations of the products that it needs, over all devices.
    unknown_trips: how often a loop runs that ends by its data.
  """

  lower: Callable[[], Any]
  frozen_bytes: int
  trained_bytes: int
  theory: float
  unknown_trips: int | None


def build(config: PlanConfig, kind: str, devices: Sequence[Any]) -> Program:
  """The program of one row of a plan.

  Args:
    kind: `train` or `decode`.
    devices: of a topology, or of this machine.

  Raises:
    UserError: the layout does not fit devices, model or batch; or a pattern of TRAINABLE matches
      nothing.
  """
  partitioner = Partitioner.make(config.model.layout, devices)
  pieces = config.loss.num_microbatches if kind == "train" else 1
  partitioner.layout.check(config.model.backbone, config.batch_size, pieces)
  return (_train if kind == "train" else _decode)(config, partitioner)


def train_shapes(config: PlanConfig, partitioner: Partitioner) -> tuple[Any, Any, Any]:
  """State, frozen weights and batch of a train step, as shapes with shardings."""
  model = config.model.module()
  params = abstract_params(model)
  split = trees.plan_split(params, config.trainable)
  params = {**params, "backbone": config.model.backbone_shapes(split)}
  trainable, frozen = jax.eval_shape(split.split, params)
  axes = logical_axes(model)
  state = jax.eval_shape(lambda tree: new_state(tree, config.optimizer.build(tree)), trainable)
  rows, length = config.batch_size, config.feature_lengths["targets"]
  batch = {"encoder_input_tokens": _inputs(config), **{
    name: jax.ShapeDtypeStruct((rows, length), kind) for name, kind in (
      ("decoder_input_tokens", jnp.int32), ("decoder_target_tokens", jnp.int32),
      ("decoder_loss_weights", jnp.float32))}}
  if model.prompt is not None and model.prompt.num_prompts > 1:
    batch["prompt_ids"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return (_placed(state, partitioner.state(state, trainable, axes)),
          _placed(frozen, partitioner.params(frozen, axes)),
          _placed(batch, jax.tree.map(lambda _: partitioner.over_batch(), batch)))


def _train(config: PlanConfig, partitioner: Partitioner) -> Program:
  state, frozen, batch = train_shapes(config, partitioner)
  split = trees.plan_split(abstract_params(config.model.module()), config.trainable)

  def step(model: Any) -> Callable:
    return make_train_step(model, split, config.optimizer,
                           config.optimizer.build(state.trainable), config.loss, 0)

  places = jax.tree.map(lambda leaf: leaf.sharding, state), partitioner.replicated
  compiled = partitioner.jit(step(config.model.module()), donate_argnums=0, out_shardings=places)
  plain = config.replace(remat="none").model.module()
  return Program(lambda: compiled.lower(state, frozen, batch), trees.num_bytes(frozen),
                 _num_bytes((state.trainable, state.opt_state)),
                 theory.matmul_flop(step(plain), *map(_bare, (state, frozen, batch))), None)


def _decode(config: PlanConfig, partitioner: Partitioner) -> Program:
  prompt = config.model.prompt
  model = (config.model if prompt is None else dataclasses.replace(
    config.model, prompt=prompt.served())).module()
  params = {**abstract_params(model), "backbone": config.model.backbone_shapes()}
  params = _placed(params, partitioner.params(params, logical_axes(model)))
  tokens = _placed(_inputs(config), partitioner.over_batch())
  length = config.feature_lengths["targets"]
  ids = None
  if model.prompt is not None and model.prompt.num_prompts > 1:
    ids = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=partitioner.over_batch())

  def generate(params: Any, tokens: Any, ids: Any) -> Any:
    return generation.generate(model, params, tokens, None, ids, max_length=length)

  compiled = partitioner.jit(generate)
  return Program(lambda: compiled.lower(params, tokens, ids), trees.num_bytes(params["backbone"]),
                 _num_bytes(params.get("prompt", {})),
                 theory.matmul_flop(generate, *map(_bare, (params, tokens, ids)),
                                    unknown_trips=length), length)


def _inputs(config: PlanConfig) -> jax.ShapeDtypeStruct:
  length = config.feature_lengths["inputs"] + config.model.placement().size
  return jax.ShapeDtypeStruct((config.batch_size, length), jnp.int32)


def _placed(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=sharding), tree, shardings)


def _bare(tree: Any) -> Any:
  """Without shardings: what is counted is one device's program."""
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _num_bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
