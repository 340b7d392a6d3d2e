"""Checkpoints of the original T5 releases: written here by TensorFlow under those names."""

import os
import warnings

import hf_folders
import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.checkpoints import hf, mesh_tf
from prompt_tuning.errors import UserError


def variables(version: str) -> dict[str, np.ndarray]:
  """A golden Hugging Face model under Mesh TensorFlow's names and in its layout.

  1.1 has the newer names of the norms, `rms_norm`.
  """
  norm, last = ("rms_norm", "rms_norm") if version == "1_1" else ("layer_norm", "final_layer_norm")
  found = {}
  for name, leaf in hf_folders.tensors(hf_folders.golden(version)).items():
    parts = name.split(".")
    if name == "shared.weight":
      theirs, value = "shared/embedding", leaf
    elif name == "lm_head.weight":
      theirs, value = "decoder/logits/kernel", leaf.T
    elif parts[1] == "final_layer_norm":
      theirs, value = f"{parts[0]}/{last}/scale", leaf
    else:
      here = f"{parts[0]}/block_{int(parts[2]):03d}/layer_{int(parts[4]):03d}"
      module, kind = parts[5], parts[-2]
      if module == "layer_norm":
        theirs, value = f"{here}/{norm}/scale", leaf
      else:
        theirs = f"{here}/{module}/{kind}" + ("/kernel" if module == "DenseReluDense" else "")
        value = leaf.T
    found[theirs] = np.ascontiguousarray(value)
  return found


def save(prefix, arrays: dict[str, np.ndarray], shards: int = 1) -> str:
  """Writes a checkpoint, in several data files as the released ones are."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf
  prefix.parent.mkdir(parents=True, exist_ok=True)
  names = sorted(arrays)
  parts = [f"{prefix}_part{i}" for i in range(shards)]
  for i, part in enumerate(parts):
    mine = names[i::shards]
    tf.raw_ops.SaveV2(prefix=part, tensor_names=mine, shape_and_slices=[""] * len(mine),
                      tensors=[tf.constant(arrays[name]) for name in mine])
  tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix))
  return str(prefix)


def slots(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adafactor's statistics of each variable, and the step."""
  found = {"global_step": np.asarray(1000000, np.int64)}
  for name, leaf in arrays.items():
    kinds = ("slot_vr", "slot_vc") if leaf.ndim == 2 else ("slot_v",)
    found |= {f"{name}_{kind}": leaf.reshape(-1)[:3] for kind in kinds}
  return found


def error_of(path) -> UserError:
  with pytest.raises(UserError) as error:
    mesh_tf.MeshTFReader(str(path))
  return error.value


@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_the_same_model_as_hugging_faces(tmp_path, version):
  arrays = variables(version)
  path = save(tmp_path / "model.ckpt-1000000", arrays | slots(arrays), shards=2)
  assert len(list(tmp_path.glob("*.data-*"))) == 2
  reader = mesh_tf.MeshTFReader(path)
  theirs = hf.HFReader(hf_folders.save_golden(tmp_path / "hf", version))
  assert reader.leaves == theirs.leaves and reader.ignored.keys() == slots(arrays).keys()
  for name in theirs.leaves:
    assert reader.read(name).tobytes() == np.ascontiguousarray(theirs.read(name)).tobytes()
  part = (slice(2, 5), slice(1, 4))
  np.testing.assert_array_equal(reader.read("token_embedder/embedding", part),
                                theirs.read("token_embedder/embedding", part))
  # All but the largest distance, which no shape shows.
  assert reader.config.relative_attention_max_distance == 128
  assert {field: value for field, value in vars(reader.config).items()
          if field != "relative_attention_max_distance"} == {
    field: value for field, value in vars(theirs.config).items()
    if field != "relative_attention_max_distance"}
  assert reader.metadata["step"] == 1000000


def test_a_prefix_its_index_and_the_newest_of_a_folder(tmp_path):
  for step in (9, 1000, 20):
    save(tmp_path / f"model.ckpt-{step}", {"shared/embedding": np.full((2, 3), step, np.float32)})
  for path, step in ((tmp_path, 1000), (tmp_path / "model.ckpt-20", 20),
                     (tmp_path / "model.ckpt-9.index", 9)):
    reader = mesh_tf.MeshTFReader(str(path))
    assert mesh_tf.matches(str(path)) and reader.metadata["step"] == step
    assert reader.read("token_embedder/embedding")[0, 0] == step
  for path in (tmp_path / "none", tmp_path / "model.ckpt-7", tmp_path.parent):
    assert not mesh_tf.matches(str(path))
  assert error_of(tmp_path / "none").what == "There is no Mesh TensorFlow checkpoint"


def test_bfloat16_variables(tmp_path):
  table = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
  reader = mesh_tf.MeshTFReader(save(tmp_path / "model.ckpt-1", {"shared/embedding": table}))
  assert reader.read("token_embedder/embedding").dtype == table.dtype
  np.testing.assert_array_equal(reader.read("token_embedder/embedding"), table)


@pytest.mark.parametrize("name", [
  "encoder/block_000/layer_000/SelfAttention/bias", "encoder/block_000/layer_002/layer_norm/scale",
  "decoder/block_000/layer_001/DenseReluDense/wx/kernel", "transformer/block_000/x", "q"])
def test_other_variables_keep_their_names(tmp_path, name):
  assert mesh_tf.our_name(name) is None
  reader = mesh_tf.MeshTFReader(save(tmp_path / "model.ckpt-1", {name: np.ones(3, np.float32)}))
  np.testing.assert_array_equal(reader.read(name), np.ones(3))


def test_a_bias_in_every_layer(tmp_path):
  name = "encoder/block_001/layer_000/SelfAttention/relative_attention_bias"
  error = error_of(save(tmp_path / "model.ckpt-1", {name: np.ones((2, 3), np.float32)}))
  assert error.what == "Each layer of this checkpoint has a relative bias of its own"


def test_one_leaf_under_two_names(tmp_path):
  scale = np.ones(3, np.float32)
  error = error_of(save(tmp_path / "model.ckpt-1", {"encoder/rms_norm/scale": scale,
                                                    "encoder/final_layer_norm/scale": scale}))
  assert "as encoder/encoder_norm/scale" in error.found


def test_files_that_are_missing_or_lead_out(tmp_path):
  path = save(tmp_path / "a/model.ckpt-1", {"shared/embedding": np.ones((50, 50), np.float32)})
  data = f"{path}.data-00000-of-00001"
  os.rename(data, tmp_path / "elsewhere")
  assert "The checkpoint's weights cannot be read" in error_of(path).what
  os.symlink(tmp_path / "elsewhere", data)
  assert "is a link out of its folder" in error_of(path).found


@pytest.mark.parametrize("kept", [0, 1, 100, 9999])
def test_data_that_is_truncated(tmp_path, kept):
  path = save(tmp_path / "model.ckpt-1", {"shared/embedding": np.ones((50, 50), np.float32)})
  data = tmp_path / "model.ckpt-1.data-00000-of-00001"
  data.write_bytes(data.read_bytes()[:kept])
  assert "declares 10,000 of" in error_of(path).found


def test_bits_that_changed_are_found_by_the_checksum(tmp_path):
  path = save(tmp_path / "model.ckpt-1", {"shared/embedding": np.ones((50, 50), np.float32)})
  data = tmp_path / "model.ckpt-1.data-00000-of-00001"
  content = bytearray(data.read_bytes())
  content[5000] ^= 1
  data.write_bytes(content)
  with pytest.raises(UserError) as error:
    mesh_tf.MeshTFReader(path).read("token_embedder/embedding")
  assert "The checkpoint's weights cannot be read" in error.value.what
