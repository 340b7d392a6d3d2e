"""The table of Hugging Face's names against our own leaves, and the configuration both ways."""

import dataclasses

import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.checkpoints import hf_names
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.t5 import T5

SIZES = dict(vocab_size=37, emb_dim=12, num_heads=3, head_dim=5, mlp_dim=20, num_encoder_layers=2,
             num_decoder_layers=3, relative_attention_num_buckets=8,
             relative_attention_max_distance=10)
T5_1_1 = T5Config(**SIZES)
T5_1_0 = T5Config(**SIZES, mlp_activations=("relu",), logits_via_embedding=True)
# google/t5-v1_1-small, t5-small, google/mt5-small and google/byt5-small, as their repositories
# have them: the keys that say what the model is.
SMALL = dict(num_heads=6, d_kv=64, relative_attention_num_buckets=32, tie_word_embeddings=False,
             feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-06, dropout_rate=0.1)
RELEASES = {
  "t5_1_1": SMALL | dict(model_type="t5", vocab_size=32128, d_model=512, d_ff=1024, num_layers=8,
                         num_decoder_layers=8),
  "t5_1_0": dict(model_type="t5", vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6,
                 num_heads=8, relative_attention_num_buckets=32, layer_norm_epsilon=1e-06),
  "mt5": SMALL | dict(model_type="mt5", vocab_size=250112, d_model=512, d_ff=1024, num_layers=8,
                      num_decoder_layers=8),
  "byt5": SMALL | dict(model_type="t5", vocab_size=384, d_model=1472, d_ff=3584, num_layers=12,
                       num_decoder_layers=4)}
# Published counts, as in models/*.gin.
PARAMETERS = {"t5_1_1": 76_961_152, "t5_1_0": 60_506_624, "mt5": 300_176_768, "byt5": 299_637_760}


def read(theirs: dict, is_tied: bool = False) -> T5Config:
  return hf_names.config_from(theirs, is_tied=is_tied, where="config.json")


def error_of(theirs: dict, is_tied: bool = False) -> UserError:
  with pytest.raises(UserError) as error:
    read(theirs, is_tied)
  return error.value


@pytest.mark.parametrize("config", [T5_1_1, T5_1_0, dataclasses.replace(
  T5_1_1, logits_via_embedding=True), dataclasses.replace(T5_1_0, logits_via_embedding=False)])
def test_the_table_names_every_leaf_once(config):
  entries = hf_names.table(config)
  model = PromptedT5(T5(dataclasses.replace(config, scan_layers=False)))
  shapes = {path: leaf.shape for path, leaf in
            trees.flatten(abstract_params(model)["backbone"]).items()}
  assert {entry.ours: entry.shape for entry in entries} == shapes
  assert len({entry.theirs for entry in entries}) == len(entries) == len(shapes)


@pytest.mark.parametrize("name", RELEASES)
def test_released_configurations(name):
  config = read(RELEASES[name], is_tied=name == "t5_1_0")
  assert config.logits_via_embedding == (name == "t5_1_0")
  assert config.mlp_activations == (("relu",) if name == "t5_1_0" else ("gelu", "linear"))
  assert sum(int(np.prod(e.shape)) for e in hf_names.table(config)) == PARAMETERS[name]


@pytest.mark.parametrize("model_type, flags, scaled", [
  ("t5", {}, True), ("t5", {"tie_word_embeddings": True}, True),
  ("t5", {"tie_word_embeddings": False}, False),
  ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
  ("t5", {"tie_word_embeddings": False, "scale_decoder_outputs": True}, True),
  ("mt5", {"tie_word_embeddings": True}, False), ("mt5", {}, False)])
def test_what_is_scaled(model_type, flags, scaled):
  theirs = {k: v for k, v in RELEASES["t5_1_1"].items() if k != "tie_word_embeddings"} | flags | {
    "model_type": model_type}
  assert hf_names.is_scaled(theirs) == scaled
  assert read(theirs, is_tied=True).logits_via_embedding == scaled
  if scaled:
    error = error_of(theirs, is_tied=False)
    assert error.what == "config.json and the weights disagree about the output layer"
    assert '"scale_decoder_outputs": false' in error.fix
  else:
    assert not read(theirs, is_tied=False).logits_via_embedding


@pytest.mark.parametrize("config", [T5_1_1, T5_1_0], ids=["1.1", "1.0"])
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_there_and_back(config, model_type):
  theirs = hf_names.config_to(config, "t5" if config.logits_via_embedding else model_type)
  assert read(theirs, is_tied=config.logits_via_embedding) == config
  # transformers 4 looks at the flag alone.
  del theirs["scale_decoder_outputs"]
  assert read(theirs, is_tied=config.logits_via_embedding) == config


@pytest.mark.parametrize("name, activations", hf_names.ACTIVATIONS.items())
def test_activations(name, activations):
  theirs = RELEASES["t5_1_1"] | {"feed_forward_proj": name}
  assert read(theirs).mlp_activations == activations
  assert hf_names.config_to(read(theirs))["feed_forward_proj"] == name


def test_an_mlp_that_transformers_does_not_have():
  with pytest.raises(UserError, match="Hugging Face's T5 has no such MLP"):
    hf_names.config_to(dataclasses.replace(T5_1_1, mlp_activations=("gelu",)))


@pytest.mark.parametrize("changes, what, found", [
  ({"model_type": "umt5"}, "This Hugging Face model is not a T5", "model_type 'umt5'"),
  ({"model_type": None}, "This Hugging Face model is not a T5", "model_type None"),
  ({"d_model": "512"}, "config.json has a size that is none", "d_model = '512'"),
  ({"d_ff": -3}, "config.json has a size that is none", "d_ff = -3"),
  ({"num_layers": True}, "config.json has a size that is none", "num_layers = True"),
  ({"d_kv": 2**40}, "config.json has a size that is none", "d_kv = 1099511627776"),
  ({"vocab_size": None}, "config.json has a size that is none", "vocab_size = None"),
  ({"relative_attention_num_buckets": 0.5}, "config.json has a size that is none", "= 0.5"),
  ({"feed_forward_proj": "gelu"}, "config.json has an unknown feed_forward_proj", "'gelu'"),
  ({"feed_forward_proj": ["relu"]}, "config.json has an unknown feed_forward_proj", "['relu']"),
  ({"layer_norm_epsilon": "small"}, "config.json has a layer_norm_epsilon that is none", "small"),
  ({"eos_token_id": 2}, "config.json has special tokens of its own", "eos_token_id = 2"),
  ({"decoder_start_token_id": 3}, "config.json has special tokens of its own", "token_id = 3"),
  ({"pad_token_id": [0, 1]}, "config.json has special tokens of its own", "pad_token_id")])
def test_configurations_of_no_t5(changes, what, found):
  error = error_of(RELEASES["t5_1_1"] | changes)
  assert error.what == what and found in error.found
