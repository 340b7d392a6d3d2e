"""Multitask prompt tuning against its formula, its start, and the bank that serves it."""

import jax
import numpy as np
import pytest
from descriptors import CONFIG

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext
from prompt_tuning.prompted import PromptedT5, init_prompt
from prompt_tuning.prompts.initializers import Sources, Uniform
from prompt_tuning.prompts.multitask import MultitaskPrompt
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

LENGTH, TASKS = 4, 3
IDS = np.array([2, 0, 2, 1, 0])


def start(rank, num_prompts):
  method = MultitaskPrompt(CONFIG, LENGTH, Uniform(0.5), rank=rank, num_prompts=num_prompts)
  params = init_prompt(jax.random.key(0), PromptedT5(T5(CONFIG), method),
                       Sources(np.zeros((20, 8), np.float32)))
  return method, jax.tree.map(np.asarray, params)


@pytest.mark.parametrize("rank", [1, 2])
def test_equals_the_formula(rank):
  method = MultitaskPrompt(CONFIG, LENGTH, rank=rank, num_prompts=TASKS)
  random = np.random.default_rng(0)
  params = {name: random.normal(size=shape).astype(np.float32) for name, shape in (
    ("embedding", (LENGTH, 8)), ("columns", (TASKS, LENGTH, rank)), ("rows", (TASKS, rank, 8)))}
  embeds = method.apply({"params": params}, PromptContext(prompt_ids=IDS)).embeds
  wanted = np.zeros((len(IDS), LENGTH, 8))
  for b, n in enumerate(IDS):
    for p in range(LENGTH):
      for d in range(8):
        wanted[b, p, d] = params["embedding"][p, d] * sum(
          params["columns"][n, p, r] * params["rows"][n, r, d] for r in range(rank))
  np.testing.assert_allclose(embeds, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
  np.testing.assert_array_equal(method.fold(params)["embedding"][IDS], embeds)


@pytest.mark.parametrize("rank, num_prompts", [(1, TASKS), (3, TASKS), (1, 1)])
def test_every_task_starts_from_the_initialisers_table(rank, num_prompts):
  method, params = start(rank, num_prompts)
  table = params["embedding"]
  assert table.shape == (LENGTH, 8) and 0.3 < np.abs(table).max() <= 0.5
  folded = np.asarray(method.fold(params)["embedding"])
  assert folded.shape == ((TASKS, LENGTH, 8) if num_prompts > 1 else (LENGTH, 8))
  np.testing.assert_array_equal(folded, np.broadcast_to(table, folded.shape))


def test_ranks_do_not_stay_alike():
  """Equal columns of u would have equal gradients in v for ever."""
  _, params = start(3, TASKS)
  columns = params["columns"]
  assert (columns[..., 0] == 1).all() and np.unique(columns[..., 1:]).size == TASKS * LENGTH * 2
  assert (params["rows"][:, 0] == 1).all() and (params["rows"][:, 1:] == 0).all()


@pytest.mark.parametrize("num_prompts", [1, TASKS])
def test_serves_prompt_tuning(num_prompts):
  method = MultitaskPrompt(CONFIG, LENGTH, num_prompts=num_prompts)
  assert method.served() == SoftPrompt(CONFIG, LENGTH, num_prompts=num_prompts)


def test_a_bank_needs_prompt_ids():
  method, params = start(1, TASKS)
  with pytest.raises(UserError) as error:
    method.apply({"params": params}, PromptContext())
  assert error.value.what == "A bank of prompts was used without prompt ids"
  assert error.value.wanted == "[B] ids below 3" and "num_prompts" in error.value.fix


@pytest.mark.parametrize("name", ["rank", "num_prompts", "length"])
def test_counts_are_checked(name):
  with pytest.raises(UserError, match=f"MultitaskPrompt.{name} is not a count"):
    MultitaskPrompt(CONFIG, **{"length": LENGTH, name: 0})
