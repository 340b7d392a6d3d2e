"""The low-rank prompt's start: the best approximation there is."""

import jax
import numpy as np
import pytest
from descriptors import CONFIG

from prompt_tuning.errors import UserError
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.low_rank import LowRankPrompt

LENGTH = 6
TABLE = np.random.default_rng(0).normal(size=(LENGTH, CONFIG.emb_dim)).astype(np.float32)


def start(rank, table=TABLE):
  method = LowRankPrompt(CONFIG, LENGTH, lambda key, length, sources: table[:length], rank=rank)
  params = method.initial_params(jax.random.key(0), {}, Sources(TABLE))
  return params, np.asarray(method.fold(params)["embedding"])


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_start_is_the_best_approximation_of_its_rank(rank):
  """Eckart and Young: what is missing is what the other singular values hold, and no more."""
  params, folded = start(rank)
  assert params["left"].shape == (LENGTH, rank) and params["right"].shape == (rank, 8)
  assert np.linalg.matrix_rank(folded, tol=1e-4) == rank
  rest = np.linalg.svd(TABLE, compute_uv=False)[rank:]
  assert np.linalg.norm(TABLE - folded) == pytest.approx(np.linalg.norm(rest), rel=1e-5)


def test_full_rank_is_the_initialisers_table():
  _, folded = start(LENGTH)
  np.testing.assert_allclose(folded, TABLE, rtol=0, atol=1e-5)


def test_the_factors_have_one_scale():
  """A step of one learning rate moves both alike."""
  params, _ = start(3)
  np.testing.assert_allclose(np.linalg.norm(params["left"], axis=0),
                             np.linalg.norm(params["right"], axis=1), rtol=1e-5)


def test_a_rank_that_the_prompt_cannot_have_is_an_error():
  with pytest.raises(UserError) as error:
    LowRankPrompt(CONFIG, LENGTH, rank=7)
  assert error.value.what == "LowRankPrompt.rank is more than the prompt can have"
  assert error.value.wanted == "at most 6: P = 6, D = 8" and "PROMPT_RANK=6" in error.value.fix
  with pytest.raises(UserError, match="LowRankPrompt.rank is not a count"):
    LowRankPrompt(CONFIG, LENGTH, rank=0)
