"""`flax_model.msgpack` against flax's own serialisation, to the bit."""

import json

import hf_folders
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util

from prompt_tuning.checkpoints import flax_msgpack, hf
from prompt_tuning.checkpoints.flax_msgpack import FlaxFile, torch_name
from prompt_tuning.errors import UserError


def flax_tree(tensors: dict[str, np.ndarray]) -> dict:
  """PyTorch's state dict as the nested tree of `FlaxT5ForConditionalGeneration`."""
  tree: dict = {}
  for name, leaf in tensors.items():
    *path, last = name.split(".")
    if path[-1] == "shared" or path[-1] == "relative_attention_bias":
      last = "embedding"
    elif "layer_norm" not in path[-1]:
      last, leaf = "kernel", leaf.T
    here = tree
    for part in path:
      here = here.setdefault(part, {})
    here[last] = np.ascontiguousarray(leaf)
  return tree


def save(folder, version="1_1", name="flax_model.msgpack", tensors=None):
  folder.mkdir(exist_ok=True)
  hf_folders.save_golden(folder, version)
  (folder / "model.safetensors").unlink()
  tree = flax_tree(tensors or hf_folders.tensors(hf_folders.golden(version)))
  (folder / name).write_bytes(serialization.to_bytes(tree))
  return str(folder)


def error_of(path) -> UserError:
  with pytest.raises(UserError) as error:
    FlaxFile(path)
  return error.value


@pytest.mark.parametrize("chunk", [2**30, 100])
@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_the_same_checkpoint_as_safetensors(tmp_path, monkeypatch, version, chunk):
  # Above 1 GiB flax cuts arrays into pieces.
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", chunk)
  ours = hf.HFReader(save(tmp_path / "flax", version))
  assert hf.matches(ours.path)
  safe = hf.HFReader(hf_folders.save_golden(tmp_path / "safe", version))
  assert ours.leaves == safe.leaves and ours.config == safe.config and not ours.ignored
  for name, leaf in safe.leaves.items():
    part = tuple(slice(1, 3 + i) for i in range(len(leaf.shape)))
    assert ours.read(name).tobytes() == safe.read(name).tobytes()
    np.testing.assert_array_equal(ours.read(name, part), safe.read(name, part))


def test_parts_are_read_block_by_block(tmp_path, monkeypatch):
  monkeypatch.setattr(flax_msgpack, "_BLOCK", 64)
  array = np.arange(7 * 9, dtype=np.float32).reshape(7, 9)
  (tmp_path / "file").write_bytes(serialization.to_bytes({"a": {"kernel": array}, "b": array,
                                                          "c": np.full((), 3, np.float32)}))
  file = FlaxFile(tmp_path / "file")
  assert set(file.leaves) == {"a.weight", "b", "c"}
  np.testing.assert_array_equal(file.read("a.weight"), array.T)
  part = (slice(2, 8), slice(1, 6))
  np.testing.assert_array_equal(file.read("a.weight", part), array.T[part])
  np.testing.assert_array_equal(file.read("b", (slice(2, 3), slice(0, 9))), array[2:3])
  assert file.read("c") == 3 and file.read("c").shape == ()


def test_shards(tmp_path):
  tensors = hf_folders.tensors(hf_folders.golden("1_1"))
  halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
  names = [f"flax_model-0000{i + 1}-of-00002.msgpack" for i in range(2)]
  for name, half in zip(names, halves, strict=True):
    save(tmp_path / "flax", name=name, tensors=half)
  places = {"/".join(path): name for name, half in zip(names, halves, strict=True)
            for path in traverse_util.flatten_dict(flax_tree(half))}
  index = tmp_path / "flax/flax_model.msgpack.index.json"
  index.write_text(json.dumps({"weight_map": places | {"a/b": names[0], "c": names[1]}}))
  with pytest.raises(UserError) as error:
    hf.HFReader(str(tmp_path / "flax"))
  assert "2 tensors that are not there" in error.value.found
  index.write_text(json.dumps({"weight_map": places}))
  assert len(hf.HFReader(str(tmp_path / "flax")).leaves) == len(tensors)


def test_names():
  assert torch_name("encoder/block/0/layer/0/SelfAttention/q/kernel") == (
    "encoder.block.0.layer.0.SelfAttention.q.weight")
  assert torch_name("shared/embedding") == "shared.weight"
  assert torch_name("encoder/final_layer_norm/weight") == "encoder.final_layer_norm.weight"


def packed(shape, dtype, content) -> bytes:
  array = msgpack.packb((shape, dtype, content), use_bin_type=True)
  return msgpack.packb({"a": msgpack.ExtType(1, array)})


@pytest.mark.parametrize("content, why", [
  (b"", "it ends in the middle"),
  (b"\x81\xa1a", "it ends in the middle"),
  (msgpack.packb([1, 2]), "it is not a map of names"),
  (msgpack.packb({"a": 3}), "a is int, not an array"),
  (msgpack.packb({"a": None}), "starts nothing that is known"),
  (msgpack.packb({3: {}}), "3 is not a name"),
  (msgpack.packb({"a": msgpack.ExtType(2, b"12")}), "an extension that is not an array"),
  (msgpack.packb({"a" * 2000: 1}), "a name has 2,000 bytes"),
  (b"\xdf\xff\xff\xff\xff", "it declares 4,294,967,295 entries"),
  (b"\xdb\xff\xff\xff\xff", "a name has 4,294,967,295 bytes"),
  (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93", "ends after the file"),
  (b"\x81\xa1a" * 40 + b"\x80", "it is nested too deeply"),
  (packed((2, 3), "float32", b"12"), "an array [2, 3] has 2 bytes"),
  (packed((10**12, 10**12), "float32", b"12"), "has 2 bytes"),
  (packed((-1,), "float32", b"1234"), "starts nothing that is known"),
  (packed((1,), "object", b"1234"), "the unsupported type 'object'"),
  (packed("ab", "float32", b"1234"), "'ab' is not a shape"),
  (msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {}}}),
   "a has no chunks"),
  (msgpack.packb({"a": {"__msgpack_chunked_array__": True}}), "lacks its shape or chunks")])
def test_files_that_are_made_up(tmp_path, content, why):
  (tmp_path / "file").write_bytes(content)
  error = error_of(tmp_path / "file")
  assert error.what == "The checkpoint's weights cannot be read" and why in error.found


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(serialization.to_bytes({"a": np.ones((50, 50), np.float32)}))
  file = FlaxFile(path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError) as error:
    file.read("a")
  assert "it ends before its last array" in error.value.found
