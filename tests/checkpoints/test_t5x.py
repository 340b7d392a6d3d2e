"""T5X's checkpoints: real ones, old ones, scanned ones, in a bucket; what they may not hold."""

import dataclasses
import json
import shutil

import fake_bucket
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization, traverse_util
from sources import CONFIG, TIED, arrays, assert_equal, parts, reader

from prompt_tuning import trees
from prompt_tuning.checkpoints import storage, t5x_legacy, t5x_orbax
from prompt_tuning.checkpoints.leaves import MemoryReader
from prompt_tuning.checkpoints.stacking import in_layout, is_stacked
from prompt_tuning.checkpoints.t5x_names import Scanned
from prompt_tuning.errors import UserError

FORMS = pytest.mark.parametrize("form", [t5x_legacy, t5x_orbax], ids=["legacy", "orbax"])
SHALLOW = dataclasses.replace(TIED, num_encoder_layers=1, num_decoder_layers=1)
KERNEL = "encoder/layers/attention/query/kernel"


def save(form, path, source, **metadata):
  form.write(str(path), source, config=source.config, metadata=metadata)
  return str(path)


def target_tree(config=CONFIG, scanned=False):
  """T5X's own `target`, made without the code under test where it is not scanned."""
  if scanned:
    source = Scanned(reader(config), config)
    return trees.unflatten({name: source.read(name) for name in source.leaves})
  source = reader(config, stacked=False)
  return trees.unflatten({name: source.read(name) for name in source.leaves})


def inline(tmp_path, state, version=3):
  """A checkpoint with everything in its msgpack, as Flax writes it."""
  folder = tmp_path / "checkpoint_7"
  folder.mkdir()
  (folder / "checkpoint").write_bytes(serialization.to_bytes(
    {"version": version, "optimizer": state}))
  return str(folder)


@FORMS
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["t5_1_1", "t5_1_0"])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(tmp_path, form, config, stacked, dtype):
  source = reader(config, dtype, stacked=stacked)
  path = save(form, tmp_path / "x", source, step=12)
  assert form.matches(path) and not (t5x_orbax if form is t5x_legacy else t5x_legacy).matches(path)
  found = form.open_checkpoint(path)
  assert is_stacked(found.leaves) is stacked
  assert_equal(found, source)
  assert found.config == config and found.metadata["step"] == 12
  assert list(found.ignored) == ["state/step"]


@FORMS
def test_parts_of_scanned_leaves(tmp_path, form):
  found = form.open_checkpoint(save(form, tmp_path / "x", reader()))
  for name in (KERNEL, "decoder/layers/pre_mlp_layer_norm/scale",
               "encoder/relpos_bias/rel_embedding"):
    for index in parts(arrays()[name].shape, np.random.default_rng(0)):
      assert np.array_equal(found.read(name, index), arrays()[name][index])


def test_the_real_checkpoint(shared_data):
  folder = shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3"
  for path in (folder, folder / "checkpoint"):
    assert t5x_legacy.matches(str(path))
  found = t5x_legacy.open_checkpoint(str(folder))
  assert len(found.leaves) == 52 and found.metadata["step"] == 3
  # Adafactor's state, and the step.
  assert len(found.ignored) == 209
  golden = np.load(shared_data / "t5x/tiny_embeddings_32128x4.npy")
  assert np.array_equal(found.read("token_embedder/embedding"), golden)
  part = (slice(4000, 9000), slice(1, 3))
  assert np.array_equal(found.read("token_embedder/embedding", part), golden[part])
  config = found.config
  assert (config.vocab_size, config.emb_dim, config.num_heads, config.head_dim, config.mlp_dim,
          config.num_encoder_layers, config.relative_attention_num_buckets) == (
            32128, 4, 2, 2, 8, 2, 4)


def test_the_real_one_that_is_no_t5(shared_data):
  with pytest.raises(UserError, match="no parameters"):
    t5x_legacy.open_checkpoint(str(shared_data / "t5x/tiny_t5/checkpoint_1"))


def test_placeholders_of_the_first_orbax(shared_data, tmp_path):
  """The real one has no target: a target is added to its index and beside it."""
  folder = tmp_path / "1"
  shutil.copytree(shared_data / "t5x/tiny_orbax/1", folder)
  index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
  values = np.arange(6, dtype=np.float32).reshape(2, 3)
  other = save(t5x_legacy, tmp_path / "other", MemoryReader({"kernel": values}, CONFIG))
  shutil.copytree(f"{other}/target.kernel", folder / "target.kernel")
  index["target"] = {"kernel": "PLACEHOLDER://target.kernel"}
  del index["_optimizer"]
  (folder / "checkpoint").write_bytes(msgpack.packb(index))
  found = t5x_legacy.open_checkpoint(str(folder))
  assert np.array_equal(found.read("kernel"), values)


@pytest.mark.parametrize("scanned", [False, True])
def test_inline_leaves(tmp_path, scanned):
  state = {"param_states": {"x": {"m": np.zeros(3, np.float32), "v": None}}, "step": np.int32(7)}
  path = inline(tmp_path, {"target": target_tree(scanned=scanned), "state": state})
  found = t5x_legacy.open_checkpoint(path)
  assert_equal(found, reader(stacked=scanned))
  assert found.metadata["step"] == 7
  assert found.ignored["state/param_states/x/m"].shape == (3,)


def test_version_2_keeps_bfloat16_as_uint16(tmp_path):
  bits = trees.map_with_path(lambda _, x: x.astype(jnp.bfloat16).view(np.uint16), target_tree())
  path = inline(tmp_path, {"target": bits, "state": {"step": np.int32(1)}}, version=2)
  wanted = in_layout(MemoryReader({k: x.astype(jnp.bfloat16) for k, x in arrays().items()}), False)
  assert_equal(t5x_legacy.open_checkpoint(path), wanted)


def test_version_2_beside_the_index(tmp_path):
  values = np.arange(6, dtype=np.uint16).reshape(2, 3)
  path = save(t5x_legacy, tmp_path / "x", MemoryReader({"kernel": values}, CONFIG))
  index = tmp_path / "x/checkpoint"
  index.write_bytes(msgpack.packb(msgpack.unpackb(index.read_bytes()) | {"version": 2}))
  assert np.array_equal(t5x_legacy.open_checkpoint(path).read("kernel"), values.view(jnp.bfloat16))


def test_a_version_of_the_future(tmp_path):
  path = inline(tmp_path, {"target": target_tree(), "state": {}}, version=4)
  with pytest.raises(UserError, match="version of T5X's checkpoints is not known\n.*checkpoint: 4"):
    t5x_legacy.open_checkpoint(path)


def test_biases_that_differ_between_layers(tmp_path):
  tree = target_tree(scanned=True)
  tree["encoder"]["encoder"]["relpos_bias"]["rel_embedding"][0, 1, 3] += 1
  path = inline(tmp_path, {"target": tree, "state": {}})
  with pytest.raises(UserError, match="a relative bias of its own\n(.*\n)*.*umT5"):
    t5x_legacy.open_checkpoint(path)


def test_tensorflows_file_of_the_same_name_is_not_t5x(tmp_path):
  (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000"\n')
  assert not t5x_legacy.matches(str(tmp_path)) and not t5x_orbax.matches(str(tmp_path))
  assert not t5x_legacy.matches(str(tmp_path / "nothing"))


def test_an_array_that_is_not_what_the_index_says(tmp_path):
  path = save(t5x_legacy, tmp_path / "x", reader(stacked=False))
  folder = tmp_path / "x/target.token_embedder.embedding"
  metadata = json.loads((folder / ".zarray").read_text())
  (folder / ".zarray").write_text(json.dumps(metadata | {"dtype": "<i4"}))
  with pytest.raises(UserError, match="int32.*\n.*as the index says"):
    t5x_legacy.open_checkpoint(path).read("token_embedder/embedding")


@pytest.mark.parametrize("where", ["../secret", "/etc/secret", "a/../../secret"])
def test_an_index_that_names_files_elsewhere(tmp_path, where):
  path = save(t5x_legacy, tmp_path / "x", reader(stacked=False))
  index = tmp_path / "x/checkpoint"
  content = msgpack.unpackb(index.read_bytes())
  content["optimizer"]["target"]["token_embedder"]["embedding"]["kvstore"]["path"] = where
  index.write_bytes(msgpack.packb(content))
  with pytest.raises(UserError, match="which is not in it"):
    t5x_legacy.open_checkpoint(path)


def test_orbax_itself_reads_what_we_write(tmp_path):
  path = save(t5x_orbax, tmp_path / "x", reader(stacked=False), step=4)
  tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(f"{path}/state")
  assert tree["state"]["step"] == 4
  assert trees.differences(tree["target"], target_tree()) == []


@pytest.mark.parametrize("packed", [True, False])
def test_what_orbax_itself_writes(tmp_path, packed):
  tree = {"target": target_tree(), "state": {"step": np.int32(4), "param_states": {"x": None}}}
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=packed)
  ocp.Checkpointer(handler).save(tmp_path / "checkpoint_4/state", tree)
  for path in (tmp_path / "checkpoint_4", tmp_path / "checkpoint_4/state"):
    assert t5x_orbax.matches(str(path))
    found = t5x_orbax.open_checkpoint(str(path))
    assert_equal(found, reader(stacked=False))
    assert found.metadata["step"] == 4


def test_zarr_3_is_refused(tmp_path):
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
  ocp.Checkpointer(handler).save(tmp_path / "state", {"target": target_tree()})
  with pytest.raises(UserError, match="zarr, version 3"):
    t5x_orbax.open_checkpoint(str(tmp_path))


@FORMS
def test_optimizer_state_goes_along(tmp_path, form):
  states = {"decoder": {"x": {"v": np.arange(4, dtype=np.float32), "m": np.zeros(1, np.float32)}}}
  path = inline(tmp_path, {"target": target_tree(), "state": {
    "step": np.int32(3), "param_states": states}})
  source = t5x_legacy.open_checkpoint(path)
  state = {name: array for name, array in source.state.items() if "param_states" in name}
  form.write(str(tmp_path / "x"), source, config=CONFIG, metadata={"step": 3}, state=state)
  found = form.open_checkpoint(str(tmp_path / "x"))
  kept = {name: array.read() for name, array in found.state.items() if "param_states" in name}
  assert trees.differences(trees.unflatten(kept)["state"]["param_states"], states) == []


@pytest.fixture
def bucket(monkeypatch):
  objects = {}
  with fake_bucket.serve(objects) as address:
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    yield objects


def upload(bucket, folder, name):
  for path in folder.rglob("*"):
    if path.is_file():
      bucket[f"weights/{name}/{path.relative_to(folder)}"] = path.read_bytes()


@FORMS
def test_a_bucket_is_read(tmp_path, bucket, form):
  wanted = reader(SHALLOW, stacked=False)
  save(form, tmp_path / "x", wanted, step=5)
  upload(bucket, tmp_path / "x", "t5/checkpoint_5")
  assert form.matches("gs://weights/t5/checkpoint_5")
  assert not form.matches("gs://weights/t5/checkpoint_6")
  found = form.open_checkpoint("gs://weights/t5/checkpoint_5")
  assert_equal(found, wanted)
  assert found.metadata["step"] == 5


def test_a_bucket_is_written_and_its_index_last(bucket):
  wanted = reader(SHALLOW, stacked=False)
  save(t5x_legacy, "gs://weights/new", wanted)
  assert list(bucket)[-1] == "weights/new/checkpoint"
  assert_equal(t5x_legacy.open_checkpoint("gs://weights/new"), wanted)
  index = msgpack.unpackb(bucket["weights/new/checkpoint"])
  flat = traverse_util.flatten_dict(index["optimizer"]["target"], sep="/", is_leaf=lambda _, x: (
    "driver" in x))
  assert all(x["kvstore"]["bucket"] == "t5x-dummy-bucket" for x in flat.values())


def test_a_bucket_that_lacks_a_file(tmp_path, bucket):
  save(t5x_legacy, tmp_path / "x", reader(stacked=False))
  upload(bucket, tmp_path / "x", "t5")
  del bucket["weights/t5/target.token_embedder.embedding/0.0"]
  with pytest.raises(UserError, match="embedding/0.0: this part of the array is missing"):
    t5x_legacy.open_checkpoint("gs://weights/t5").read("token_embedder/embedding")


def test_a_bucket_that_does_not_answer(monkeypatch):
  monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")
  monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
  monkeypatch.setattr(storage, "_RETRIES", {"max_retries": 1, "initial_delay": "1ms"})
  with pytest.raises(UserError, match="The bucket cannot be read\n(.*\n)*.*credentials"):
    t5x_legacy.matches("gs://weights/t5/checkpoint_5")


def test_orbax_is_not_written_to_a_bucket():
  with pytest.raises(UserError, match="gcloud storage cp"):
    save(t5x_orbax, "gs://weights/x", reader(stacked=False))


def test_an_address_that_is_none():
  with pytest.raises(UserError, match="not the address of a checkpoint"):
    t5x_legacy.open_checkpoint("gs://")
