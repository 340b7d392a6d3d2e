"""Our checkpoints and T5X's, damaged or made to harm: a UserError, no code run, no blow-up."""

import dataclasses
import json
import shutil

import msgpack
import pytest
from damage import FUZZ, damaged, read_every_leaf, survives
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import TIED, reader

from prompt_tuning.checkpoints import backbone, loading, t5x_legacy, t5x_orbax
from prompt_tuning.errors import UserError

CONFIG = dataclasses.replace(TIED, num_encoder_layers=1, num_decoder_layers=1)
SOME = settings(FUZZ, max_examples=100)
FORMS = {"ours": backbone, "t5x": t5x_legacy, "t5x_orbax": t5x_orbax}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A small checkpoint in each format."""
  root = tmp_path_factory.mktemp("whole")
  for name, form in FORMS.items():
    form.write(str(root / name), reader(CONFIG, stacked=name == "ours"), config=CONFIG,
               metadata={})
  return root


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def read_all(form, path) -> int:
  return read_every_leaf(form.FORMAT.open(str(path)))


@pytest.mark.parametrize("name", FORMS)
def test_the_undamaged_ones_are_read(whole, name):
  wanted = sum(leaf.size for leaf in reader(CONFIG).leaves.values())
  assert read_all(FORMS[name], whole / name) == wanted


@pytest.mark.parametrize("name", FORMS)
def test_damaged_files(tmp_path, whole, name):
  copy = tmp_path / "copy"
  shutil.copytree(whole / name, copy)

  @SOME
  @given(data=st.data())
  def check(data):
    path = data.draw(st.sampled_from(files_of(copy)), "file")
    original = path.read_bytes()
    path.write_bytes(data.draw(damaged(original), "content"))
    try:
      found = survives(lambda: read_all(FORMS[name], copy))
    finally:
      path.write_bytes(original)
    assert isinstance(found, UserError) or found <= 100_000

  check()


@pytest.mark.parametrize("name", FORMS)
def test_files_that_are_missing(tmp_path, whole, name):
  copy = tmp_path / "copy"
  shutil.copytree(whole / name, copy)
  wanted = read_all(FORMS[name], copy)
  lost = 0
  for path in files_of(copy):
    original = path.read_bytes()
    path.unlink()
    found = survives(lambda: read_all(FORMS[name], copy))
    path.write_bytes(original)
    # A database keeps the files of its earlier states, and its tree is in it twice.
    assert isinstance(found, UserError) or (name == "t5x_orbax" and found == wanted), path
    lost += isinstance(found, UserError)
  assert lost >= 2


def entry(**metadata):
  return {"driver": "zarr", "dtype": "float32", "kvstore": {"driver": "file", "path": "x"},
          "metadata": {"shape": [2, 3]} | metadata}


LEAF = msgpack.ExtType(1, msgpack.packb(([2, 3], "float32", bytes(24))))


@pytest.mark.parametrize("target", [
  {"a": entry(shape=[2**62, 2**62])}, {"a": entry(shape=[-1])}, {"a": entry(shape="23")},
  {"a": entry(shape=None)}, {"a": entry() | {"dtype": "object"}}, {"a": entry() | {"kvstore": 3}},
  {"a": entry() | {"metadata": None}}, {"a/../../b": LEAF}, {"..": {"a": LEAF}}, {"": LEAF},
  {"a": msgpack.ExtType(1, msgpack.packb(([2**40, 2**40], "float32", bytes(24))))},
  {"a": msgpack.ExtType(1, msgpack.packb(([2, 3], "object", bytes(48))))},
  {"a": msgpack.ExtType(1, b"\xc1")}, {"a": msgpack.ExtType(9, b"")}, {"a": "PLACEHOLDER://../x"},
  {"a": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}}}, {"a": None}, {}, None,
  [1], {"a": 2**64 - 1}])
def test_hostile_indices(tmp_path, target):
  content = msgpack.packb({"version": 3, "optimizer": {"target": target}})
  (tmp_path / "checkpoint").write_bytes(content)
  found = survives(lambda: read_all(t5x_legacy, tmp_path))
  assert isinstance(found, UserError)
  assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint"]


def test_a_deep_index(tmp_path):
  deep = b"\x81\xa1a" * 5000 + b"\xc0"
  (tmp_path / "checkpoint").write_bytes(b"\x81\xa6target" + deep)
  assert isinstance(survives(lambda: read_all(t5x_legacy, tmp_path)), UserError)


def test_links_out_of_the_folder(tmp_path, whole):
  (tmp_path / "secret").write_bytes(b"secret")
  for name in ("t5x", "t5x_orbax"):
    copy = tmp_path / name
    shutil.copytree(whole / name, copy)
    (copy / "state" / "link" if name == "t5x_orbax" else copy / "link").symlink_to(
      tmp_path / "secret")
    assert "is a link to" in survives(lambda: read_all(FORMS[name], copy)).found  # noqa: B023


@pytest.mark.parametrize("field, value", [
  ("vocab_size", 2**62), ("num_encoder_layers", 10**9), ("num_heads", 0), ("emb_dim", "8"),
  ("mlp_activations", ["exec"]), ("mlp_activations", 3), ("relative_attention_max_distance", None)])
def test_hostile_architectures(tmp_path, whole, field, value):
  copy = tmp_path / "copy"
  shutil.copytree(whole / "ours", copy)
  metadata = json.loads((copy / backbone.METADATA).read_text())
  metadata["architecture"][field] = value
  (copy / backbone.METADATA).write_text(json.dumps(metadata))
  found = survives(lambda: loading.check(str(copy), CONFIG, None))
  assert isinstance(found, UserError)
