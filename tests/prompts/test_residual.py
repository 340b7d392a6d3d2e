"""Residual prompt tuning against its formula in numpy."""

import jax
import numpy as np
import pytest
from descriptors import CONFIG

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext
from prompt_tuning.prompted import PromptedT5, init_prompt
from prompt_tuning.prompts.initializers import Sources, Uniform
from prompt_tuning.prompts.residual import ResidualPrompt
from prompt_tuning.t5 import T5

LENGTH, HIDDEN = 4, 5


def random_params(method):
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(method.init, jax.random.key(0), PromptContext())["params"]
  return {name: random.normal(size=box.value.shape).astype(np.float32)
          for name, box in shapes.items()}


@pytest.mark.parametrize("shared", [True, False])
def test_equals_the_formula(shared):
  """P + LN(ReLU(P W + a) V + b), a position at a time."""
  method = ResidualPrompt(CONFIG, LENGTH, hidden=HIDDEN, shared=shared)
  params = random_params(method)
  wanted = []
  for p, row in enumerate(params["embedding"].astype(np.float64)):
    own = {name: leaf if shared else leaf[p] for name, leaf in params.items()}
    y = np.maximum(row @ own["down_kernel"] + own["down_bias"], 0)
    y = y @ own["up_kernel"] + own["up_bias"]
    y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
    wanted.append(row + y * own["norm_scale"] + own["norm_offset"])
  np.testing.assert_allclose(method.fold(params)["embedding"], wanted, rtol=0,
                             atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("shared", [True, False])
def test_without_the_norms_scale_it_is_the_plain_table(shared):
  method = ResidualPrompt(CONFIG, LENGTH, hidden=HIDDEN, shared=shared)
  params = random_params(method)
  params |= {name: np.zeros_like(params[name]) for name in ("norm_scale", "norm_offset")}
  np.testing.assert_array_equal(method.fold(params)["embedding"], params["embedding"])


def test_the_start_adds_rows_of_unit_variance():
  """What the module's docstring says of the start."""
  method = ResidualPrompt(CONFIG, LENGTH, Uniform(0.5), hidden=HIDDEN)
  params = init_prompt(jax.random.key(0), PromptedT5(T5(CONFIG), method),
                       Sources(np.zeros((20, 8), np.float32)))
  added = np.asarray(method.fold(params)["embedding"]) - params["embedding"]
  np.testing.assert_allclose(added.mean(axis=1), 0, atol=1e-6)
  np.testing.assert_allclose(added.var(axis=1), 1, atol=0.01)


def test_separate_networks_are_as_many_as_positions():
  def count(shared):
    method = ResidualPrompt(CONFIG, LENGTH, hidden=HIDDEN, shared=shared)
    return sum(leaf.size for leaf in random_params(method).values()) - LENGTH * 8
  assert count(True) == 2 * 8 * HIDDEN + HIDDEN + 3 * 8 and count(False) == LENGTH * count(True)


@pytest.mark.parametrize("fields, what", [
  ({"hidden": 0}, "ResidualPrompt.hidden is not a count"),
  ({"shared": "no"}, "ResidualPrompt.shared is not a choice")])
def test_fields_are_checked(fields, what):
  with pytest.raises(UserError) as error:
    ResidualPrompt(CONFIG, LENGTH, **fields)
  assert error.value.what == what and "PROMPT_" in error.value.fix
