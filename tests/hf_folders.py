"""Folders as the Hugging Face hub has them, of the golden models' weights."""

import functools
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden"
VERSIONS = ("1_1", "1_0")
# What transformers 4 and 5 write for the two versions.
FLAGS = {"4": {"1_1": {"tie_word_embeddings": False}, "1_0": {}},
         "5": {"1_1": {"tie_word_embeddings": True, "scale_decoder_outputs": False},
               "1_0": {"tie_word_embeddings": True, "scale_decoder_outputs": True}}}


@functools.cache
def golden(version: str) -> dict[str, np.ndarray]:
  with np.load(GOLDEN / f"hf_t5_{version}.npz") as file:
    return dict(file)


def tensors(recorded: dict) -> dict[str, np.ndarray]:
  """The state dict, tied copies left out."""
  return {name.removeprefix("weights/"): leaf for name, leaf in recorded.items()
          if name.startswith("weights/")}


def config(version: str, recorded: dict | None = None, release: str = "5") -> dict:
  """config.json as that release of transformers writes it."""
  theirs = json.loads(str((recorded or golden(version))["config"]))
  theirs.pop("scale_decoder_outputs")
  return {"model_type": "t5", **theirs, **FLAGS[release][version]}


def save(folder: pathlib.Path, theirs: dict, weights: dict[str, np.ndarray],
         name: str = "model.safetensors") -> str:
  """Writes config.json and one file of weights; returns the folder's path."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(theirs))
  save_file({key: np.ascontiguousarray(leaf) for key, leaf in weights.items()}, folder / name,
            metadata={"format": "pt"})
  return str(folder)


def save_golden(folder: pathlib.Path, version: str, recorded: dict | None = None, **changes) -> str:
  """A golden model's folder; `changes` are of config.json (None takes a key out)."""
  recorded = recorded or golden(version)
  theirs = {key: value for key, value in (config(version, recorded) | changes).items()
            if value is not None}
  return save(folder, theirs, tensors(recorded))
