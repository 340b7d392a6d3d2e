"""Checkpoints of others that are damaged or made to harm: a UserError, no code run, no blow-up."""

import importlib.util
import io
import json
import os
import pickle
import sys
import warnings

import hf_folders
import numpy as np
import pytest
from damage import FUZZ, damaged, no_code_run, read_every_leaf, survives
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from test_flax_msgpack import flax_tree
from test_mesh_tf import save as save_mesh_tf

from prompt_tuning.checkpoints import hf, mesh_tf
from prompt_tuning.checkpoints.flax_msgpack import FlaxFile
from prompt_tuning.checkpoints.leaves import DTYPES
from prompt_tuning.errors import UserError

TENSORS = {name: leaf for name, leaf in hf_folders.tensors(hf_folders.golden("1_1")).items()
           if "block.1" not in name and "block.2" not in name}
CONFIG = hf_folders.config("1_1") | {"num_layers": 1, "num_decoder_layers": 1}
SAFE = save(TENSORS)
FLAX = serialization.to_bytes(flax_tree(TENSORS))
INDEX = "model.safetensors.index.json"


def folder_of(tmp_path, **files: bytes):
  """A folder with config.json and these files; `__` in a name stands for a dot."""
  folder = tmp_path / "model"
  folder.mkdir(exist_ok=True)
  for old in folder.iterdir():
    old.unlink()
  for name, content in ({"config__json": json.dumps(CONFIG).encode()} | files).items():
    (folder / name.replace("__", ".")).write_bytes(content)
  return folder


def read_all(folder) -> int:
  return read_every_leaf(hf.HFReader(str(folder)))


def check(found):
  assert isinstance(found, UserError) or found <= 100_000


def test_the_undamaged_ones_are_read(tmp_path):
  wanted = sum(leaf.size for leaf in TENSORS.values())
  assert read_all(folder_of(tmp_path, model__safetensors=SAFE)) == wanted
  assert read_all(folder_of(tmp_path, flax_model__msgpack=FLAX)) == wanted


@FUZZ
@given(content=damaged(SAFE))
def test_safetensors(tmp_path, content):
  folder = folder_of(tmp_path, model__safetensors=content)
  check(survives(lambda: read_all(folder)))


@FUZZ
@given(content=damaged(FLAX))
def test_flax(tmp_path, content):
  folder = folder_of(tmp_path, flax_model__msgpack=content)
  check(survives(lambda: read_all(folder)))


@FUZZ
@given(content=damaged(serialization.to_bytes({"a": {"kernel": np.ones((2, 3), np.float32)}})))
def test_small_flax_files(tmp_path, content):
  (tmp_path / "file").write_bytes(content)

  def read():
    file = FlaxFile(tmp_path / "file")
    return sum(file.read(name).size for name in file.leaves)

  check(survives(read))


@FUZZ
@given(content=damaged(json.dumps(CONFIG).encode()))
def test_config_json(tmp_path, content):
  folder = folder_of(tmp_path, config__json=content, model__safetensors=SAFE)
  check(survives(lambda: read_all(folder)))


@FUZZ
@given(changes=st.dictionaries(
  st.sampled_from(sorted(CONFIG)), st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=9),
    st.lists(st.integers(), max_size=2)), max_size=3))
def test_values_of_config_json(tmp_path, changes):
  folder = folder_of(tmp_path, config__json=json.dumps(CONFIG | changes).encode(),
                     model__safetensors=SAFE)
  check(survives(lambda: read_all(folder)))


@FUZZ
@given(places=st.one_of(
  st.dictionaries(st.sampled_from([*list(TENSORS)[:4], "other"]), st.one_of(
    st.sampled_from(["model.safetensors.1", "/etc/passwd", "../x", "..", ".", "", "\0", "a/../../x",
                     "config.json", "missing"]), st.text(max_size=8), st.integers())),
  st.none(), st.lists(st.text(max_size=3)), st.text(max_size=3)))
def test_indices(tmp_path, places):
  folder = folder_of(tmp_path, **{"model.safetensors.1": SAFE,
                                  INDEX: json.dumps({"weight_map": places}).encode()})
  check(survives(lambda: read_all(folder)))


@FUZZ
@given(content=damaged(json.dumps({"weight_map": dict.fromkeys(TENSORS, "part")}).encode()))
def test_damaged_indices(tmp_path, content):
  folder = folder_of(tmp_path, part=SAFE, **{INDEX: content})
  check(survives(lambda: read_all(folder)))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/../../outside", "", "..",
                                  "a\0b"])
def test_an_index_that_leads_out(tmp_path, name):
  (tmp_path / "outside").write_bytes(SAFE)
  index = json.dumps({"weight_map": dict.fromkeys(TENSORS, name)}).encode()
  folder = folder_of(tmp_path, **{INDEX: index})
  found = survives(lambda: read_all(folder))
  assert isinstance(found, UserError) and f"{name!r}, which is not in it" in found.found


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", INDEX])
def test_links_that_lead_out(tmp_path, name):
  index = json.dumps({"weight_map": dict.fromkeys(TENSORS, "part")}).encode()
  files = {"part": SAFE, INDEX: index} if name == INDEX else {"model__safetensors": SAFE}
  folder = folder_of(tmp_path, **files)
  os.rename(folder / name, tmp_path / "outside")
  (folder / name).symlink_to(tmp_path / "outside")
  found = survives(lambda: read_all(folder))
  assert isinstance(found, UserError) and "which is not in it" in found.found
  (folder / name).unlink()
  (folder / name).symlink_to(folder / name)
  assert isinstance(survives(lambda: read_all(folder)), UserError)


def header_of(**entry) -> bytes:
  header = json.dumps({"shared.weight": {"dtype": "F32", "shape": [2, 2],
                                         "data_offsets": [0, 16]} | entry}).encode()
  return len(header).to_bytes(8, "little") + header + bytes(16)


@pytest.mark.parametrize("entry", [
  {"shape": [2**40, 2**40]}, {"shape": [2**40, 2**40], "data_offsets": [0, 2**82]},
  {"shape": [-2, -2]}, {"shape": [2, 2.0]}, {"shape": "22"}, {"dtype": "O"}, {"dtype": None},
  {"data_offsets": [-16, 0]}, {"data_offsets": [16, 32]}, {"data_offsets": [0]}, {"shape": [3, 2]}])
def test_headers_of_safetensors(tmp_path, entry):
  folder = folder_of(tmp_path, model__safetensors=header_of(**entry))
  found = survives(lambda: read_all(folder))
  assert isinstance(found, UserError) and found.what == "The checkpoint's weights cannot be read"


def test_more_layers_than_weights(tmp_path):
  for key in ("num_layers", "num_decoder_layers"):
    folder = folder_of(tmp_path, model__safetensors=SAFE,
                       config__json=json.dumps(CONFIG | {key: 2**31 - 1}).encode())
    found = survives(lambda folder=folder: read_all(folder))
    assert f"{key} 2,147,483,647, and {len(TENSORS)} tensors" in found.found


def test_a_shape_that_config_json_does_not_say(tmp_path):
  folder = folder_of(tmp_path, model__safetensors=SAFE,
                     config__json=json.dumps(CONFIG | {"d_ff": 21}).encode())
  found = survives(lambda: read_all(folder))
  assert "DenseReluDense.wi_0.weight is float32 [20, 12]" in found.found
  assert f"{' or '.join(DTYPES)} [21, 12], as config.json says" in found.wanted


torch_is_needed = pytest.mark.skipif(importlib.util.find_spec("torch") is None,
                                     reason="pickled checkpoints are read with torch")


@torch_is_needed
@pytest.mark.parametrize("layout", [True, False], ids=["zip", "legacy"])
def test_pickles_run_nothing(tmp_path, layout):
  import torch
  folder = folder_of(tmp_path)
  state = {name: torch.tensor(leaf) for name, leaf in TENSORS.items()}
  with no_code_run(tmp_path) as payload:
    torch.save(state | {"x": payload}, folder / "pytorch_model.bin",
               _use_new_zipfile_serialization=layout)
    found = survives(lambda: read_all(folder))
    assert found.what == "A pickled checkpoint is not plain weights"
    assert "reading it could run code" in found.fix
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": payload}, 2))
    assert isinstance(survives(lambda: read_all(folder)), UserError)


@torch_is_needed
def test_tensors_that_declare_more_than_is_stored(tmp_path):
  import torch
  folder = folder_of(tmp_path)
  torch.save({"shared.weight": torch.ones(1).expand(2**20, 2**20)}, folder / "pytorch_model.bin")
  found = survives(lambda: read_all(folder))
  assert "is larger than what is stored of it" in found.found


@torch_is_needed
@pytest.mark.filterwarnings("ignore")
@settings(FUZZ, max_examples=40)
@given(data=st.data())
def test_damaged_pickles(tmp_path, data):
  import torch
  stream = io.BytesIO()
  torch.save({name: torch.tensor(leaf) for name, leaf in TENSORS.items()}, stream,
             _use_new_zipfile_serialization=data.draw(st.booleans()))
  content = data.draw(damaged(stream.getvalue()))
  folder = folder_of(tmp_path, **{"pytorch_model.bin": content})
  check(survives(lambda: read_all(folder)))


def test_without_torch_a_pickle_is_an_error_that_says_how(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  found = survives(lambda: read_all(folder_of(tmp_path, **{"pytorch_model.bin": b"pickle"})))
  assert found.what == "A pickled checkpoint needs PyTorch"
  assert "save_pretrained(NEW_FOLDER)" in found.fix


@pytest.fixture(scope="module")
def mesh_files(tmp_path_factory) -> dict[str, bytes]:
  folder = tmp_path_factory.mktemp("mesh")
  save_mesh_tf(folder / "model.ckpt-1", {
    "shared/embedding": np.ones((20, 30), np.float32), "global_step": np.asarray(1, np.int64),
    "encoder/block_000/layer_000/SelfAttention/q": np.ones((30, 40), np.float32)})
  return {path.name: path.read_bytes() for path in folder.iterdir() if "part" not in path.name}


@settings(FUZZ, max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mesh_tf(tmp_path, mesh_files, data):
  damaged_file = data.draw(st.sampled_from(sorted(mesh_files)))
  content = data.draw(damaged(mesh_files[damaged_file]))
  for name, whole in mesh_files.items():
    (tmp_path / name).write_bytes(content if name == damaged_file else whole)

  def read():
    reader = mesh_tf.MeshTFReader(str(tmp_path))
    return sum(reader.read(name).size for name in reader.leaves)

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    check(survives(read))
