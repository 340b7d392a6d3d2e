"""PEFT adapters that are not prompts, or not whole: every one an error that says what it is."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from prompt_tuning.checkpoints import peft, prompt_files
from prompt_tuning.errors import UserError

VALUES = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def adapter(folder, tensor=VALUES, **changes):
  """An adapter as PEFT writes it: submodules 2, of which the second half is never read."""
  config = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 5,
            "num_transformer_submodules": 1, "num_layers": 2, "num_attention_heads": 2,
            "token_dim": 6} | changes
  folder.mkdir(exist_ok=True)
  (folder / peft.CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
  save_file({"prompt_embeddings": tensor}, folder / peft.WEIGHTS)
  return folder


def error_of(folder) -> UserError:
  with pytest.raises(UserError) as error:
    prompt_files.read(str(folder))
  return error.value


@pytest.mark.parametrize("rows, submodules", [(1, 1), (2, 2), (2, "absent"), (1, "absent"),
                                              (2, None)])
def test_rows_above_the_prompt_are_not_of_it(tmp_path, rows, submodules):
  folder = adapter(tmp_path / "a", np.concatenate([VALUES, 7 + VALUES])[:5 * rows],
                   num_transformer_submodules=submodules)
  np.testing.assert_array_equal(prompt_files.read(str(folder)).values, VALUES)


def test_half_precision_tensors(tmp_path):
  folder = adapter(tmp_path / "a", VALUES.astype(np.float16))
  np.testing.assert_array_equal(prompt_files.read(str(folder)).values,
                                VALUES.astype(np.float16).astype(np.float32))


def test_a_prefix_is_explained(tmp_path):
  error = error_of(adapter(tmp_path / "a", peft_type="PREFIX_TUNING"))
  assert error.what == "A PEFT prefix is not a prompt"
  assert "4i mod 2L (keys) and 4i+1 mod 2L (values)" in error.fix
  assert "prompts/prefix.gin" in error.fix


@pytest.mark.parametrize("method", ["LORA", "MULTITASK_PROMPT_TUNING", None, 3])
def test_other_methods(tmp_path, method):
  error = error_of(adapter(tmp_path / "a", peft_type=method))
  assert error.what == "This PEFT adapter is not a prompt" and repr(method) in error.found
  assert error.wanted == "PROMPT_TUNING or P_TUNING"
  assert ("merge_and_unload" in error.fix) == (method == "LORA")


def test_adapters_of_other_kinds_of_models(tmp_path):
  folder = adapter(tmp_path / "a", task_type="CAUSAL_LM", base_model_name_or_path="gpt2")
  error = error_of(folder)
  assert error.what == "This PEFT adapter is of another kind of model"
  assert "task_type 'CAUSAL_LM', of gpt2" in error.found
  adapter(tmp_path / "a", task_type="CAUSAL_LM", peft_type="PREFIX_TUNING")
  with pytest.raises(UserError, match="another kind of model"):
    peft.read_prefix(folder)
  assert prompt_files.read(str(adapter(tmp_path / "b", task_type=None))).values.shape == (5, 6)


@pytest.mark.parametrize("changes, found", [
  (dict(num_virtual_tokens=4), "prompt_embeddings is float32 (5, 6)"),
  (dict(num_virtual_tokens=10), "num_virtual_tokens 10"),
  (dict(num_virtual_tokens=0), "num_virtual_tokens = 0, not a count"),
  (dict(num_virtual_tokens="5"), "num_virtual_tokens = '5', not a count"),
  (dict(num_virtual_tokens="absent"), "num_virtual_tokens = None"),
  (dict(num_transformer_submodules=2), "num_transformer_submodules 2"),
  (dict(tensor=VALUES[0]), "prompt_embeddings is float32 (6,)"),
  (dict(tensor=VALUES.astype(np.int32)), "prompt_embeddings is int32, not floats")])
def test_configuration_and_tensor_must_agree(tmp_path, changes, found):
  error = error_of(adapter(tmp_path / "a", **changes))
  assert error.what == "PROMPT_FILE is not a prompt" and found in error.found


@pytest.mark.parametrize("content, found", [
  ("", "Expecting value"), ("[]", "not an object"), ("[" * 100_000, "nested too deeply"),
  (" " * 2**21, "larger than any configuration")])
def test_configurations_that_are_none(tmp_path, content, found):
  folder = adapter(tmp_path / "a")
  (folder / peft.CONFIG).write_text(content)
  assert found in error_of(folder).found


def test_weights_that_are_missing_or_another(tmp_path):
  folder = adapter(tmp_path / "a")
  (folder / peft.WEIGHTS).unlink()
  assert "no adapter_model.safetensors" in error_of(folder).found
  save_file({"lora_A": VALUES}, folder / peft.WEIGHTS)
  assert "has no prompt_embeddings: ['lora_A']" in error_of(folder).found


def test_links_out_of_the_folder(tmp_path):
  folder = adapter(tmp_path / "a")
  os.rename(folder / peft.WEIGHTS, tmp_path / "elsewhere")
  (folder / peft.WEIGHTS).symlink_to(tmp_path / "elsewhere")
  assert "which is not in it" in error_of(folder).found


def test_prefixes_for_other_models(tmp_path):
  prefix = dict(peft_type="PREFIX_TUNING", tensor=np.zeros((5, 24), np.float32))
  folder = adapter(tmp_path / "a", **prefix)
  keys, values = peft.read_prefix(folder)
  assert keys.shape == values.shape == (2, 5, 2, 3)
  with pytest.raises(UserError, match="The PEFT prefix is for another depth"):
    peft.read_prefix(folder, 3)
  with pytest.raises(UserError, match="This PEFT adapter is not a prefix"):
    peft.read_prefix(adapter(tmp_path / "b"))
  with pytest.raises(ValueError, match="not the 5 x 36"):
    peft.read_prefix(adapter(tmp_path / "c", **prefix, num_layers=3))


def test_only_prompts_are_written(tmp_path):
  with pytest.raises(UserError, match="A prompt cannot be written as this PEFT adapter"):
    prompt_files.write(str(tmp_path / "a"), VALUES, {"peft_type": "PREFIX_TUNING"})
  assert not list(tmp_path.iterdir())


def test_pickled_adapters_need_torch(tmp_path):
  folder = adapter(tmp_path / "a")
  (folder / peft.WEIGHTS).unlink()
  torch = pytest.importorskip("torch", reason="pickled adapters are read with torch")
  torch.save({"prompt_embeddings": torch.tensor(VALUES)}, folder / peft.PICKLED)
  np.testing.assert_array_equal(prompt_files.read(str(folder)).values, VALUES)
