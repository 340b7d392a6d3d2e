"""Optimizers and learning-rate schedules: frozen dataclasses that gin fills and optax runs.

Adafactor (Shazeer and Stern 2018) as T5X has it, with two rules of ours:

* Leaves under `prompt/` are never factored. T5X factors whatever has two dimensions of 128 or
  more, so there a prompt of 128 vectors silently trains with another optimizer than one of 127.
* A leaf under `.../layers/...` is a stack `[L, ...]` of L layers' parameters. Its factored moments,
  its parameter scale and its update clipping are taken layer by layer, as if each were a leaf.

The paper's trap: Lester et al. (2021) continue the pre-training step count (about 1.1 M) into
beta2_t = 1 - t^-0.8. From the first step beta2 is almost 1: second moments pile up from zero like
Adagrad's, and update clipping alone sets the step size. `Adafactor.step_offset` is that count; it
moves the decay only, never the learning-rate schedule, which counts this run's own steps.

Trees: nested dicts of float32 leaves, e.g. `{"backbone": ..., "prompt": ...}`, either may lack.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from prompt_tuning.errors import UserError


def _check(owner: object, name: str, valid: Callable[[Any], bool], wanted: str) -> None:
  value = getattr(owner, name)
  try:
    is_valid = valid(value)
  except TypeError:  # A string, or None where there has to be a number.
    is_valid = False
  if not is_valid:
    raise UserError(f"{type(owner).__name__}.{name} is out of range", found=repr(value),
                    wanted=wanted, fix=f"set {type(owner).__name__}.{name} in a gin file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """A learning rate by step: `schedule(step int32 scalar) -> float32 scalar`.

  Attributes:
    rate: the constant or peak learning rate.
  """

  rate: float

  def __post_init__(self):
    # A traced rate was checked where it was given (`members.py`).
    _check(self, "rate", lambda rate: isinstance(rate, Array) or rate > 0.0,
           "a learning rate above 0")

  def __call__(self, step: Array | int) -> Array:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
  """`rate` at every step."""

  def __call__(self, step: Array | int) -> Array:
    return jnp.full_like(step, self.rate, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearWarmup(Schedule):
  """From 0 to `rate` over `warmup_steps`, then constant."""

  warmup_steps: int

  def __post_init__(self):
    super().__post_init__()
    _check(self, "warmup_steps", lambda steps: steps >= 1, "1 or more")

  def __call__(self, step: Array | int) -> Array:
    return jnp.asarray(optax.linear_schedule(0.0, self.rate, self.warmup_steps)(step), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearDecay(Schedule):
  """From 0 to `rate` over `warmup_steps` (may be 0), then linearly to 0 at `total_steps`."""

  total_steps: int
  warmup_steps: int = 0

  def __post_init__(self):
    super().__post_init__()
    _check(self, "warmup_steps", lambda steps: 0 <= steps < self.total_steps,
           f"0 or more, and below total_steps={self.total_steps}")

  def __call__(self, step: Array | int) -> Array:
    decay = optax.linear_schedule(self.rate, 0.0, self.total_steps - self.warmup_steps)
    return _after_warmup(self.rate, self.warmup_steps, decay, step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(LinearDecay):
  """As `LinearDecay`, but down half a cosine from `rate` to `final_share * rate`."""

  final_share: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    _check(self, "final_share", lambda share: 0.0 <= share <= 1.0, "a share from 0 to 1")

  def __call__(self, step: Array | int) -> Array:
    decay = optax.cosine_decay_schedule(self.rate, self.total_steps - self.warmup_steps,
                                        self.final_share)
    return _after_warmup(self.rate, self.warmup_steps, decay, step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Schedule):
  """T5's pre-training schedule, `rate / sqrt(max(step, warmup_steps))` (Raffel et al. 2020)."""

  rate: float = 1.0
  warmup_steps: int = 10_000

  def __post_init__(self):
    super().__post_init__()
    _check(self, "warmup_steps", lambda steps: steps >= 1, "1 or more")

  def __call__(self, step: Array | int) -> Array:
    return self.rate * jax.lax.rsqrt(jnp.maximum(jnp.asarray(step, jnp.float32),
                                                 float(self.warmup_steps)))


def _after_warmup(rate: float, warmup_steps: int, decay: optax.Schedule, step) -> Array:
  step = jnp.asarray(step, jnp.float32)
  warmup = optax.linear_schedule(0.0, rate, warmup_steps) if warmup_steps else decay
  return optax.join_schedules([warmup, decay], [warmup_steps])(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """What every optimizer has.

  Attributes:
    learning_rate: a constant, or a `Schedule`.
    clip_norm: gradients of a larger global norm (of all trained leaves) are scaled down to it.
  """

  learning_rate: float | Schedule
  clip_norm: float | None = None

  def __post_init__(self):
    _check(self, "learning_rate", lambda rate: isinstance(rate, Schedule) or rate > 0.0,
           "a number above 0, or a schedule such as @optimizers.InverseSquareRoot()")
    _check(self, "clip_norm", lambda norm: norm is None or norm > 0.0, "above 0, or None")

  @property
  def schedule(self) -> Schedule:
    """The learning rate by step, for the loop to log."""
    rate = self.learning_rate
    return rate if isinstance(rate, Schedule) else Constant(rate=rate)

  def at_rate(self, rate: Any) -> "Optimizer":
    """The same optimizer with another constant or peak rate, a float or a traced scalar."""
    return dataclasses.replace(self, learning_rate=dataclasses.replace(self.schedule, rate=rate))

  def build(self, trainable: Any) -> optax.GradientTransformation:
    """The optax transformation for a tree of trained leaves.

    Args:
      trainable: nested dict of float32 arrays or `jax.ShapeDtypeStruct`, paths as in
        `{"backbone": ..., "prompt": ...}`. `init` and `update` take trees of this structure.

    Raises:
      UserError: the tree is empty, or a leaf is not float32.
    """
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    if not leaves:
      raise UserError("there is nothing to train", found="no trainable leaf",
                      wanted="a prompt, or backbone leaves that the trainable patterns match",
                      fix="choose a prompt method, or set the trainable patterns")
    for path, leaf in leaves:
      if leaf.dtype != jnp.float32:
        raise UserError("a trained parameter is not float32", found=f"{_name(path)}: {leaf.dtype}",
                        wanted="float32: small updates vanish in fewer bits",
                        fix="set param_dtype to float32 for what is trained")
    transformation = self._transformation(trainable)
    if self.clip_norm is None:
      return transformation
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), transformation)

  def _transformation(self, trainable: Any) -> optax.GradientTransformation:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
  """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

  Attributes:
    beta1, beta2, epsilon: of the moments.
    weight_decay_rate: of every trained leaf, times the learning rate (as optax and PyTorch).
  """

  learning_rate: float | Schedule = 1e-3
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay_rate: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    _check(self, "beta1", lambda beta: 0.0 <= beta < 1.0, "0 <= beta1 < 1")
    _check(self, "beta2", lambda beta: 0.0 <= beta < 1.0, "0 <= beta2 < 1")
    _check(self, "epsilon", lambda epsilon: epsilon > 0.0, "above 0")
    _check(self, "weight_decay_rate", lambda rate: rate >= 0.0, "0 or more")

  def _transformation(self, trainable: Any) -> optax.GradientTransformation:
    return optax.adamw(self.schedule, self.beta1, self.beta2, self.epsilon,
                       weight_decay=self.weight_decay_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
  """Adafactor with T5X's fields; the defaults are the prompt-tuning paper's.

  Attributes:
    decay_rate: c of beta2_t = 1 - t^-c, with t = step_offset + this run's step, from 1.
    step_offset: steps the decay has seen before this run. 0 starts afresh; 1_100_000 is the
      paper's code. (T5X's field of this name is subtracted from the step: the opposite sign.)
    weight_decay_rate: share of every trained leaf taken off a step, not times the learning rate.
    multiply_by_parameter_scale: steps relative to a leaf's root mean square, at least 1e-3: on for
      pre-training and model tuning.
    factored: row and column moments for backbone leaves with two dimensions of
      `min_dim_size_to_factor` or more. Never for the prompt.
    clipping_threshold: largest root mean square of a leaf's update before the learning rate.
    momentum: beta1 of a first moment, or None.
  """

  learning_rate: float | Schedule = 0.3
  decay_rate: float = 0.8
  step_offset: int = 0
  weight_decay_rate: float | None = 1e-5
  multiply_by_parameter_scale: bool = False
  factored: bool = True
  min_dim_size_to_factor: int = 128
  clipping_threshold: float | None = 1.0
  momentum: float | None = None

  def __post_init__(self):
    super().__post_init__()
    _check(self, "decay_rate", lambda rate: 0.0 < rate <= 1.0, "0 < decay_rate <= 1")
    _check(self, "step_offset", lambda steps: isinstance(steps, int) and steps >= 0,
           "a whole number of steps, 0 or more")
    _check(self, "weight_decay_rate", lambda rate: rate is None or 0.0 <= rate < 1.0,
           "0 <= rate < 1, or None")
    _check(self, "min_dim_size_to_factor", lambda size: size >= 1, "1 or more")
    _check(self, "clipping_threshold", lambda threshold: threshold is None or threshold > 0.0,
           "above 0, or None")
    _check(self, "momentum", lambda momentum: momentum is None or 0.0 <= momentum < 1.0,
           "0 <= momentum < 1, or None")

  def _transformation(self, trainable: Any) -> optax.GradientTransformation:
    groups = jax.tree.map_with_path(_group, trainable)
    # Sorted: every host must trace the same program.
    names = sorted(set(jax.tree.leaves(groups)))
    return optax.partition({name: self._of_group(name) for name in names}, groups)

  def _of_group(self, group: str) -> optax.GradientTransformation:
    owner, kind, *_ = group.split(".")
    transformation = optax.adafactor(
        self.schedule, self.min_dim_size_to_factor, self.decay_rate,
        decay_offset=-self.step_offset,
        multiply_by_parameter_scale=self.multiply_by_parameter_scale,
        clipping_threshold=self.clipping_threshold, momentum=self.momentum,
        weight_decay_rate=self.weight_decay_rate, factored=self.factored and owner != "prompt")
    return _by_layer(transformation) if kind == "layers" else transformation


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _group(path, leaf) -> str:
  """The leaves that one Adafactor may treat together: whose they are, and how many layers."""
  name = _name(path)
  owner = "prompt" if name.startswith("prompt/") else "backbone"
  # No slashes: T5X joins the keys of an optimizer's state with them.
  return f"{owner}.layers.{leaf.shape[0]}" if "/layers/" in name else f"{owner}.single"


def _by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """`inner` applied to each layer of leaves `[L, ...]`; step counts stay scalars."""

  def axes(params):
    layer = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params)
    state = jax.eval_shape(inner.init, layer)
    return jax.tree.map(lambda s: None if jnp.issubdtype(s.dtype, jnp.integer) else 0, state)

  def init(params):
    return jax.vmap(inner.init, out_axes=axes(params))(params)

  def update(updates, state, params):
    state_axes = axes(params)
    return jax.vmap(inner.update, in_axes=(0, state_axes, 0),
                    out_axes=(0, state_axes))(updates, state, params)

  return optax.GradientTransformation(init, update)
