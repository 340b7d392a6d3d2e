"""The last and the best state on disk: what a kill leaves, what is read again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import trees
from prompt_tuning.checkpoints.trained import TrainedCheckpoints
from prompt_tuning.errors import UserError
from prompt_tuning.optimizers import AdamW
from prompt_tuning.train_state import TrainState

OPTIMIZER = optax.adam(0.1)


def state_at(step):
  trainable = {"prompt": {"embedding": jnp.arange(6.0).reshape(2, 3) + step}}
  return TrainState(jnp.asarray(step, jnp.int32), trainable, OPTIMIZER.init(trainable))


@pytest.fixture
def opened(tmp_path):
  """Opens the folder as a run that starts; all are closed in the end."""
  made = []

  def again():
    made.append(TrainedCheckpoints(tmp_path))
    return made[-1]

  yield again
  for checkpoints in made:
    checkpoints.close()


def kept(tmp_path, name):
  return sorted(path.name for path in (tmp_path / "checkpoints" / name).iterdir())


def test_the_last_and_the_best_come_back_to_the_bit(opened):
  checkpoints = opened()
  for step, best in ((2, True), (4, False)):
    checkpoints.save(state_at(step), {"step": step})
    if best:
      checkpoints.save(state_at(step), {"step": step}, best=True)
  again = opened()
  assert again.latest_step() == 4
  for step, arguments in ((4, {}), (2, {"best_step": 2})):
    state, counters = again.restore(state_at(0), **arguments)
    assert counters == {"step": step}
    assert jax.tree.all(jax.tree.map(np.array_equal, state, state_at(step)))


def test_a_best_state_that_is_not_there_is_an_error(opened):
  checkpoints = opened()
  checkpoints.save(state_at(2), {})
  checkpoints.save(state_at(2), {}, best=True)
  with pytest.raises(UserError, match="The run's checkpoint cannot be restored") as caught:
    checkpoints.restore(state_at(0), best_step=1)
  assert "step 1" in caught.value.found


def test_what_a_kill_leaves_is_removed_and_the_newest_whole_state_stays(tmp_path, opened):
  checkpoints = opened()
  for step in (2, 4):
    checkpoints.save(state_at(step), {})
    checkpoints.save(state_at(step), {}, best=True)
  place = tmp_path / "checkpoints"
  for left in ("last/6.orbax-checkpoint-tmp/state", "best/2/state", "last/2", "best/6/counters"):
    (place / left).mkdir(parents=True)  # unfinished, half deleted, deleted but for its folder, ...
  (place / "best" / "notes").mkdir()
  assert opened().latest_step() == 4
  assert kept(tmp_path, "last") == ["4"] and kept(tmp_path, "best") == ["4", "notes"]


def test_a_best_state_without_a_last_one_belongs_to_no_run(tmp_path, opened):
  opened().save(state_at(0), {}, best=True)
  assert kept(tmp_path, "best") == ["0"]
  assert opened().latest_step() is None
  assert kept(tmp_path, "best") == []


SOURCES = {"prompt": {"part": {"constant_sources": jnp.arange(24.0).reshape(2, 3, 4)}}}


def state_of(optimizer, trainable, step=7):
  opt_state = optimizer.build(trainable).init(trainable)
  # Every leaf is another number.
  leaves, structure = jax.tree.flatten(opt_state)
  return TrainState(jnp.asarray(step, jnp.int32), trainable, jax.tree.unflatten(
    structure, [leaf + i for i, leaf in enumerate(leaves, 1)]))


def parameters():
  return {"backbone": {"scale": jnp.arange(4.0)}, "prompt": {
    "embedding": jnp.arange(12.0).reshape(3, 4), "part": {name: jnp.arange(4.0) + i for i, name in
                                                          enumerate(("a", "norm_scale"))}}}


def test_constants_are_saved_beside_a_state_and_come_back(opened):
  """They are in no state, and what comes back is what the run started with."""
  state, checkpoints = state_of(AdamW(), parameters()), opened()
  checkpoints.constants = SOURCES
  checkpoints.save(state, {})
  again = opened()
  again.constants = jax.tree.map(jnp.zeros_like, SOURCES)
  found, _ = again.restore(jax.tree.map(jnp.zeros_like, state))
  assert jax.tree.all(jax.tree.map(np.array_equal, found, state))
  assert trees.differences(again.constants, SOURCES) == []
