"""Prompt files that are damaged or made to harm: a UserError, no code run, no memory blow-up."""

import json
import pickle

import numpy as np
import pytest
from damage import FUZZ, damaged, no_code_run, survives
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from prompt_tuning.checkpoints import npy_files, npz_files, peft, prompt_files
from prompt_tuning.errors import UserError

VALUES = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
NPY = npy_files.encode(VALUES)
NPZ = npz_files.encode(VALUES, prompt_files.describe(VALUES, task="mine"))
TENSORS = save({"prompt_embeddings": VALUES})
CONFIG = json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "token_dim": 6,
                     "num_transformer_submodules": 1}).encode()


def check(found):
  """A file that is damaged where nothing can tell is still a prompt."""
  if not isinstance(found, UserError):
    assert found.values.dtype == np.float32 and np.isfinite(found.values).all()
    assert found.values.ndim in (2, 3) and found.values.size <= 1000


@FUZZ
@given(content=damaged(NPY))
def test_npy(tmp_path, content):
  (tmp_path / "prompt.npy").write_bytes(content)
  check(survives(lambda: prompt_files.read(str(tmp_path / "prompt.npy"))))


@FUZZ
@given(content=damaged(NPZ))
def test_npz(tmp_path, content):
  (tmp_path / "prompt.npz").write_bytes(content)
  found = survives(lambda: prompt_files.read(str(tmp_path / "prompt.npz")))
  check(found)
  # The archive's checksums find every change of its content.
  if not isinstance(found, UserError):
    assert found.format == "npy" or (found.values == VALUES).all()


@FUZZ
@given(tensors=st.one_of(st.just(TENSORS), damaged(TENSORS)),
       config=st.one_of(st.just(CONFIG), damaged(CONFIG)))
def test_peft(tmp_path, tensors, config):
  folder = tmp_path / "adapter"
  folder.mkdir(exist_ok=True)
  (folder / peft.WEIGHTS).write_bytes(tensors)
  (folder / peft.CONFIG).write_bytes(config)
  check(survives(lambda: prompt_files.read(str(folder))))


@FUZZ
@given(changes=st.dictionaries(
  st.sampled_from(["num_virtual_tokens", "num_transformer_submodules", "peft_type", "token_dim",
                   "base_model_name_or_path"]),
  st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=9),
            st.lists(st.integers(), max_size=2))))
def test_peft_configurations(tmp_path, changes):
  folder = tmp_path / "adapter"
  folder.mkdir(exist_ok=True)
  (folder / peft.WEIGHTS).write_bytes(TENSORS)
  (folder / peft.CONFIG).write_text(json.dumps(json.loads(CONFIG) | changes))
  check(survives(lambda: prompt_files.read(str(folder))))


def npy_with(header: str, content: bytes = b"") -> bytes:
  text = header.encode().ljust(118) + b"\n"
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize("header, why", [
  ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000), }",
   "its header declares 4,000,000,000,000,000,000 bytes"),
  ("{'descr': '<f4', 'fortran_order': False, 'shape': (-5, -6), }", "its header declares 120"),
  ("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 5), }", "its header declares 100"),
  ("{'descr': '<V4', 'fortran_order': False, 'shape': (5, 6), }", "is not a float array"),
  ("{'descr': '<c8', 'fortran_order': False, 'shape': (5, 3), }", "is not a float array"),
  ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5, 6), }", "not a float array"),
  ("{'descr': '|O', 'fortran_order': False, 'shape': (5, 6), }", "allow_pickle"),
  ("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", "allow_pickle"),
  ("__import__('os').mkdir('code')", "its header is not that of a .npy file"),
  ("(" * 110, "its header is not that of a .npy file")])
def test_headers(tmp_path, header, why):
  path = tmp_path / "prompt.npy"
  path.write_bytes(npy_with(header, bytes(120)))
  found = survives(lambda: prompt_files.read(str(path)))
  assert found.what == "PROMPT_FILE is not a prompt" and why in found.found


def test_a_file_larger_than_any_prompt(tmp_path):
  path = tmp_path / "prompt.npy"
  path.write_bytes(npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1024, 2097152), }"))
  with open(path, "r+b") as file:
    file.truncate(128 + 2**33)  # It takes no room on the disk.
  found = survives(lambda: prompt_files.read(str(path)))
  assert "are more than any prompt has" in found.found


def test_pickles_are_not_read(tmp_path):
  with no_code_run(tmp_path) as payload:
    np.save(tmp_path / "a.npy", np.array([payload], object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", prompt=np.array([payload], object))
    (tmp_path / "c.npy").write_bytes(pickle.dumps(payload))
    for name in ("a.npy", "b.npz", "c.npy"):
      found = survives(lambda name=name: prompt_files.read(str(tmp_path / name)))
      assert found.what == "PROMPT_FILE is not a prompt"


def test_pickled_adapters_run_nothing(tmp_path):
  pytest.importorskip("torch", reason="pickled adapters are read with torch")
  (tmp_path / peft.CONFIG).write_bytes(CONFIG)
  with no_code_run(tmp_path) as payload:
    (tmp_path / peft.PICKLED).write_bytes(pickle.dumps({"prompt_embeddings": payload}, 2))
    found = survives(lambda: prompt_files.read(str(tmp_path)))
  assert isinstance(found, UserError)
