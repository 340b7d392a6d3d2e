"""Our reading and writing of safetensors against the safetensors library, and hostile headers."""

import json

import ml_dtypes
import numpy as np
import pytest
from damage import FUZZ, damaged, survives
from hypothesis import given, settings
from safetensors.flax import load_file
from safetensors.numpy import save, save_file
from sources import parts

from prompt_tuning.checkpoints import leaves, safetensors_file
from prompt_tuning.checkpoints.leaves import Leaf
from prompt_tuning.checkpoints.safetensors_file import SafetensorsFile
from prompt_tuning.errors import UserError

ARRAYS = {"a": np.arange(105, dtype=np.float32).reshape(3, 5, 7),
          "b": np.asarray(2.5, np.float32), "c": np.zeros((0, 4), np.float16),
          "d": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)}


def write(path, metadata=None):
  safetensors_file.write(path, {k: Leaf(x.shape, x.dtype) for k, x in ARRAYS.items()},
                         ARRAYS.__getitem__, metadata)


def test_the_library_reads_what_we_write(tmp_path):
  write(tmp_path / "x", {"format": "pt"})
  found = load_file(tmp_path / "x")
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert np.asarray(found[name]).tobytes() == array.tobytes()
  assert SafetensorsFile(tmp_path / "x").metadata == {"format": "pt"}


@pytest.mark.parametrize("block", [32, 2**24])
def test_we_read_what_the_library_writes(tmp_path, monkeypatch, block):
  monkeypatch.setattr(safetensors_file, "_BLOCK", block)
  save_file({k: x for k, x in ARRAYS.items() if k != "d"}, tmp_path / "x")
  file = SafetensorsFile(tmp_path / "x")
  rng = np.random.default_rng(0)
  for name, leaf in file.leaves.items():
    assert leaf == Leaf(ARRAYS[name].shape, ARRAYS[name].dtype)
    for index in parts(leaf.shape, rng):
      part = file.read(name, index)
      assert part.shape == ARRAYS[name][index].shape
      assert np.array_equal(part, ARRAYS[name][index])
    assert np.array_equal(file.read(name), ARRAYS[name])


def entry(**changes):
  return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


@pytest.mark.parametrize("header, why", [
  ({"a": entry(shape=[2, 3])}, "does not fit"),
  ({"a": entry(data_offsets=[8, 24])}, "does not fit"),
  ({"a": entry(shape=[2**40, 2**40], data_offsets=[0, 2**82])}, "does not fit"),
  ({"a": entry(shape=[-2, -2])}, "negative"), ({"a": entry(shape=[2.0, 2])}, "negative"),
  ({"a": entry(dtype="U4")}, "unsupported type U4"), ({"a": entry(), "b": entry()}, "overlap"),
  ({"a": 3}, "int"), ([], "list"), ({"a": {"dtype": "F32"}}, "shape")])
def test_hostile_headers(tmp_path, header, why):
  text = json.dumps(header).encode()
  (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
  with pytest.raises(UserError, match=f"(?s)whole safetensors file|{why}") as caught:
    SafetensorsFile(tmp_path / "x")
  assert why in caught.value.found


def test_a_header_that_is_larger_than_the_file(tmp_path):
  (tmp_path / "x").write_bytes((2**60).to_bytes(8, "little") + b"{}")
  with pytest.raises(UserError, match="10 bytes, and a header of 1,152,921,504,606,846,976"):
    SafetensorsFile(tmp_path / "x")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
  write(tmp_path / "x")
  file = SafetensorsFile(tmp_path / "x")
  with open(tmp_path / "x", "r+b") as handle:
    handle.truncate(400)
  with pytest.raises(UserError, match="ends before its last tensor"):
    for name in file.leaves:
      file.read(name)


def test_an_unknown_dtype():
  assert leaves.dtype_of(None) is None
  with pytest.raises(UserError, match="not stored in this dtype\n.*int8"):
    leaves.dtype_of("int8")


def read_all(path):
  file = SafetensorsFile(path)
  return sum(file.read(name).size for name in file.leaves)


@settings(FUZZ, max_examples=500)
@given(content=damaged(save({"a": np.ones((4, 5), np.float32), "b": np.ones(3, np.float16)})))
def test_damaged_files(tmp_path, content):
  (tmp_path / "x").write_bytes(content)
  found = survives(lambda: read_all(tmp_path / "x"))
  assert isinstance(found, UserError) or found <= 10_000
