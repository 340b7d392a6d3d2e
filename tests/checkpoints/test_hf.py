"""Hugging Face folders: layouts, the tying trap, parts of leaves, and folders that do not fit."""

import dataclasses
import hashlib
import json
import os

import hf_folders
import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.checkpoints import hf, hf_export, hf_files, hf_names, loading
from prompt_tuning.checkpoints.leaves import DTYPES, MemoryReader
from prompt_tuning.checkpoints.safetensors_file import SafetensorsFile
from prompt_tuning.errors import UserError

EMBEDDING = "shared.weight"


def weights(version: str = "1_1") -> dict[str, np.ndarray]:
  return dict(hf_folders.tensors(hf_folders.golden(version)))


def open_folder(folder, version="1_1", tensors=None, **changes) -> hf.HFReader:
  theirs = {k: v for k, v in (hf_folders.config(version) | changes).items() if v is not None}
  return hf.HFReader(hf_folders.save(folder / "model", theirs, tensors or weights(version)))


def error_of(function, *arguments, **keywords) -> UserError:
  with pytest.raises(UserError) as error:
    function(*arguments, **keywords)
  return error.value


def save_shards(folder, tensors, number=3, **changes):
  """A sharded folder, as transformers writes it."""
  names = [f"model-{i + 1:05d}-of-{number:05d}.safetensors" for i in range(number)]
  parts = [dict(list(tensors.items())[i::number]) for i in range(number)]
  for name, part in zip(names, parts, strict=True):
    hf_folders.save(folder, hf_folders.config("1_1"), part, name)
  places = {key: name for name, part in zip(names, parts, strict=True) for key in part} | changes
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
  return str(folder)


@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_every_leaf_and_its_parts(tmp_path, version):
  reader = open_folder(tmp_path, version)
  entries = hf_names.table(reader.config)
  assert reader.leaves.keys() == {entry.ours for entry in entries} and not reader.ignored
  for entry in entries:
    theirs = weights(version)[entry.theirs]
    ours = theirs.T if entry.transposed else theirs
    assert reader.leaves[entry.ours].shape == ours.shape
    np.testing.assert_array_equal(reader.read(entry.ours), ours)
    part = tuple(slice(i + 1, 4 + i) for i in range(ours.ndim))
    np.testing.assert_array_equal(reader.read(entry.ours, part), ours[part])


def test_a_part_is_read_without_the_rest(tmp_path, monkeypatch):
  reader = open_folder(tmp_path)
  asked = []
  plain = SafetensorsFile.read
  monkeypatch.setattr(SafetensorsFile, "read",
                      lambda self, name, index=None: asked.append((name, index)) or plain(
                        self, name, index))
  reader.read("decoder/logits_dense/kernel", (slice(None), slice(2, 5)))
  # Columns of ours are rows of the file.
  assert asked == [("lm_head.weight", (slice(2, 5), slice(0, 12)))]


def test_shards_are_one_checkpoint(tmp_path):
  whole = open_folder(tmp_path)
  shards = hf.HFReader(save_shards(tmp_path / "shards", weights()))
  assert shards.leaves == whole.leaves and shards.config == whole.config
  for name in whole.leaves:
    np.testing.assert_array_equal(shards.read(name), whole.read(name))


@pytest.mark.parametrize("flags", [
  {"tie_word_embeddings": None, "scale_decoder_outputs": None}, {"tie_word_embeddings": False}])
def test_copies_of_the_embedding_are_no_weights(tmp_path, flags):
  """transformers 4 stores the table up to four times."""
  tensors = weights("1_0")
  for name in (*hf_names.COPIES, "lm_head.weight", hf_names.UNUSED):
    tensors[name] = tensors[EMBEDDING]
  reader = open_folder(tmp_path, "1_0", tensors, **flags)
  assert reader.config.logits_via_embedding
  assert reader.ignored.keys() == {*hf_names.COPIES, "lm_head.weight", hf_names.UNUSED}
  assert reader.leaves == open_folder(tmp_path / "plain", "1_0").leaves


def test_tied_but_not_scaled_becomes_an_output_of_its_own(tmp_path):
  reader = open_folder(tmp_path, "1_0", scale_decoder_outputs=False)
  assert not reader.config.logits_via_embedding
  np.testing.assert_array_equal(reader.read("decoder/logits_dense/kernel"),
                                weights("1_0")[EMBEDDING].T)


def test_an_output_that_differs_late_is_an_output(tmp_path):
  tensors = weights("1_1")
  tensors["lm_head.weight"] = tensors[EMBEDDING].copy()
  tensors["lm_head.weight"][-1, -1] += 1
  reader = open_folder(tmp_path, tensors=tensors)
  np.testing.assert_array_equal(reader.read("decoder/logits_dense/kernel"),
                                tensors["lm_head.weight"].T)
  error = error_of(open_folder, tmp_path, tensors=tensors, scale_decoder_outputs=None)
  assert error.what == "config.json and the weights disagree about the output layer"


def test_two_embeddings(tmp_path):
  tensors = weights() | {"decoder.embed_tokens.weight": weights()[EMBEDDING] + 1}
  error = error_of(open_folder, tmp_path, tensors=tensors)
  assert error.what == "This T5 has more than one embedding"
  assert "decoder.embed_tokens.weight differs from shared.weight" in error.found


def test_what_is_missing_and_what_is_no_t5s_is_shown(tmp_path):
  tensors = weights() | {"classifier.weight": np.ones((2, 3), np.float32)}
  del tensors["decoder.final_layer_norm.weight"]
  reader = open_folder(tmp_path, tensors=tensors)
  assert "decoder/decoder_norm/scale" not in reader.leaves
  np.testing.assert_array_equal(reader.read("classifier.weight"), np.ones((2, 3)))


@pytest.mark.parametrize("name, content, fingerprint", [
  ("spiece.model", b"pieces", hashlib.sha256(b"pieces").hexdigest()[:16]),
  ("tokenizer_config.json", b'{"tokenizer_class": "ByT5Tokenizer"}',
   hashlib.sha256(b"bytes").hexdigest()[:16]),
  ("tokenizer_config.json", b'{"tokenizer_class": "T5Tokenizer"}', None)])
def test_the_vocabulary_of_a_folder(tmp_path, name, content, fingerprint):
  path = hf_folders.save_golden(tmp_path / "model", "1_1")
  (tmp_path / "model" / name).write_bytes(content)
  assert hf.HFReader(path).metadata.get("vocabulary") == fingerprint


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_written_and_read_again(tmp_path, monkeypatch, version, dtype):
  source = open_folder(tmp_path, version)
  monkeypatch.setattr(hf_export, "SHARD_BYTES", 5000)
  path = str(tmp_path / "new" / "model")
  hf_export.write(path, source, config=source.config, metadata=source.metadata, dtype=dtype)
  again = hf.HFReader(path)
  assert again.config == source.config and again.leaves.keys() == source.leaves.keys()
  for name in source.leaves:
    wanted = source.read(name).astype(DTYPES[dtype or "float32"])
    assert again.read(name).dtype == wanted.dtype
    assert again.read(name).tobytes() == wanted.tobytes()
  index = json.loads((tmp_path / "new/model/model.safetensors.index.json").read_text())
  sizes = {name: os.path.getsize(tmp_path / "new/model" / name)
           for name in set(index["weight_map"].values())}
  assert len(sizes) > 2 and index["metadata"]["total_size"] < sum(sizes.values())


def test_bfloat16_folders(tmp_path):
  tensors = {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in weights().items()}
  reader = open_folder(tmp_path, tensors=tensors)
  assert {leaf.dtype for leaf in reader.leaves.values()} == {DTYPES["bfloat16"]}
  np.testing.assert_array_equal(reader.read("token_embedder/embedding"), tensors[EMBEDDING])


def test_only_a_whole_t5_is_written(tmp_path):
  source = open_folder(tmp_path)
  flat = {name: source.read(name) for name in source.leaves}
  wrong = dict(flat, extra=np.ones(3, np.float32))
  wrong["encoder/encoder_norm/scale"] = np.ones(5, np.float32)
  del wrong["decoder/decoder_norm/scale"]
  error = error_of(hf_export.write, str(tmp_path / "new"), MemoryReader(wrong),
                   config=source.config, metadata={})
  assert "missing ['decoder/decoder_norm/scale'] (1), unused ['extra'] (1)" in error.found
  assert "encoder/encoder_norm/scale [5], not [12]" in error.found
  assert not (tmp_path / "new").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
  source = open_folder(tmp_path)
  (tmp_path / "model" / "spiece.model").write_bytes(b"pieces")
  error = error_of(hf_export.write, source.path, source, config=source.config, metadata={})
  assert error.what == "The folder holds other things, which would be lost"
  assert "spiece.model" in error.found
  (tmp_path / "file").write_bytes(b"")
  error = error_of(hf_export.write, str(tmp_path / "file"), source, config=source.config,
                   metadata={})
  assert error.what == "A Hugging Face checkpoint is a folder"


def test_folders_without_weights(tmp_path):
  path = hf_folders.save_golden(tmp_path / "model", "1_1")
  os.rename(tmp_path / "model/model.safetensors", tmp_path / "model/tf_model.h5")
  assert not hf.matches(path)
  error = error_of(hf.HFReader, path)
  assert error.what == "This Hugging Face checkpoint has no weights that are read"
  assert "tf_model.h5" in error.found
  (tmp_path / "model/model.safetensors").write_bytes(
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
  assert hf.matches(path)
  error = error_of(hf.HFReader, path)
  assert error.what == "The weights are not there yet" and "git lfs pull" in error.fix


def test_what_is_read_of_a_repository():
  shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  index = "model.safetensors.index.json"
  other = ["README.md", "tf_model.h5", "pytorch_model.bin", "flax_model.msgpack", "spiece.model"]
  assert hf_files.choose(["config.json", *other, index, *shards]) == [
    "config.json", "spiece.model", index, *shards]
  assert hf_files.choose(["config.json", *other, "model.safetensors"]) == [
    "config.json", "spiece.model", "model.safetensors"]
  assert hf_files.choose(["config.json", "flax_model.msgpack"]) == ["config.json",
                                                                    "flax_model.msgpack"]
  assert hf_files.choose(["README.md"]) == []


def test_each_kind_of_file_is_an_initial_checkpoint(tmp_path):
  """As `INITIAL_CHECKPOINT_PATH` finds and checks it."""
  path = hf_folders.save_golden(tmp_path / "hf", "1_1")
  reader = hf.HFReader(path)
  assert loading.find(path) is hf.FORMAT
  assert loading.check(path, reader.config, None).leaves == reader.leaves
  error = error_of(loading.check, path, dataclasses.replace(reader.config, mlp_dim=21), None)
  assert error.what == "The checkpoint and the model differ" and "mlp_dim: 20" in error.found
  (tmp_path / "hf/tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
  error = error_of(loading.check, path, reader.config, "0123456789abcdef")
  assert error.what == "The checkpoint was trained with another vocabulary"


@pytest.mark.parametrize("release", hf_folders.FLAGS)
@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_folders_of_transformers_4_and_5(tmp_path, version, release):
  theirs = hf_folders.config(version, release=release)
  reader = hf.HFReader(hf_folders.save(tmp_path / "model", theirs, weights(version)))
  assert reader.config.logits_via_embedding == (version == "1_0")
  assert reader.config == open_folder(tmp_path / "5", version).config
