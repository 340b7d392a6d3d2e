"""The list of projections against the model's own kernels, and what patterns choose."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CONFIG

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts import projections
from prompt_tuning.prompts.projections import all_projections, choose
from prompt_tuning.t5 import T5

T5_1_0 = dataclasses.replace(CONFIG, mlp_activations=("relu",))


def chosen(*patterns: str, config: T5Config = CONFIG) -> dict[str, tuple[int, int]]:
  return {p.path: (p.start, p.stop) for p in choose(config, patterns, "X.targets")}


@pytest.mark.parametrize("config", [CONFIG, T5_1_0])
def test_they_are_the_kernels_of_the_model(config):
  flat = trees.flatten(abstract_params(PromptedT5(T5(config)))["backbone"])
  kernels = {path.replace("/layers/", "/").removesuffix("/kernel"): leaf.shape
             for path, leaf in flat.items() if "/layers/" in path and path.endswith("kernel")}
  assert {p.path: (p.num_layers, p.in_dim, p.out_dim) for p in all_projections(config)} == kernels


def test_patterns():
  assert len(chosen(".*")) == 18 and len(chosen(".*", config=T5_1_0)) == 16
  assert chosen("encoder/mlp/wi_[01]", "decoder/.*attention/key") == {
    "encoder/mlp/wi_0": (0, 2), "encoder/mlp/wi_1": (0, 2), "decoder/self_attention/key": (0, 3),
    "decoder/encoder_decoder_attention/key": (0, 3)}
  assert chosen(".*/wo[-2:]") == {"encoder/mlp/wo": (0, 2), "decoder/mlp/wo": (1, 3)}
  assert chosen("decoder/mlp/wo[:-1]") == {"decoder/mlp/wo": (0, 2)}
  assert projections.as_patterns("a.b") == ("a.b",) == projections.as_patterns(["a.b"])


@pytest.mark.parametrize("patterns, what, where", [
  (["decoder/self_atention/key"], "A pattern of X.targets matches no projection",
   "did you mean 'decoder/self_attention/key'"),
  (["mlp"], "A pattern of X.targets matches no projection", "choose one of"),
  (["(key"], "A pattern of X.targets is not a regular expression", "correct the pattern"),
  ([".*/wo[2:]"], "A pattern of X.targets takes no layer", "correct the slice"),
  ([".*/wo", "decoder/mlp/wo[1:]"], "Two patterns of X.targets take different layers of one "
   "projection", "join the two patterns"),
  ([], "X.targets chooses no projection", "LoRA")])
def test_mistakes(patterns, what, where):
  with pytest.raises(UserError) as error:
    chosen(*patterns)
  assert error.value.what == what and where in error.value.fix


def test_layers_that_are_not_chosen_are_neutral():
  part, = choose(CONFIG, ["decoder/mlp/wo[1:2]"], "X.targets")
  leaf = jnp.array([[2.0, 3.0]])
  np.testing.assert_array_equal(part.over_all_layers(leaf), [[0, 0], [2, 3], [0, 0]])
  np.testing.assert_array_equal(part.over_all_layers(leaf, 1.0), [[1, 1], [2, 3], [1, 1]])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_edited_kernels(dtype):
  part, = choose(CONFIG, ["decoder/mlp/wo[1:]"], "X.targets")
  stacked = np.arange(3 * 2 * 2).reshape(3, 2, 2).astype(dtype)
  flat = {"decoder/layers/mlp/wo/kernel": stacked, "encoder/layers/mlp/wo/kernel": stacked,
          **{f"decoder/layers_{i}/mlp/wo/kernel": x for i, x in enumerate(stacked)}}
  before = {path: leaf.copy() for path, leaf in flat.items()}
  added = np.array([10.0, 20.0])

  def edit(projection, rows, kernels):
    assert projection == part and kernels.dtype == np.float32
    return kernels + added[rows][:, None, None]

  edited = projections.edit_kernels(flat, [part], edit)
  assert trees.differences(flat, before) == []
  wanted = (stacked.astype(np.float32) + np.array([0.0, 10.0, 20.0])[:, None, None]).astype(dtype)
  assert trees.differences(edited, {
    "decoder/layers/mlp/wo/kernel": wanted, "encoder/layers/mlp/wo/kernel": stacked,
    **{f"decoder/layers_{i}/mlp/wo/kernel": x for i, x in enumerate(wanted)}}) == []
