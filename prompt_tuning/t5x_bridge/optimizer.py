"""T5X's optimizers for the trained leaves alone: OPTIMIZER of gin_configs/t5x/.

  MultiOptimizer   T5X's own Adafactor (or another of its definitions) behind its MultiOptimizer
  Optax            ours of `optimizers.py`, through T5X's wrapper of optax

Both refuse a model whose leaves are not those that they were made for. Frozen leaves have no state
and are not written to: not even zeros are added.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import core, traverse_util
from t5x import optimizers as t5x_optimizers

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.optimizers import Optimizer
from prompt_tuning.t5x_bridge import names


class MultiOptimizer(t5x_optimizers.MultiOptimizer):
  """T5X's, with one mask that matches exactly the trained leaves.

  T5X's own saves a None for the state of each frozen leaf, warns once a leaf on reading, and cannot
  resume from them through Orbax; here checkpoints hold the state of trained leaves alone.
  """

  def __init__(self, trained: names.Trained, optimizer: Any):
    """Args:
      optimizer: one of T5X's own, such as `@adafactor.Adafactor()`.
    """
    if isinstance(optimizer, t5x_optimizers.OptaxWrapper):
      raise UserError("T5X's MultiOptimizer cannot save the state of an optax optimizer",
                      found=type(optimizer).__name__, wanted="T5X's Adafactor",
                      fix="use --gin_file=t5x/optimizers/adamw.gin, which needs no MultiOptimizer")
    self._trained = trained
    _ = trained.names  # patterns that match nothing are found before T5X does anything
    super().__init__(((traverse_util.ModelParamTraversal(trained), optimizer),))

  def init_state(self, params: Any) -> Any:
    self._trained.check(core.unfreeze(params))
    return super().init_state(params)

  def state_dict(self, target: Any, state: Any) -> Any:
    found = super().state_dict(target, state)
    param_states = core.unfreeze(found["state"]["param_states"])
    kept = {name: _at(param_states, name) for name in self._trained.names}
    return {**found, "state": {**found["state"], "param_states": trees.unflatten(kept)}}

  def restore_state(self, opt_target: Any, opt_state: Any, state_dict: Any) -> Any:
    given = core.unfreeze(state_dict["state"]["param_states"])
    states = {name: _at(given, name) if name in self._trained.names else None
              for name in self._trained.leaves}
    return super().restore_state(opt_target, opt_state, {
      **state_dict,
      "state": {**state_dict["state"], "param_states": trees.unflatten(states)}})


class Optax(t5x_optimizers.OptaxWrapper):
  """An `optimizers.Optimizer` of ours, on the trained leaves under our names.

  Its state is replicated. Its learning rate is its own: the one that T5X logs comes from
  `utils.create_learning_rate_scheduler`.
  """

  def __init__(self, trained: names.Trained, optimizer: Optimizer):
    self._trained, self._optimizer = trained, optimizer
    shapes = trees.unflatten({
      names.our_name(name): jax.ShapeDtypeStruct(trained.leaves[name].shape, jnp.float32)
      for name in trained.names})
    super().__init__(optimizer.build(shapes))

  def init_state(self, params: Any) -> Any:
    self._trained.check(core.unfreeze(params))
    self._optimizer.build(self._part(params))  # says which leaf is not float32
    state = self.optax_optimizer.init(self._part(params))
    return t5x_optimizers.OptimizerState(step=jnp.zeros((), jnp.int32), param_states=state)

  def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> Any:
    del hyper_params
    part = self._part(params)
    updates, new = self.optax_optimizer.update(self._part(grads), state.param_states, part)
    changed = trees.flatten(names.to_t5x(optax.apply_updates(part, updates)))
    merged = trees.unflatten(trees.flatten(core.unfreeze(params)) | changed)
    kept = core.freeze(merged) if isinstance(params, core.FrozenDict) else merged
    return kept, t5x_optimizers.OptimizerState(step=state.step + 1, param_states=new)

  def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
    axes = jax.tree.map(lambda _: None, optimizer.state_dict())
    axes["target"] = param_logical_axes
    return optimizer.restore_state(core.unfreeze(axes))

  def _part(self, tree: Any) -> dict[str, Any]:
    """The trained leaves, by our names."""
    flat = trees.flatten(core.unfreeze(tree))
    return trees.unflatten({names.our_name(name): flat[name] for name in self._trained.names})


def _at(tree: Any, name: str) -> Any:
  """What stands in a tree at the name of a parameter."""
  for part in name.split("/"):
    tree = tree[part]
  return tree
