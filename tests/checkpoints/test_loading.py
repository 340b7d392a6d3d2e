"""Weights of every format straight into their devices, dtypes and layout; checks before weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sources import CONFIG, arrays, reader

from prompt_tuning import trees
from prompt_tuning.checkpoints import backbone, loading, t5x_legacy, t5x_orbax
from prompt_tuning.checkpoints.leaves import MemoryReader
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5
from prompt_tuning.tasks import vocabularies

FORMS = pytest.mark.parametrize("form", [backbone, t5x_legacy, t5x_orbax],
                                ids=["ours", "t5x", "t5x_orbax"])
MESH = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("rows", "columns"))
BYTES = vocabularies.fingerprint("bytes")
MODEL = dataclasses.replace(CONFIG, vocab_size=264)


def shapes(dtype="float32", spec=None, stacked=True):
  leaves = reader(stacked=stacked).leaves
  return trees.unflatten({name: jax.ShapeDtypeStruct(
    leaf.shape, jnp.dtype(dtype), sharding=spec and NamedSharding(MESH, spec(name, leaf.shape)))
    for name, leaf in leaves.items()})


def over_two_axes(name, shape):
  """Splits what can be split, on the last two axes; norms are replicated."""
  if len(shape) < 2:
    return PartitionSpec()
  return PartitionSpec(*(None,) * (len(shape) - 2), *(
    axis if n % 2 == 0 else None for axis, n in zip(("rows", "columns"), shape[-2:], strict=True)))


def save(form, path, config=CONFIG, **metadata):
  stacked = form is backbone
  form.write(str(path), reader(config, stacked=stacked), config=config, metadata=metadata)
  return str(path)


@FORMS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sharded_and_cast(tmp_path, form, dtype):
  source = loading.check(save(form, tmp_path / "x"), CONFIG, None)
  restored = trees.flatten(loading.restore(source, shapes(dtype, over_two_axes)))
  split = 0
  for name, array in arrays().items():
    found = restored[name]
    wanted = array.astype(jnp.dtype(dtype))
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    for shard in found.addressable_shards:
      assert np.asarray(shard.data).tobytes() == np.ascontiguousarray(
        wanted[shard.index]).tobytes(), name
    split += not found.sharding.is_fully_replicated
  assert split > 20


def test_unstacked_models_too(tmp_path):
  source = loading.check(save(t5x_legacy, tmp_path / "x"), CONFIG, None)
  restored = loading.restore(source, shapes(stacked=False))
  assert trees.differences(restored, trees.unflatten(
    {name: reader(stacked=False).read(name) for name in reader(stacked=False).leaves})) == []


class Counting(MemoryReader):
  """Records the parts that are read."""

  def __init__(self):
    super().__init__(arrays(), CONFIG)
    self.asked = []

  def read(self, name, index=None):
    self.asked.append((name, index))
    return super().read(name, index)


def test_a_leaf_whose_parts_are_all_here_is_read_once():
  source = Counting()
  loading.restore(source, shapes(spec=over_two_axes))
  assert sorted(name for name, _ in source.asked) == sorted(arrays())


def test_devices_that_hold_one_part_share_what_was_read():
  source = Counting()
  loading.restore(source, shapes(spec=lambda name, shape: PartitionSpec()))
  assert sorted(name for name, _ in source.asked) == sorted(arrays())


def test_only_the_local_parts_are_read(monkeypatch):
  # As on one of two hosts: the other's devices are not addressable.
  source = Counting()
  name = "token_embedder/embedding"
  monkeypatch.setattr(loading, "_size", lambda index, shape: 0)
  leaf = trees.flatten(shapes(spec=over_two_axes))[name]
  found = loading._place(source, name, leaf)
  assert np.array_equal(found, arrays()[name])
  assert len(source.asked) == 4 and all(index is not None for _, index in source.asked)


@FORMS
def test_initial_checkpoint_path_takes_every_format(tmp_path, form):
  path = save(form, tmp_path / "x", MODEL, vocabulary=BYTES)
  settings = ModelConfig(backbone=MODEL, vocabulary="bytes", initial_checkpoint_path=path,
                         frozen_dtype="bfloat16")
  loaded = trees.flatten(settings.load_backbone(0))
  for name, array in arrays(MODEL).items():
    assert np.asarray(loaded[name]).tobytes() == array.astype(jnp.bfloat16).tobytes()


def test_only_sizes_are_compared_where_shapes_are_all_there_is(tmp_path):
  other = dataclasses.replace(CONFIG, relative_attention_max_distance=64)
  assert loading.check(save(t5x_legacy, tmp_path / "x"), other, None)
  with pytest.raises(UserError, match="max_distance: 128 in the checkpoint, 64 in the model"):
    loading.check(save(backbone, tmp_path / "y"), other, None)
  with pytest.raises(UserError, match="num_heads: 2 in the checkpoint, 3 in the model"):
    loading.check(str(tmp_path / "x"), dataclasses.replace(other, num_heads=3, head_dim=2), None)


def test_leaves_are_checked_before_weights(tmp_path):
  path = save(t5x_legacy, tmp_path / "x")
  for folder in (tmp_path / "x").glob("target.*"):
    (folder / "0").unlink(missing_ok=True)
  more = dataclasses.replace(CONFIG, logits_via_embedding=True)
  with pytest.raises(UserError, match="logits_via_embedding: False in the checkpoint"):
    loading.check(path, more, None)


def test_a_prompt_among_the_parameters_is_unused_and_said(tmp_path):
  flat = dict(arrays()) | {"encoder/prompt/prompt/prompt": np.zeros((5, 8), np.float32)}
  source = MemoryReader(flat, CONFIG)
  backbone.write(str(tmp_path / "x"), source, config=CONFIG, metadata={})
  with pytest.raises(UserError, match=r"unused \['encoder/prompt/prompt/prompt'\] \(1\)(.*\n)*"
                     ".*--drop PATTERN"):
    loading.check(str(tmp_path / "x"), CONFIG, None)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_expected_leaves_are_the_models(scan_layers):
  config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
  shapes = trees.flatten(abstract_params(PromptedT5(T5(config)))["backbone"])
  assert {name: (leaf.shape, leaf.dtype) for name, leaf in loading.expected_leaves(
    config).items()} == {name: (x.shape, x.dtype) for name, x in shapes.items()}


@pytest.mark.parametrize("ids, rows, fits", [
  (32100, 32128, True), (250100, 250112, True), (259, 384, True), (259, 264, True),
  (259, 32128, False), (32100, 32000, False), (32100, 250112, False), (4100, 4228, False)])
def test_vocabularies_and_tables(ids, rows, fits):
  if fits:
    vocabularies.check_table("x", ids, rows)
    return
  with pytest.raises(UserError, match="does not fit the checkpoint") as caught:
    vocabularies.check_table("x", ids, rows)
  assert f"{ids:,} ids" in caught.value.found and f"{rows:,} rows" in caught.value.found


def test_the_vocabulary_that_lies_with_the_checkpoint_is_named(tmp_path):
  settings = ModelConfig(backbone=MODEL, vocabulary="t5", initial_checkpoint_path=str(tmp_path))
  with pytest.raises(UserError, match="hf download google/t5-v1_1-small"):
    settings.check()
  (tmp_path / "spiece.model").write_bytes(b"pieces")
  with pytest.raises(UserError, match="T5's vocabulary is not shipped") as caught:
    settings.check()
  assert caught.value.fix == f"--gin.VOCABULARY={tmp_path / 'spiece.model'}"
  assert f"INITIAL_CHECKPOINT_PATH has {tmp_path}" in caught.value.found


def test_a_checkpoint_that_does_not_say_its_vocabulary(tmp_path):
  path = save(t5x_legacy, tmp_path / "x", MODEL)
  settings = ModelConfig(backbone=MODEL, vocabulary="bytes", initial_checkpoint_path=path)
  settings.check()
  large = dataclasses.replace(CONFIG, vocab_size=500)
  path = save(t5x_legacy, tmp_path / "y", large)
  with pytest.raises(UserError, match="The vocabulary does not fit the checkpoint"):
    ModelConfig(backbone=large, vocabulary="bytes", initial_checkpoint_path=path).check()
