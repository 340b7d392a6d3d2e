"""T5X's names, axes and masks of our parameters; no T5X is needed."""

import dataclasses
import json
import pathlib

import descriptors
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5, abstract_params, logical_axes
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5
from prompt_tuning.t5x_bridge import names
from prompt_tuning.t5x_bridge.module import T5XModule
from prompt_tuning.t5x_bridge.names import Trained

CONFIG = dataclasses.replace(descriptors.CONFIG, scan_layers=False)
SOFT = SoftPrompt(CONFIG, 3)
PROMPT = "encoder/prompt/prompt/prompt"
# Those that T5X's `standard_logical_axis_rules` know.
T5X_AXES = {"vocab", "embed", "mlp", "heads", "joined_kv", "relpos_buckets"}


METHODS = [pytest.param(case.make(CONFIG, case.num_prompts), id=case.name)
           for case in descriptors.CASES if not case.is_dummy]


def test_the_prompt_has_the_name_of_the_papers_code():
  assert names.t5x_name("prompt/embedding") == PROMPT
  assert names.t5x_name("backbone/encoder/layers_0/mlp/wo/kernel") == (
    "encoder/layers_0/mlp/wo/kernel")
  assert names.is_prompt(PROMPT) and not names.is_prompt("encoder/encoder_norm/scale")


def test_the_backbone_has_t5xs_names_shapes_and_axes():
  table = json.loads((pathlib.Path(__file__).parents[1] / "golden/leaf_names.json").read_text())
  config = dataclasses.replace(CONFIG, relative_attention_num_buckets=32)
  module = T5XModule(T5(config))
  tokens = jnp.ones((1, 2), jnp.int32)
  made = jax.eval_shape(lambda key: module.init(key, tokens, tokens), jax.random.key(0))
  axes = flax_partitioning.get_axis_names(made["params_axes"])
  axes = {"/".join(path): list(spec) for path, spec in
          traverse_util.flatten_dict(dict(axes)).items()}
  found = {name: [list(leaf.shape), axes[name]]
           for name, leaf in trees.flatten(made["params"]).items()}
  assert found == table["unscanned"]


@pytest.mark.parametrize("method", METHODS)
def test_names_go_both_ways_and_no_two_are_one(method):
  params = abstract_params(PromptedT5(T5(CONFIG), method))
  there = names.to_t5x(params)
  assert len(trees.flatten(there)) == len(trees.flatten(params))
  assert trees.flatten(names.from_t5x(there)) == trees.flatten(params)


# Flax calls the traversals, of which T5X makes its masks, deprecated (2026-11-25).
@pytest.mark.filterwarnings("ignore:.flax.traverse_util.Traversal. will:DeprecationWarning")
@pytest.mark.parametrize("method", METHODS)
def test_the_mask_matches_exactly_the_prompt(method):
  trained = Trained(backbone=CONFIG, prompt=method)
  params = names.to_t5x(abstract_params(PromptedT5(T5(CONFIG), method)))
  traversal = traverse_util.ModelParamTraversal(trained)
  chosen = {path for path in trees.flatten(params) if trained("/" + path)}
  assert len(list(traversal.iterate(params))) == len(chosen)
  assert chosen == {path for path in trees.flatten(params) if path.startswith(
    "encoder/prompt/prompt/") and not path.rpartition("/")[2].startswith("constant_")}
  trained.check(params)


def test_a_mask_takes_backbone_leaves_besides():
  trained = Trained(backbone=CONFIG, prompt=SOFT, trainable=["decoder/decoder_norm/.*"])
  assert trained.names == {PROMPT, "decoder/decoder_norm/scale"}


def test_a_pattern_that_matches_nothing_is_an_error():
  with pytest.raises(UserError, match="matches no parameter(.*\n)*.*decoder_norn"):
    _ = Trained(backbone=CONFIG, prompt=SOFT, trainable=("decoder/decoder_norn/.*",)).names


def test_a_slice_of_layers_is_an_error():
  with pytest.raises(UserError, match="no layer axis"):
    _ = Trained(backbone=CONFIG, prompt=SOFT, trainable=("encoder/layers_0/mlp/.*[-1:]",)).names


def test_nothing_to_train_is_an_error():
  with pytest.raises(UserError, match="Nothing would be trained"):
    _ = Trained(backbone=CONFIG).names


def test_a_parameter_that_the_mask_does_not_know_is_an_error():
  with pytest.raises(UserError, match="does not know(.*\n)*.*encoder/prompt/prompt/promt"):
    Trained(backbone=CONFIG, prompt=SOFT)("/encoder/prompt/prompt/promt")


def test_a_model_without_the_trained_leaf_is_an_error():
  """What a misspelt expression did to the paper's code: nothing is trained, and nobody is told."""
  params = names.to_t5x(abstract_params(PromptedT5(T5(CONFIG))))
  with pytest.raises(UserError, match=rf"missing \['{PROMPT}'\] \(1\)"):
    Trained(backbone=CONFIG, prompt=SOFT).check(params)


def test_stacked_layers_are_an_error():
  with pytest.raises(UserError, match="SCAN_LAYERS = True(.*\n)*.*--gin.SCAN_LAYERS=False"):
    Trained(backbone=descriptors.CONFIG, prompt=SOFT)


@pytest.mark.parametrize("method", METHODS)
def test_axes_are_those_that_t5xs_rules_know(method):
  model = PromptedT5(T5(CONFIG), method)
  found = flax_partitioning.get_axis_names(names.axes(logical_axes(model)))
  found = {"/".join(path): tuple(spec) for path, spec in
           traverse_util.flatten_dict(dict(found)).items()}
  shapes = trees.flatten(names.to_t5x(abstract_params(model)))
  assert found.keys() == shapes.keys()
  for name, axes in found.items():
    assert len(axes) == len(shapes[name].shape), name
    assert set(axes) <= ({None} if names.is_prompt(name) else T5X_AXES), name
