"""What we write is read by T5X's own code.

T5X is not on the package index. These tests run where `t5x.checkpoints` can be imported, for
example with its sources and the `t5x` extra on PYTHONPATH (its `__init__.py` emptied, so that only
what the checkpoints need is loaded):

  PYTHONPATH=SOURCES python -m pytest -m t5x
"""

import dataclasses

import flax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from sources import CONFIG, reader

from prompt_tuning.checkpoints import t5x_legacy, t5x_orbax
from prompt_tuning.checkpoints.t5x_names import Scanned

pytestmark = [pytest.mark.t5x, pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
SHALLOW = dataclasses.replace(CONFIG, num_encoder_layers=2, num_decoder_layers=1)


@pytest.fixture(scope="module")
def checkpoints():
  try:
    from t5x import checkpoints
    return checkpoints
  except ImportError as error:
    pytest.skip(f"t5x cannot be imported: {error}")


def expected(scanned):
  source = Scanned(reader(SHALLOW), SHALLOW) if scanned else reader(SHALLOW, stacked=False)
  return {name: source.read(name) for name in source.leaves}


def assert_same(found, wanted):
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert np.asarray(found[name]).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("scanned", [False, True])
def test_legacy(tmp_path, checkpoints, scanned):
  path = tmp_path / "checkpoint_5"
  t5x_legacy.write(str(path), reader(SHALLOW, stacked=scanned), config=SHALLOW,
                   metadata={"step": 5})
  state = checkpoints.load_t5x_checkpoint(str(path))
  assert state["state"]["step"] == 5
  assert_same(traverse_util.flatten_dict(state["target"], sep="/"), expected(scanned))


@pytest.mark.parametrize("form", [t5x_legacy, t5x_orbax], ids=["legacy", "orbax"])
@pytest.mark.parametrize("scanned", [False, True])
def test_the_checkpoint_manager_of_a_run(tmp_path, checkpoints, form, scanned):
  from t5x import partitioning, train_state
  form.write(str(tmp_path / "checkpoint_5"), reader(SHALLOW, stacked=scanned), config=SHALLOW,
             metadata={"step": 5})
  wanted = expected(scanned)
  zeros = {tuple(name.split("/")): jnp.zeros(x.shape, x.dtype) for name, x in wanted.items()}
  axes = {(*path[:-1], path[-1] + "_axes"): flax.linen.partitioning.AxisMetadata(
    names=(None,) * x.ndim) for path, x in zeros.items()}
  state = train_state.InferenceState.create(flax.core.freeze({
    "params": traverse_util.unflatten_dict(zeros),
    "params_axes": traverse_util.unflatten_dict(axes)}))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(tmp_path), state, partitioning.PjitPartitioner(num_partitions=1))
  restored = manager.restore(path=str(tmp_path / "checkpoint_5"))
  assert restored.step == 5
  assert_same(traverse_util.flatten_dict(flax.core.unfreeze(restored.params), sep="/"), wanted)
