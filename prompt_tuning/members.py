"""Many prompts at once: M prompts of one method, trained on one frozen backbone in one step.

Every trained leaf and every leaf of the optimizer's state has the member axis M in front. The step
is `jax.vmap` of the one that trains a single prompt; the backbone is not mapped, so it is there
once, and each of its products reads its kernel once for the rows of all members. On CPUs, where
more rows only leave the caches, the same program takes the members one after the other. Gradients,
norms, moments, clipping, rates and dropout are a member's own: member i is what a run of its own
would be.

  seeds            where a prompt starts, and dropout
  learning_rates   the constant or peak rate; the schedule's shape is shared
  initializers     how a prompt starts
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.optimizers import Optimizer
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.train_state import Batch, LossConfig, Metrics, TrainState, make_train_step
from prompt_tuning.trees import Split

_MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Member:
  """What is particular to one of the prompts.

  Attributes:
    seed: of its start and its dropout; with rows of its own, of their order too.
    learning_rate: constant or peak.
    initializer: how it starts; None: as the method says.
  """

  seed: int
  learning_rate: float
  initializer: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Members:
  """Which prompts a run trains. Lists of one length go together; one value stands for all.

  Attributes:
    num_prompts: N_PROMPTS; above 1 short for the seeds RANDOM_SEED, RANDOM_SEED + 1, ...
    seeds: PROMPT_SEEDS; None: the run's.
    learning_rates: LEARNING_RATES; None: the optimizer's.
    initializers: PROMPT_INITS; None: the method's.
    grid: PROMPT_GRID, every combination of what is listed.
    own_rows: OWN_ROWS, every prompt gets a batch of its own, in the order of its seed. Else every
      row is for every prompt.
    at_once: PROMPTS_AT_ONCE, whose activations are in memory together; None: all, on CPUs one.
  """

  num_prompts: int = 1
  seeds: Sequence[int] | None = None
  learning_rates: Sequence[float] | None = None
  initializers: Sequence[Any] | None = None
  grid: bool = False
  own_rows: bool = False
  at_once: int | None = None

  def __post_init__(self):
    for name, value in (("N_PROMPTS", self.num_prompts), ("PROMPTS_AT_ONCE", self.at_once or 1)):
      if not _is_whole(value) or value < 1:
        raise UserError(f"{name} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more", fix=f"--gin.{name}=3")
    self._check("seeds", "PROMPT_SEEDS", lambda x: _is_whole(x) and 0 <= x <= _MAX_SEED,
                f"whole numbers from 0 to {_MAX_SEED}", '--gin.PROMPT_SEEDS="(0, 1, 2)"')
    self._check("learning_rates", "LEARNING_RATES", lambda x: not isinstance(x, bool) and x > 0.0,
                "numbers above 0", '--gin.LEARNING_RATES="(0.1, 0.3, 1.0)"')
    self._check("initializers", "PROMPT_INITS", callable, "initialisers",
                '--gin.PROMPT_INITS="(@initializers.Uniform(),)"')
    if self.num_prompts > 1 and self.seeds and len(self.seeds) not in (1, self.num_prompts):
      raise UserError("N_PROMPTS and PROMPT_SEEDS disagree",
                      found=f"{self.num_prompts} prompts, {len(self.seeds)} seeds",
                      wanted="one of the two, or the same number", fix="leave N_PROMPTS out")
    if self.is_one and (self.own_rows or self.grid):
      name = "OWN_ROWS" if self.own_rows else "PROMPT_GRID"
      raise UserError(f"{name} has no effect on one prompt", found=f"{name} = True",
                      wanted="several prompts", fix="--gin.N_PROMPTS=3, or leave it out")

  @property
  def is_one(self) -> bool:
    """Whether nothing was asked for but an ordinary run."""
    return self.num_prompts == 1 and not (self.seeds or self.learning_rates or self.initializers)

  def resolve(self, seed: int, learning_rate: float) -> tuple[Member, ...]:
    """The prompts, in order.

    Args:
      seed: of the first prompt, where no seeds are listed.
      learning_rate: where none is listed.

    Raises:
      UserError: lists of different lengths, or two prompts that would be the same.
    """
    count = self.num_prompts if self.seeds is None else 1
    given = {"PROMPT_SEEDS": self.seeds or tuple(range(seed, seed + count)),
             "LEARNING_RATES": self.learning_rates or (float(learning_rate),),
             "PROMPT_INITS": self.initializers or (None,)}
    if self.grid:
      rows = list(itertools.product(*given.values()))
    else:
      # One seed for each of N_PROMPTS is allowed: `initializers` or rates tell them apart.
      size = max(self.num_prompts, *map(len, given.values()))
      if any(len(values) not in (1, size) for values in given.values()):
        found = ", ".join(f"{len(values)} {name}" for name, values in given.items()
                          if len(values) > 1)
        raise UserError("The lists of prompts have different lengths", found=found,
                        wanted="one length; one value stands for all",
                        fix="add what is missing, or --gin.PROMPT_GRID=True for every combination")
      rows = list(zip(*(tuple(values) * (size if len(values) == 1 else 1)
                        for values in given.values()), strict=True))
    members = tuple(Member(*row) for row in rows)
    for i, member in enumerate(members):
      if member in members[:i]:
        raise UserError("Two prompts would be the same",
                        found=f"prompts {members.index(member)} and {i}: {member}",
                        wanted="another seed, learning rate or start for each",
                        fix="list each once; N_PROMPTS alone gives each its own seed")
    return members

  def _check(self, field: str, macro: str, valid: Callable[[Any], bool], wanted: str,
             fix: str) -> None:
    values = getattr(self, field)
    if values is None:
      return
    values = tuple(values) if isinstance(values, list | tuple) else (values,)
    try:
      is_valid = bool(values) and all(valid(value) for value in values)
    except TypeError:
      is_valid = False
    if not is_valid:
      raise UserError(f"{macro} is not a list of {wanted}", found=repr(getattr(self, field)),
                      wanted=wanted, fix=fix)
    # gin gives lists, and whole numbers where there are no digits behind the point.
    object.__setattr__(self, field,
                       tuple(map(float, values)) if field == "learning_rates" else values)


def check_different(members: Sequence[Member], starts: Sequence[Any], *,
                    seeds_matter: bool) -> None:
  """Whether something tells every two prompts apart, once it is known where they start.

  Args:
    starts: each member's parameters.
    seeds_matter: after the start too: rows of their own, or dropout.

  Raises:
    UserError: two of them would be the same at every step.
  """
  seen: dict[Any, int] = {}
  for i, (member, start) in enumerate(zip(members, starts, strict=True)):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(start):
      digest.update(np.asarray(leaf).tobytes())
    key = member.learning_rate, member.seed if seeds_matter else None, digest.digest()
    first = seen.setdefault(key, i)
    if first != i:
      raise UserError(
        "Two prompts would stay the same",
        found=f"prompts {first} and {i}, of seeds {members[first].seed} and {member.seed}, start "
        f"alike, with one rate ({member.learning_rate}) and nothing that their seeds change",
        wanted="another start or rate for each, or rows or dropout of its seed",
        fix="--gin.OWN_ROWS=True, or DROPOUT_RATE, or other PROMPT_INITS or LEARNING_RATES")


def stack(trees: Sequence[Any]) -> Any:
  """M trees -> one, every leaf `[M, ...]`."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member_of(tree: Any, index: int) -> Any:
  """The tree of one member."""
  return jax.tree.map(lambda leaf: leaf[index], tree)


def choose(condition: Array, new: Any, old: Any) -> Any:
  """For each member, the leaves of `new` where `condition [M]` holds, else those of `old`."""

  def leaf(x: Array, y: Array) -> Array:
    return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

  return jax.tree.map(leaf, new, old)


def new_members_state(trainable: Any, optimizer: Optimizer) -> TrainState:
  """Step 0 of all members; `trainable`'s leaves are `[M, ...]`."""
  opt_state = jax.vmap(lambda own: optimizer.build(own).init(own))(trainable)
  return TrainState(jnp.zeros((), jnp.int32), trainable, opt_state)


def make_members_step(model: PromptedT5, split: Split, optimizer: Optimizer, config: LossConfig,
                      members: Sequence[Member], *, own_rows: bool = False,
                      at_once: int | None = None,
                      ) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
  """Builds the step of all members; the caller compiles it with `donate_argnums=0`.

  A member whose loss, gradient or parameters are not finite any more stays where it was; the
  others go on.

  Args:
    own_rows: the batch's arrays are `[M, B, ...]`, not `[B, ...]` for all members.
    at_once: how many members are computed together (`Members.at_once`).

  Returns:
    A step as of `train_state.make_train_step`. Metrics are `[M]`; `is_finite` is one more.
  """
  rates = jnp.asarray([each.learning_rate for each in members], jnp.float32)
  seeds = jnp.asarray([each.seed for each in members], jnp.int32)

  def one(old: TrainState, frozen: Any, batch: Batch, rate: Array,
          seed: Array) -> tuple[Any, Any, Metrics]:
    # Built here, for one member: Adafactor looks at shapes, and takes its weight decay off
    # whatever the rate, so that no factor on its update would be another rate.
    own = optimizer.at_rate(rate)
    step = make_train_step(model, split, own, own.build(old.trainable), config, seed)
    new, metrics = step(old, frozen, batch)
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new.trainable)]
    finite += [jnp.isfinite(metrics[name]) for name in ("loss", "grad_norm")]
    is_finite = functools.reduce(jnp.logical_and, finite)
    trainable, opt_state = jax.tree.map(
      lambda x, y: jnp.where(is_finite, x, y), (new.trainable, new.opt_state),
      (old.trainable, old.opt_state))
    return trainable, opt_state, {**metrics, "is_finite": is_finite}

  together = at_once or (1 if jax.default_backend() == "cpu" else len(members))

  def members_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
    def of_member(own: tuple) -> tuple[Any, Any, Metrics]:
      trainable, opt_state, rate, seed, rows = own
      return one(TrainState(state.step, trainable, opt_state), frozen,
                 rows if own_rows else batch, rate, seed)

    given = (state.trainable, state.opt_state, rates, seeds, dict(batch) if own_rows else {})
    if together >= len(members) > 1:
      trainable, opt_state, metrics = jax.vmap(of_member)(given)
    else:
      trainable, opt_state, metrics = jax.lax.map(
        of_member, given, batch_size=None if together == 1 else together)
    return TrainState(state.step + 1, trainable, opt_state), metrics

  return members_step


def mean_and_deviation(rows: Sequence[Mapping[str, float]]) -> tuple[dict, dict]:
  """Over members: the mean of each metric, and the deviation of a sample (0.0 of one)."""
  mean, deviation = {}, {}
  for name in rows[0]:
    values = [row[name] for row in rows]
    mean[name] = sum(values) / len(values)
    squares = sum((value - mean[name]) ** 2 for value in values)
    deviation[name] = (squares / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0
  return mean, deviation


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)
