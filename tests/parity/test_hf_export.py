"""What we export, transformers loads and gives the same logits with; goldens hold the tensors."""

import json
import pathlib
import runpy

import hf_folders
import numpy as np
import pytest
from safetensors.numpy import load_file

from prompt_tuning.checkpoints import hf, hf_export

pytestmark = pytest.mark.parity


def export(folder: pathlib.Path, version: str, recorded: dict | None = None, **changes) -> str:
  source = hf.HFReader(hf_folders.save_golden(folder / "theirs", version, recorded))
  hf_export.write(str(folder / "ours"), source, config=source.config,
                  metadata=source.metadata | changes)
  return str(folder / "ours")


@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_the_tensors_are_transformers_own(tmp_path, version):
  exported = load_file(pathlib.Path(export(tmp_path, version)) / "model.safetensors")
  wanted = hf_folders.tensors(hf_folders.golden(version))
  assert exported.keys() == wanted.keys()
  for name, leaf in wanted.items():
    assert exported[name].dtype == leaf.dtype
    np.testing.assert_array_equal(exported[name], leaf)


@pytest.mark.parametrize("version, tied", [("1_1", False), ("1_0", True)])
def test_config_says_tied_and_scaled_in_both_ways(tmp_path, version, tied):
  theirs = json.loads((pathlib.Path(export(tmp_path, version)) / "config.json").read_text())
  assert theirs["tie_word_embeddings"] is tied and theirs["scale_decoder_outputs"] is tied
  recorded = json.loads(str(hf_folders.golden(version)["config"]))
  # Dropout is a setting of a run; releases have 0.1.
  assert theirs["dropout_rate"] == 0.1
  assert theirs.items() >= (recorded | {"dropout_rate": 0.1}).items()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_live(tmp_path, monkeypatch, version, model_type):
  pytest.importorskip("torch", reason="the live comparison needs torch")
  transformers = pytest.importorskip("transformers", reason="the live comparison needs it")
  make = runpy.run_path(str(hf_folders.GOLDEN / "make_hf_t5.py"))
  model = make["build"](version, seed=3)
  fresh = make["record"](model, seed=3)
  monkeypatch.setattr(hf_export, "SHARD_BYTES", 6000)
  folder = export(tmp_path, version, fresh, model_type=model_type)
  assert len(list(pathlib.Path(folder).glob("model-*-of-*.safetensors"))) > 3
  loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
  assert loaded.config.model_type == ("t5" if version == "1_0" else model_type)
  again = make["record"](loaded, seed=3)
  np.testing.assert_array_equal(again["logits"], fresh["logits"])
  np.testing.assert_array_equal(again["greedy"], fresh["greedy"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", hf_folders.VERSIONS)
def test_live_folders_of_transformers(tmp_path, version):
  """`save_pretrained` of the installed transformers, and torch's pickle, read to the bit."""
  torch = pytest.importorskip("torch", reason="the live comparison needs torch")
  pytest.importorskip("transformers", reason="the live comparison needs transformers")
  make = runpy.run_path(str(hf_folders.GOLDEN / "make_hf_t5.py"))
  model = make["build"](version, seed=4)
  model.save_pretrained(tmp_path / "safe", max_shard_size="6KB")
  safe = hf.HFReader(str(tmp_path / "safe"))
  assert len(list((tmp_path / "safe").glob("*.safetensors"))) > 3 and not safe.ignored
  for layout in (True, False):
    folder = tmp_path / f"pickle_{layout}"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "safe" / "config.json").read_bytes())
    torch.save(model.state_dict(), folder / "pytorch_model.bin",
               _use_new_zipfile_serialization=layout)
    pickled = hf.HFReader(str(folder))
    assert "encoder.embed_tokens.weight" in pickled.ignored
    assert pickled.config == safe.config and pickled.leaves == safe.leaves
    for name in safe.leaves:
      np.testing.assert_array_equal(pickled.read(name), safe.read(name))
  table = model.shared.weight.detach().numpy()
  np.testing.assert_array_equal(safe.read("token_embedder/embedding"), table)
