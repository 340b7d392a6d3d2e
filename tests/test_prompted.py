"""What every prompt method has to pass, driven by the table in descriptors.py."""

import functools
import itertools
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import (
  CASES,
  CONFIG,
  Case,
  batch,
  forward,
  loss,
  loss_and_gradient,
  random_params,
  run,
  unstacked,
)
from jax.extend.core import jaxprs_in_params

from prompt_tuning import trees
from prompt_tuning.prompted import (
  PromptedT5,
  abstract_params,
  activations,
  init_prompt,
  logical_axes,
  one_of_bank,
)
from prompt_tuning.prompts.initializers import Sources

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "prompt_parameters.json"
REGENERATE = "to regenerate: python tests/test_prompted.py"
BANKS = [case for case in CASES if case.num_prompts > 1]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def near(actual, wanted, tolerance=1e-5):
  """Within `tolerance` of the largest value."""
  actual, wanted = np.asarray(actual, np.float32), np.asarray(wanted, np.float32)
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def parameters(case: Case) -> dict[str, list]:
  model = case.model()
  axes = trees.flatten(logical_axes(model)["prompt"])
  return {path: [list(leaf.shape), str(leaf.dtype), list(axes[path])]
          for path, leaf in trees.flatten(abstract_params(model)["prompt"]).items()}


def test_the_table_names_every_method():
  files = {path.stem for path in (ROOT / "prompt_tuning" / "prompts").glob("*.py")}
  configs = {path.stem for path in (ROOT / "gin_configs" / "prompts").glob("*.gin")}
  named = {case.name for case in CASES if not case.is_dummy}
  shared = {"__init__", "initializers", "method", "projections", "tables"}
  assert (files - shared) | (configs - {"none"}) <= named


@every_case
def test_parameters_are_the_golden_ones(case):
  assert parameters(case) == json.loads(GOLDEN.read_text()).get(case.name), REGENERATE


def initial_prompt(model: PromptedT5) -> dict:
  backbone = random_params(model)["backbone"]
  sources = Sources(np.ones((20, 8), np.float32), lambda text: [3 + len(w) for w in text.split()],
                    activations=functools.partial(activations, backbone, model.backbone.config))
  return init_prompt(jax.random.key(0), model, sources)


@every_case
def test_initial_prompt_has_the_shapes_of_the_model(case):
  prompt = trees.flatten(initial_prompt(case.model()))
  assert {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in prompt.items()} == {
    path: row[:2] for path, row in parameters(case).items()}
  for path, leaf in prompt.items():
    if re.fullmatch(case.starts_constant, path):
      assert np.unique(leaf).size == 1, path
    else:
      assert np.isfinite(leaf).all() and np.unique(leaf).size == leaf.size, path


@every_case
def test_served_form_gives_the_same_logits(case):
  model = case.model()
  params = random_params(model)
  served = PromptedT5(model.backbone, model.prompt.served(), model.prompt_in_front)
  folded = jax.tree.map(np.asarray, model.prompt.fold(params["prompt"]))
  shapes = {path: leaf.shape for path, leaf in trees.flatten(
    abstract_params(served)["prompt"]).items()}
  assert {path: leaf.shape for path, leaf in trees.flatten(folded).items()} == shapes
  params_served = {"backbone": params["backbone"], "prompt": folded}
  for ours, wanted in zip(forward(served)(params_served, batch(model)),
                          forward(model)(params, batch(model)), strict=True):
    near(ours, wanted)
  assert served.prompt.served() == served.prompt


@every_case
def test_scanned_and_compiled_equals_unscanned_and_eager(case):
  model, other = case.model(), case.model(scan_layers=False)
  params = random_params(model)
  for compiled, eager in zip(forward(model)(params, batch(model)),
                             run(other, unstacked(params), batch(model)), strict=True):
    near(compiled, eager)


@every_case
def test_the_prompt_matters(case):
  model = case.model()
  params = random_params(model)
  _, logits = forward(model)(params, batch(model))
  other = {"backbone": params["backbone"], "prompt": random_params(model, seed=1)["prompt"]}
  assert np.abs(logits - forward(model)(other, batch(model))[1]).max(axis=(1, 2)).min() > 1e-3


# Prefixes cannot be hidden: test_prefix.py has those of length 0.
@pytest.mark.parametrize("case", [case for case in CASES if not case.is_dummy
                                  and not case.name.startswith("prefix")], ids=lambda c: c.name)
def test_where_its_rows_are_hidden_a_prompt_starts_as_the_plain_model(case):
  """And what has no rows (LoRA, IA3, adapters) as well."""
  model = case.model()
  plain, length = PromptedT5(model.backbone), model.num_virtual_tokens
  backbone, data = random_params(model)["backbone"], batch(model)
  hidden = data | {"tokens": np.where(data["tokens"] < 0, 0, data["tokens"])}
  encoded, logits = forward(model)({"backbone": backbone, "prompt": initial_prompt(model)}, hidden)
  wanted_encoded, wanted_logits = forward(plain)({"backbone": backbone}, batch(plain))
  is_token = batch(plain)["tokens"] != 0
  near(encoded[:, length:][is_token], wanted_encoded[is_token])
  if case.name != "warp":  # whose output layer is its own
    near(logits, wanted_logits)


@every_case
def test_gradients_reach_each_layer_and_each_row(case):
  model = case.model()
  params = random_params(model)
  _, gradient = loss_and_gradient(model)(params["prompt"], params["backbone"], batch(model))
  axes = trees.flatten(logical_axes(model)["prompt"])
  assert trees.flatten(gradient).keys() == axes.keys()
  for path, leaf in trees.flatten(gradient).items():
    kept = ("layers", "prompt", "prompt_bank", "kv")
    if path.rsplit("/", 1)[-1].startswith(trees.CONSTANT):
      assert not leaf.any(), path
      continue
    reduced = tuple(i for i, name in enumerate(axes[path]) if name not in kept)
    assert (np.abs(leaf).max(axis=reduced) > 1e-4).all(), path


def shapes_of_results(jaxpr, dtype) -> set[tuple[int, ...]]:
  """Of what a program computes in a dtype, inner programs included."""
  shapes = set()
  for equation in jaxpr.eqns:
    for program in jaxprs_in_params(equation.params):
      shapes |= shapes_of_results(program, dtype)
    shapes |= {var.aval.shape for var in equation.outvars if var.aval.dtype == dtype}
  return shapes


@every_case
def test_the_step_computes_no_gradient_of_the_backbone(case):
  """Nor of its scales, tables and biases: weights in bfloat16 are read, and nothing else is."""
  model = case.model(param_dtype="bfloat16")
  params = random_params(model)
  backbone = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params["backbone"])
  leaves = set()
  for path, leaf in trees.flatten(backbone).items():
    # A scan makes a layer's gradient and returns the stack's.
    leaves |= {leaf.shape, leaf.shape["/layers/" in path:]}
  gradient = functools.partial(jax.grad, functools.partial(loss, model))
  arguments = params["prompt"], backbone, batch(model)
  assert not leaves & shapes_of_results(jax.make_jaxpr(gradient())(*arguments).jaxpr, jnp.bfloat16)
  both = jax.make_jaxpr(gradient(argnums=(0, 1)))(*arguments).jaxpr
  assert leaves <= shapes_of_results(both, jnp.bfloat16)


@every_case
def test_bfloat16(case):
  model = case.model(dtype="bfloat16")
  params = random_params(model)
  encoded, logits = forward(model)(params, batch(model))
  assert encoded.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
  near(logits, forward(case.model())(params, batch(model))[1], tolerance=0.1)
  shape = jax.eval_shape(loss_and_gradient(model), params["prompt"], params["backbone"],
                         batch(model))[1]
  assert {str(leaf.dtype) for leaf in trees.flatten(shape).values()} == {"float32"}


@every_case
def test_padding_content_never_matters(case):
  model = case.model()
  params = random_params(model)
  data = batch(model)
  changed = trees.flatten(params)
  table = changed["backbone/token_embedder/embedding"].copy()
  table[0] = 100.0
  changed["backbone/token_embedder/embedding"] = table
  encoded, logits = forward(model)(params, data)
  other_encoded, other_logits = forward(model)(trees.unflatten(changed), data)
  is_token = data["tokens"] != 0
  np.testing.assert_array_equal(np.asarray(encoded)[is_token], np.asarray(other_encoded)[is_token])
  np.testing.assert_array_equal(logits, other_logits)
  assert (np.asarray(encoded)[~is_token] != np.asarray(other_encoded)[~is_token]).any()


@every_case
def test_rows_of_a_batch_do_not_touch(case):
  model = case.model()
  params = random_params(model)
  order = np.array([2, 0, 3, 1])
  moved = {name: leaf[order] for name, leaf in batch(model).items()}
  for permuted, plain in zip(forward(model)(params, moved), forward(model)(params, batch(model)),
                             strict=True):
    near(permuted, plain[order], tolerance=1e-6)


@pytest.mark.parametrize("case", BANKS, ids=lambda case: case.name)
def test_mixed_batch_equals_separate_batches(case):
  bank = case.model()
  alone = Case(case.name, case.make).model()
  params, data = random_params(bank), batch(bank)
  mixed = forward(bank)(params, data)
  axes = trees.flatten(logical_axes(bank)["prompt"])
  for n in range(case.num_prompts):
    # A bank of one prompt has no bank axis, or one of size 1; other leaves serve every prompt.
    prompt = {path: np.reshape(params["prompt"][path][n], leaf.shape)
              if "prompt_bank" in axes[path] else params["prompt"][path]
              for path, leaf in abstract_params(alone)["prompt"].items()}
    method, own = one_of_bank(bank, n, params["prompt"])
    assert method == alone.prompt and not trees.differences(own, prompt)
    single = forward(alone)({"backbone": params["backbone"], "prompt": prompt}, data)
    rows = data["prompt_ids"] == n
    for together, apart in zip(mixed, single, strict=True):
      near(together[rows], apart[rows])


REMATS = list(zip(CASES, itertools.cycle(["full", "save_projections"]), strict=False))


@pytest.mark.parametrize("case,remat", REMATS,
                         ids=lambda value: getattr(value, "name", value))
def test_remat_changes_no_value_and_no_gradient(case, remat):
  model = case.model()
  params = random_params(model)
  arguments = params["prompt"], params["backbone"], batch(model)
  value, gradient = loss_and_gradient(model)(*arguments)
  again, same = loss_and_gradient(case.model(remat=remat))(*arguments)
  near(again, value)
  jax.tree.map(near, same, gradient)


@every_case
def test_cached_steps_equal_teacher_forcing(case):
  model = case.model()
  params, data = {"params": random_params(model)}, batch(model)
  _, wanted = forward(model)(params["params"], data)
  tokens, ids = data["tokens"], data["prompt_ids"]
  length = data["decoder_tokens"].shape[1]
  cache = jax.jit(lambda p: model.apply(p, tokens, length, ids, method=model.start_decoding))(
    params)
  step = jax.jit(functools.partial(model.apply, method=model.decode_step))
  for u in range(length):
    logits, cache = step(params, data["decoder_tokens"][:, u:u + 1], cache, tokens, ids)
    near(logits, wanted[:, u])
  assert int(cache.index) == length


def main():
  methods = [f'"{case.name}": {{\n' + ",\n".join(
    f'"{path}": {json.dumps(row)}' for path, row in parameters(case).items()) + "\n}"
    for case in CASES]
  GOLDEN.write_text("{" + ",\n".join(methods) + "}\n")
  print(f"wrote {GOLDEN} for {CONFIG}", file=sys.stderr)


if __name__ == "__main__":
  main()
