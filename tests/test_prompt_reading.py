"""What `inspect` reads of every method, against the method itself; measures against loops."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CASES, random_params

from prompt_tuning import prompt_measures as measures
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext
from prompt_tuning.prompt_reading import embeddings_of

REAL = [case for case in CASES if not case.is_dummy]


@pytest.mark.parametrize("case", REAL, ids=lambda case: case.name)
def test_input_embeddings_of_every_method(case):
  model = case.model()
  params = random_params(model)
  table = np.asarray(params["backbone"]["token_embedder"]["embedding"])
  folded = model.prompt.fold(params["prompt"])
  config = types.SimpleNamespace(prompt=model.prompt, load_prompt=lambda path: folded)
  rows, length = case.num_prompts, model.num_virtual_tokens
  tokens = jnp.tile(jnp.array([*(-1 - p for p in range(length)), 1], jnp.int32)[None], (rows, 1))
  context = PromptContext(prompt_ids=jnp.arange(rows) if rows > 1 else None, tokens=tokens,
                          embedded=jnp.asarray(table)[jnp.maximum(tokens, 0)])
  wanted = model.prompt.apply({"params": params["prompt"]}, context, False).embeds
  if wanted is None:
    with pytest.raises(UserError, match="no input embeddings to look at"):
      embeddings_of(config, "file", table)
    return
  found = embeddings_of(config, "file", table)
  np.testing.assert_allclose(found, np.reshape(wanted, found.shape), atol=1e-5)
  assert found.shape == ((rows,) if rows > 1 else ()) + (length, table.shape[1])


def test_clusters_and_pairs():
  generator = np.random.default_rng(0)
  centres = 5 * np.eye(6)[:3]
  prompt = centres[[0, 1, 1, 2, 1, 0]] + 0.1 * generator.normal(size=(6, 6))
  assert measures.clusters(prompt, 3).tolist() == [1, 0, 0, 2, 0, 1]
  order = generator.permutation(6)
  pair = measures.pair_reading(prompt, prompt[order], generator.normal(size=(20, 6)), 3)
  # The same vectors in another order: only row by row are they apart.
  assert pair.matched_cosine == pytest.approx(1) and pair.shared_words == 1.0
  assert pair.mean_cosine == pytest.approx(1) and pair.row_cosine < 0.99
  assert pair.distance == pytest.approx(
    np.sqrt(np.mean([((a - b)**2).sum() for a, b in zip(prompt, prompt[order], strict=True)])))
  other = measures.pair_reading(prompt, prompt[:4], generator.normal(size=(20, 6)), 3)
  assert other.row_cosine is None and other.matched_cosine == pytest.approx(1)


def test_labels_that_persist():
  table = np.random.default_rng(1).normal(size=(30, 8))
  ids = {"one": [4], "two tokens": [5, 6], "gone": [7]}
  prompt = np.stack([2 * table[4], table[9], table[5] + table[6]])
  first, second, third = measures.label_readings(prompt, table, list(ids), ids.get)
  assert (first.row_rank, first.best_row, first.best_rank) == (1, 0, 1)
  assert first.row_cosine == pytest.approx(1)
  assert second.best_row == 2 and second.best_cosine == pytest.approx(1)
  cosines = [table[9] @ e / np.linalg.norm(table[9]) / np.linalg.norm(e) for e in table]
  assert second.row_rank == 1 + sum(c > second.row_cosine for c in cosines)
  assert third.row == 2


def test_cohesion_of_words():
  table = np.concatenate([np.eye(40)[:5] * 0.1 + 1.0, np.random.default_rng(2).normal(
    size=(50, 40))])
  near, drawn = measures.cohesion(np.ones((2, 40)), table, 5)
  assert near > 0.99 > 0.5 > drawn
