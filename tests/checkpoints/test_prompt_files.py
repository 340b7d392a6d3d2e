"""Prompts through every pair of formats, to the bit, and what each file says about itself."""

import io
import itertools
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest

from prompt_tuning.checkpoints import npz_files, peft, prompt_files
from prompt_tuning.errors import UserError
from prompt_tuning.prompts.initializers import read_prompt

VALUES = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
BANK = np.random.default_rng(1).normal(size=(3, 5, 6)).astype(np.float32)
NAMES = {"npz": "prompt.npz", "npy": "prompt.npy", "peft": "adapter",
         "t5x": "numpy_checkpoints/checkpoint_7/encoder.prompt.prompt.prompt"}


def same(first: np.ndarray, second: np.ndarray) -> bool:
  return first.dtype == second.dtype and first.shape == second.shape and (
    first.tobytes() == second.tobytes())


def save(folder, form: str, values=VALUES, **metadata) -> str:
  path = str(folder / NAMES[form])
  prompt_files.write(path, values, metadata)
  return path


@pytest.mark.parametrize("first, second", list(itertools.product(NAMES, NAMES)))
def test_every_pair_of_formats_to_the_bit(tmp_path, first, second):
  one = prompt_files.read(save(tmp_path / "one", first))
  two = prompt_files.read(save(tmp_path / "two", second, one.values, **one.metadata))
  assert (one.format, two.format) == (first, second)
  assert same(two.values, VALUES)
  assert same(read_prompt(two.path, 5, 6), VALUES)


@pytest.mark.parametrize("name", ["sst2", "mrpc", "rte"])
@pytest.mark.parametrize("form", NAMES)
def test_the_released_prompts_round_trip(tmp_path, shared_data, name, form):
  released = shared_data / "t5x/pretrained_prompts/t5_1_1_lm100k_base" / f"{name}.npy"
  if not released.is_file():
    pytest.skip(f"no {released.name} of the paper's code in shared/data")
  first = prompt_files.read(str(released))
  again = prompt_files.read(save(tmp_path, form, first.values))
  assert again.values.shape == (100, 768)
  assert again.values.tobytes() == np.load(released).tobytes()
  prompt_files.write(str(tmp_path / "back.npy"), again.values, {})
  assert (tmp_path / "back.npy").read_bytes() == released.read_bytes()


def test_ours_says_what_it_was_trained_with(tmp_path):
  about = prompt_files.describe(VALUES, backbone="0123456789abcdef", vocabulary="fedcba9876543210",
                                task="docstring_match")
  found = prompt_files.read(save(tmp_path, "npz", **about)).metadata
  assert found == about
  assert found["prompt_length"] == 5 and found["backbone"] == "0123456789abcdef"
  assert found["vocabulary"] == "fedcba9876543210" and found["task"] == "docstring_match"
  assert found["versions"]["jax"] and found["versions"]["numpy"] == np.__version__
  assert prompt_files.describe(BANK)["prompt_length"] == 5


def test_ours_is_an_npz_that_numpy_opens(tmp_path):
  path = save(tmp_path, "npz", task="mine")
  with np.load(path, allow_pickle=False) as file:
    assert same(file["prompt"], VALUES)
    assert json.loads(file["metadata.json"]) == {"task": "mine"}
  before = pathlib.Path(path).read_bytes()
  assert pathlib.Path(save(tmp_path, "npz", task="mine")).read_bytes() == before


def test_the_papers_file_is_what_numpy_saves(tmp_path):
  stream = io.BytesIO()
  np.save(stream, VALUES)
  for form in ("t5x", "npy"):
    assert pathlib.Path(save(tmp_path, form)).read_bytes() == stream.getvalue()


def test_a_model_dir_of_the_papers_code_stands_for_its_newest_prompt(tmp_path):
  for step in (9, 1_150_000, 20):
    path = tmp_path / f"numpy_checkpoints/checkpoint_{step}/{prompt_files.T5X_NAME}"
    prompt_files.write(str(path), VALUES * step, {})
  (tmp_path / "numpy_checkpoints/checkpoint_tmp").mkdir()
  newest = VALUES * 1_150_000
  for path in (tmp_path, tmp_path / "numpy_checkpoints",
               tmp_path / "numpy_checkpoints/checkpoint_1150000"):
    assert same(prompt_files.read(str(path)).values, newest)


@pytest.mark.parametrize("name", ["", peft.CONFIG, peft.WEIGHTS])
def test_an_adapter_may_be_named_by_its_files(tmp_path, name):
  path = save(tmp_path, "peft", base_model="google/t5-base-lm-adapt")
  found = prompt_files.read(os.path.join(path, name))
  assert same(found.values, VALUES) and found.metadata["base_model"] == "google/t5-base-lm-adapt"


def test_banks(tmp_path):
  for form in ("npz", "npy"):
    path = save(tmp_path, form, BANK)
    assert same(prompt_files.read(path).values, BANK)
    with pytest.raises(UserError, match="The prompt file is a bank of prompts"):
      read_prompt(path, None, 6)
  for form in ("t5x", "peft"):
    with pytest.raises(UserError, match=f"A bank of prompts does not fit the format {form}") as e:
      save(tmp_path, form, BANK)
    assert e.value.found == "3 prompts" and ".npz" in e.value.fix


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_floats_and_orders(tmp_path, dtype, order):
  stored = np.asarray(VALUES.astype(dtype), order=order)
  np.save(tmp_path / "prompt.npy", stored)
  assert same(prompt_files.read(str(tmp_path / "prompt.npy")).values, stored.astype(np.float32))


def test_names_of_new_files():
  assert {form: prompt_files.target_format(name) for form, name in NAMES.items()} == {
    form: form for form in NAMES}
  with pytest.raises(UserError, match="No format of prompts has this suffix") as error:
    prompt_files.target_format("prompt.pt")
  assert ".npz" in error.value.wanted


def test_another_setting_is_named(tmp_path):
  with pytest.raises(UserError, match="^--from does not exist"):
    prompt_files.read(str(tmp_path / "none"), "--from")
  (tmp_path / "text.txt").write_text("hello")
  with pytest.raises(UserError, match="^--from is not a prompt"):
    prompt_files.read(str(tmp_path / "text.txt"), "--from")


def test_float64_beyond_float32_is_not_finite(tmp_path):
  np.save(tmp_path / "prompt.npy", np.full((2, 3), 1e300))
  with pytest.raises(UserError, match="values that are not finite"):
    prompt_files.read(str(tmp_path / "prompt.npy"))


@pytest.mark.parametrize("form", ["npz", "npy", "t5x", "peft"])
def test_what_stood_there_survives_a_failure(tmp_path, monkeypatch, form):
  path = save(tmp_path, form)

  def full(*args, **keywords):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", full)
    patch.setattr(peft, "save_file", full)
    with pytest.raises(UserError, match="No space is left while saving a prompt"):
      save(tmp_path, form, 2 * VALUES)
  assert same(prompt_files.read(path).values, VALUES)
  assert same(prompt_files.read(save(tmp_path, form, 2 * VALUES)).values, 2 * VALUES)


def archive(path, members: dict, compression=zipfile.ZIP_STORED) -> str:
  with zipfile.ZipFile(path, "w", compression) as file:
    for name, content in members.items():
      file.writestr(name, content)
  return str(path)


@pytest.mark.parametrize("change, found", [
  ({"metadata.json": None}, "it holds ['prompt.npy']"),
  ({"../prompt.npy": b""}, "it holds ['../prompt.npy', 'metadata.json', 'prompt.npy']"),
  ({"metadata.json": "[]"}, "metadata.json is not an object"),
  ({"metadata.json": "[" * 100_000}, "its archive is damaged"),
  ({"metadata.json": "x"}, "Expecting value"),
  ({"metadata.json": " " * 2**21}, "metadata.json is larger than any metadata"),
  ({"prompt.npy": b"none"}, "its header is not that of a .npy file")])
def test_archives_that_are_not_ours(tmp_path, change, found):
  path = save(tmp_path, "npz")
  with zipfile.ZipFile(path) as file:
    members = {name: file.read(name) for name in file.namelist()} | change
  archive(path, {name: content for name, content in members.items() if content is not None})
  with pytest.raises(UserError, match="PROMPT_FILE is not a prompt") as error:
    prompt_files.read(path)
  assert found in error.value.found


def test_nothing_is_unpacked(tmp_path):
  """A compressed member could unfold to any size."""
  zeros = npz_files.npy_files.encode(np.zeros((1000, 1000), np.float32))
  path = archive(tmp_path / "prompt.npz", {"prompt.npy": zeros, "metadata.json": "{}"},
                 zipfile.ZIP_DEFLATED)
  assert os.path.getsize(path) < 10_000
  with pytest.raises(UserError, match="PROMPT_FILE is not a prompt") as error:
    prompt_files.read(path)
  assert "uncompressed" in error.value.found
