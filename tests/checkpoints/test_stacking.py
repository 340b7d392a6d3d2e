"""Both layouts of a checkpoint show the same numbers, and a part reads no more than its layers."""

import numpy as np
import pytest
from sources import CONFIG, arrays, assert_equal, parts, reader

from prompt_tuning.checkpoints.leaves import MemoryReader, empty
from prompt_tuning.checkpoints.stacking import Stacked, Unstacked, in_layout, stacked_name
from prompt_tuning.errors import UserError

RNG = np.random.default_rng(0)
KERNEL = "decoder/layers/mlp/wo/kernel"


def unstacked_arrays():
  flat = {}
  for name, leaf in arrays().items():
    head, found, tail = name.partition("/layers/")
    if found:
      flat |= {f"{head}/layers_{i}/{tail}": leaf[i] for i in range(leaf.shape[0])}
    else:
      flat[name] = leaf
  return flat


class Counting(MemoryReader):
  """Records what is read."""

  def __init__(self, flat):
    super().__init__(flat, CONFIG)
    self.asked = []

  def read(self, name, index=None):
    self.asked.append(name)
    return super().read(name, index)


def test_either_layout_from_the_other():
  assert_equal(Stacked(MemoryReader(unstacked_arrays(), CONFIG)), reader())
  assert_equal(Unstacked(reader()), MemoryReader(unstacked_arrays(), CONFIG))
  both = in_layout(in_layout(reader(), False), True)
  assert_equal(both, reader())
  source = reader()
  assert in_layout(source, True) is source and in_layout(source, None) is source
  assert both.config == CONFIG


@pytest.mark.parametrize("name", [KERNEL, "token_embedder/embedding"])
def test_parts_of_a_stacked_leaf(name):
  source = Stacked(MemoryReader(unstacked_arrays()))
  for index in parts(arrays()[name].shape, RNG):
    assert np.array_equal(source.read(name, index), arrays()[name][index])


def test_parts_of_an_unstacked_leaf():
  source = Unstacked(reader())
  for index in parts(arrays()[KERNEL].shape[1:], RNG):
    assert np.array_equal(source.read("decoder/layers_2/mlp/wo/kernel", index),
                          arrays()[KERNEL][2][index])


def test_only_the_layers_of_the_part_are_read():
  source = Counting(unstacked_arrays())
  Stacked(source).read(KERNEL, (slice(1, 2), slice(None), slice(0, 3)))
  assert source.asked == ["decoder/layers_1/mlp/wo/kernel"]


def test_a_missing_layer():
  flat = unstacked_arrays()
  del flat["decoder/layers_1/mlp/wo/kernel"]
  with pytest.raises(UserError, match=r"mlp/wo/kernel: layers \[1\] are missing"):
    Stacked(MemoryReader(flat))


def test_layers_that_differ():
  flat = unstacked_arrays()
  flat["decoder/layers_1/mlp/wo/kernel"] = np.zeros((12, 9), np.float32)
  with pytest.raises(UserError, match=r"its layers differ: float32 \[12, 8\], float32 \[12, 9\]"):
    Stacked(MemoryReader(flat))


def test_a_layer_with_an_enormous_number():
  flat = {"encoder/layers_999999999/x": np.zeros(1), "encoder/layers_0/x": np.zeros(1)}
  with pytest.raises(UserError, match="are missing"):
    Stacked(MemoryReader(flat))


def test_names_of_groups():
  assert stacked_name("encoder/layers_3/mlp/wo/kernel") == "encoder/layers_*/mlp/wo/kernel"
  assert stacked_name("encoder/layers_03/x") == "encoder/layers_03/x"


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (7, 3)])
def test_aligned_memory(shape):
  array = empty(shape, np.float32)
  assert array.shape == shape and (array.size == 0 or array.ctypes.data % 64 == 0)
  array[...] = 3
  assert (array == 3).all()
