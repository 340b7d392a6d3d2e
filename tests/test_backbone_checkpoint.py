"""Backbone folders: round trips to the bit, and an error for everything that does not fit."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CONFIG, random_params, unstacked
from safetensors import SafetensorError

from prompt_tuning import trees
from prompt_tuning.checkpoints import backbone, loading, safetensors_file
from prompt_tuning.checkpoints.backbone import METADATA, WEIGHTS, BackboneReader
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5
from prompt_tuning.tasks import vocabularies

MODEL = PromptedT5(T5(CONFIG))
PARAMS = random_params(MODEL)["backbone"]
UNSTACKED = unstacked({"backbone": PARAMS})["backbone"]
SCANNED = abstract_params(MODEL)["backbone"]
VOCABULARY = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path):
  backbone.save(tmp_path / "model", PARAMS, CONFIG, vocabulary=VOCABULARY, about={"from": "random"})
  return tmp_path / "model"


def as_type(tree, dtype):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def restore(folder, expected):
  return loading.restore(BackboneReader(str(folder)), expected)


def error_of(function, *args) -> UserError:
  with pytest.raises(UserError) as caught:
    function(*args)
  return caught.value


@pytest.mark.parametrize("saved", [PARAMS, UNSTACKED], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("wanted", [PARAMS, UNSTACKED], ids=["scanned", "unscanned"])
def test_round_trip_to_the_bit_in_either_layout(tmp_path, saved, wanted):
  backbone.save(tmp_path / "model", saved, CONFIG, vocabulary=VOCABULARY, about={})
  restored = restore(tmp_path / "model", as_type(wanted, jnp.float32))
  assert trees.differences(restored, wanted) == []


def test_bfloat16_is_stored_in_half_the_bytes(folder, tmp_path):
  small = tmp_path / "small"
  backbone.save(small, PARAMS, CONFIG, vocabulary=VOCABULARY, about={}, dtype="bfloat16")
  rounded = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16)), PARAMS)
  assert trees.differences(restore(small, as_type(SCANNED, jnp.bfloat16)), rounded) == []
  wide = jax.tree.map(lambda x: x.astype(np.float32), rounded)
  assert trees.differences(restore(small, as_type(SCANNED, jnp.float32)), wide) == []
  difference = (folder / WEIGHTS).stat().st_size - (small / WEIGHTS).stat().st_size
  assert difference == pytest.approx(2 * trees.count(PARAMS), rel=0.02)


def test_the_fingerprint_is_of_names_and_values(folder):
  print_of = backbone.fingerprint(PARAMS)
  metadata = json.loads((folder / METADATA).read_text())
  assert len(print_of) == 16 and metadata["fingerprint"] == print_of
  assert backbone.fingerprint(UNSTACKED) == print_of
  assert backbone.fingerprint(restore(folder, SCANNED)) == print_of
  flat = trees.flatten(PARAMS)
  first = next(iter(flat))
  assert backbone.fingerprint(trees.unflatten(flat | {first: flat[first] + 1e-3})) != print_of
  renamed = {("x/" + p if p == first else p): leaf for p, leaf in flat.items()}
  assert backbone.fingerprint(trees.unflatten(renamed)) != print_of
  assert metadata["parameters"] == trees.count(PARAMS) and metadata["from"] == "random"


def test_a_model_dir_stands_for_the_backbone_in_it(folder):
  folder.rename(folder.parent / "backbone")
  assert backbone.folder_of(str(folder.parent)) == folder.parent / "backbone"
  reader = loading.check(str(folder.parent), CONFIG, VOCABULARY)
  assert trees.differences(loading.restore(reader, SCANNED), PARAMS) == []


def test_what_is_not_a_checkpoint(tmp_path, monkeypatch):
  monkeypatch.setattr(backbone, "shipped_models", lambda: ["tiny", "other"])
  error = error_of(loading.find, "tinny")
  assert error.what == "INITIAL_CHECKPOINT_PATH is not a checkpoint"
  assert "tinny (does not exist)" in error.found and "did you mean 'tiny'" in error.fix
  (tmp_path / "file").write_text("x")
  assert "(a file)" in error_of(loading.find, str(tmp_path / "file")).found
  assert "(a folder with file)" in error_of(loading.find, str(tmp_path)).found


def test_another_architecture(folder):
  other = dataclasses.replace(CONFIG, mlp_dim=13, mlp_activations=("relu",))
  error = error_of(loading.check, str(folder), other, VOCABULARY)
  assert error.what == "The checkpoint and the model differ"
  assert "mlp_dim: 12 in the checkpoint, 13 in the model" in error.found
  assert "mlp_activations: ['gelu', 'linear'] in the checkpoint" in error.found
  run = dataclasses.replace(CONFIG, dropout_rate=0.1, dtype="bfloat16", scan_layers=False)
  assert loading.check(str(folder), run, VOCABULARY).leaves == BackboneReader(str(folder)).leaves


def test_another_vocabulary(folder):
  error = error_of(loading.check, str(folder), CONFIG, "f" * 16)
  assert error.what == "The checkpoint was trained with another vocabulary"
  assert VOCABULARY in error.wanted and "f" * 16 in error.found and "VOCABULARY" in error.fix
  model = dataclasses.replace(CONFIG, vocab_size=264)
  backbone.save(folder, random_params(PromptedT5(T5(model)))["backbone"], model,
                vocabulary=vocabularies.fingerprint("tiny"), about={})
  settings = ModelConfig(backbone=model, vocabulary="bytes", initial_checkpoint_path=str(folder))
  assert error_of(settings.check).what == error.what
  small = ModelConfig(backbone=CONFIG, vocabulary="bytes", initial_checkpoint_path="random")
  assert error_of(small.check).what == "The vocabulary does not fit the embedding table"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00garbage", b"{}",
                                     b'{"architecture": {}}', b'{"architecture": 3}'])
def test_metadata_that_cannot_be_read(folder, content):
  (folder / METADATA).write_bytes(content)
  error = error_of(loading.check, str(folder), CONFIG, VOCABULARY)
  assert f"{METADATA} cannot be read" in error.what and METADATA in error.found


def test_weights_that_are_missing(folder):
  (folder / WEIGHTS).unlink()
  error = error_of(loading.check, str(folder), CONFIG, VOCABULARY)
  assert error.what == "The checkpoint has no weights" and WEIGHTS in error.found


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "garbage"])
def test_weights_that_are_damaged(folder, damage):
  path = folder / WEIGHTS
  content = bytearray(path.read_bytes())
  if damage == "header":
    content[3] ^= 0x40
  path.write_bytes({"truncated": content[:-100], "header": content, "empty": b"",
                    "garbage": b"\x93NUMPY" * 50}[damage])
  error = error_of(restore, folder, SCANNED)
  assert error.what == "The checkpoint's weights cannot be read" and str(path) in error.found
  assert "truncated" in error.fix


def test_leaves_that_are_missing_or_unused(folder):
  flat = trees.flatten(SCANNED)
  path = "decoder/decoder_norm/scale"
  wanted = trees.unflatten({("decoder/other/scale" if p == path else p): x
                            for p, x in flat.items()})
  error = error_of(restore, folder, wanted)
  assert error.what == "The checkpoint's parameters are not the model's"
  assert "missing ['decoder/other/scale'] (1)" in error.found
  assert f"unused ['{path}'] (1)" in error.found


def test_a_leaf_of_another_shape(folder):
  path = "token_embedder/embedding"
  wanted = trees.map_with_path(lambda p, x: jax.ShapeDtypeStruct((21, 8), x.dtype)
                               if p == path else x, SCANNED)
  error = error_of(restore, folder, wanted)
  assert error.what == "A parameter of the checkpoint has another shape"
  assert error.found == f"{path}: (20, 8)" and error.wanted == "(21, 8)"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"),
                                     SafetensorError("I/O error: No space left on device")])
def test_the_old_folder_survives_a_full_disk(folder, monkeypatch, failure):
  def full(*args):
    raise failure

  with monkeypatch.context() as patch:
    patch.setattr(safetensors_file, "write", full)
    error = error_of(lambda: backbone.save(folder, PARAMS, CONFIG, vocabulary="", about={}))
  assert error.what == "No space is left while saving a backbone"
  assert trees.differences(restore(folder, SCANNED), PARAMS) == []
  doubled = jax.tree.map(lambda x: 2 * x, PARAMS)
  backbone.save(folder, doubled, CONFIG, vocabulary=VOCABULARY, about={})
  assert trees.differences(restore(folder, SCANNED), doubled) == []
  assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_a_place_that_takes_no_files(folder, monkeypatch):
  def denied(*args):
    raise PermissionError("not yours")

  monkeypatch.setattr(safetensors_file, "write", denied)
  with pytest.raises(UserError, match="The disk does not take a backbone\n.*model: not yours"):
    backbone.save(folder, PARAMS, CONFIG, vocabulary="", about={})


def test_what_is_frozen_may_be_stored_in_fewer_bits(folder):
  flat = trees.flatten(PARAMS)
  settings = ModelConfig(backbone=dataclasses.replace(CONFIG, vocab_size=20),
                         initial_checkpoint_path=str(folder), frozen_dtype="bfloat16")
  split = trees.Split({"backbone/encoder/layers/mlp/wo/kernel": (1, 2)})
  loaded = trees.flatten(_loaded(settings, folder, split))
  assert {p for p, x in loaded.items() if x.dtype == jnp.float32} == {
    "encoder/layers/mlp/wo/kernel"}
  assert np.array_equal(loaded["encoder/layers/mlp/wo/kernel"],
                        flat["encoder/layers/mlp/wo/kernel"])


def _loaded(settings, folder, split):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ModelConfig, "check", lambda self: BackboneReader(str(folder)))
    return settings.load_backbone(0, split)
