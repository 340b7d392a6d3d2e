"""Paths, splits and merges of parameter trees."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import trees
from prompt_tuning.errors import UserError

LAYERS = 5


def tree() -> dict:
  def leaf(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)

  return {"backbone": {
    "token_embedder": {"embedding": leaf(7, 3)},
    "encoder": {"layers": {"mlp": {"wi": {"kernel": leaf(LAYERS, 3, 4)},
                                   "wo": {"kernel": leaf(LAYERS, 4, 3)}},
                           "attention": {"out": {"kernel": leaf(LAYERS, 2, 3)}}},
                "encoder_norm": {"scale": leaf(3)}}},
    "prompt": {"embedding": leaf(2, 3)}}


NAMES = st.text("abc", min_size=1, max_size=2)
NESTED = st.dictionaries(NAMES, st.recursive(
  st.integers(), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=6))


@settings(max_examples=50, deadline=None)
@given(NESTED)
def test_unflatten_inverts_flatten(nested):
  flat = trees.flatten(nested)
  assert list(flat) == [path for path in flat] and trees.unflatten(flat) == nested
  assert trees.map_with_path(lambda path, leaf: leaf, nested) == nested


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(["token_embedder/embedding", "encoder/encoder_norm/.*",
                                "encoder/layers/attention/.*"])),
       st.integers(-LAYERS, LAYERS - 1), st.integers(1, LAYERS))
def test_merge_inverts_split(patterns, start, length):
  params = tree()
  begin = start % LAYERS
  stop = min(begin + length, LAYERS)
  split = trees.plan_split(params, [*sorted(patterns), f"encoder/layers/mlp/.*[{start}:{stop}]"])
  trainable, frozen = split.split(params)
  merged = split.merge(trainable, frozen)
  assert trees.differences(merged, params) == []
  assert trees.count(trainable) + trees.count(frozen) == trees.count(params)
  flat = trees.flatten(trainable)
  np.testing.assert_array_equal(flat["backbone/encoder/layers/mlp/wi/kernel"],
                                params["backbone"]["encoder"]["layers"]["mlp"]["wi"]["kernel"]
                                [begin:stop])
  # Only what is trained moves.
  moved = split.merge(jax.tree.map(lambda leaf: leaf + 1, trainable), frozen)
  for path, leaf in trees.flatten(moved).items():
    change = leaf - trees.flatten(params)[path]
    span = split.trained.get(path, (0, 0))
    inside = np.zeros(leaf.shape[0], bool)
    inside[slice(*span) if span else slice(None)] = True
    np.testing.assert_allclose(change[inside], 1, rtol=1e-5)
    np.testing.assert_array_equal(change[~inside], 0)


def test_no_pattern_trains_the_prompt():
  split = trees.plan_split(tree(), [])
  assert dict(split.trained) == {"prompt/embedding": None}
  trainable, frozen = split.split(tree())
  assert list(trees.flatten(trainable)) == ["prompt/embedding"]
  assert "prompt" not in frozen


def test_a_constant_is_frozen_beside_the_prompt():
  params = tree()
  params["prompt"] |= {"part": {"constant_sources": params["prompt"]["embedding"] + 1}}
  split = trees.plan_split(params, [])
  assert dict(split.trained) == {"prompt/embedding": None}
  trainable, frozen = split.split(params)
  assert list(trees.flatten(frozen["prompt"])) == ["part/constant_sources"]
  assert trees.differences(split.merge(trainable, frozen), params) == []
  assert trees.differences(trees.join(trainable["prompt"], frozen["prompt"]),
                           params["prompt"]) == []


def test_all_layers_are_the_whole_leaf():
  split = trees.plan_split(tree(), [f"encoder/layers/mlp/wi/kernel[0:{LAYERS}]", ".*/wo/kernel[:]"])
  assert set(split.trained.values()) == {None} and len(split.trained) == 3


def test_split_works_on_shapes_inside_jit():
  params = tree()
  split = trees.plan_split(jax.eval_shape(lambda: params), ["encoder/layers/mlp/.*[-2:]"])
  trainable, frozen = split.split(params)
  merged = jax.jit(split.merge)(trainable, frozen)
  assert split.sliced_stacks() == ["encoder"]
  assert trees.differences(merged, params) == []


@pytest.mark.parametrize("patterns,what,found,fix", [
  (["encoder/layers/mpl/.*"], "A TRAINABLE pattern matches no parameter",
   "'encoder/layers/mpl/.*'", "`prompt-tuning info --paths` lists the paths"),
  (["encoder"], "A TRAINABLE pattern matches no parameter", "'encoder'", "lists the paths"),
  (["encoder/(.*"], "A pattern of TRAINABLE is not a regular expression", "'encoder/(.*'",
   "correct the pattern"),
  (["encoder/encoder_norm/scale[0:1]"], "slices a parameter that has no layer axis",
   "encoder_norm/scale", "leave the [start:stop] out"),
  (["encoder/layers/mlp/.*[3:3]"], "A pattern of TRAINABLE takes no layer", "of 5 layers",
   "correct the slice"),
  (["encoder/layers/mlp/.*[9:]"], "A pattern of TRAINABLE takes no layer", "of 5 layers",
   "correct the slice"),
  (["encoder/layers/mlp/.*[:2]", "encoder/layers/mlp/wi/kernel"],
   "Two TRAINABLE patterns take different layers of one parameter", "(0, 2) and None",
   "join the two patterns"),
])
def test_errors_of_patterns(patterns, what, found, fix):
  with pytest.raises(UserError) as error:
    trees.plan_split(tree(), patterns)
  assert what in error.value.what and found in error.value.found and fix in error.value.fix


def test_a_near_miss_is_named():
  with pytest.raises(UserError, match="did you mean 'encoder/encoder_norm/scale'"):
    trees.plan_split(tree(), ["encoder/encoder_norm/scal"])


def test_training_nothing_is_an_error():
  with pytest.raises(UserError) as error:
    trees.plan_split({"backbone": tree()["backbone"]}, [])
  assert error.value.what == "Nothing would be trained" and "soft.gin" in error.value.fix


def test_differences_are_by_bits():
  first, second = tree(), tree()
  assert trees.differences(first, second) == []
  second["backbone"]["encoder"]["encoder_norm"]["scale"][1] += 1e-6
  second["prompt"]["embedding"] = second["prompt"]["embedding"].astype(np.float64)
  del second["backbone"]["token_embedder"]
  assert trees.differences(first, second) == [
    "backbone/encoder/encoder_norm/scale", "backbone/token_embedder/embedding", "prompt/embedding"]
  zeros = {"x": np.zeros(2, np.float32)}, {"x": -np.zeros(2, np.float32)}
  assert trees.differences(*zeros) == ["x"]


def test_counts_and_bytes():
  params = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.zeros(4, np.float16)}}
  assert trees.count(params) == 10 and trees.num_bytes(params) == 32
  rest = {"a": trees.Rest(np.zeros((1, 3), np.float32), np.zeros((2, 3), np.float32))}
  assert trees.count(rest) == 9 and trees.num_bytes(rest) == 36
  assert list(trees.flatten_arrays(rest)) == ["a[before]", "a[after]"]
