"""ATTEMPT against its formula in numpy, what it pools, and that its sources never change."""


import jax
import numpy as np
import optax
import pytest
from descriptors import CONFIG

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext
from prompt_tuning.optimizers import Adafactor, AdamW
from prompt_tuning.prompts.attempt import AttemptPrompt, pool
from prompt_tuning.prompts.initializers import Sources, Uniform

LENGTH, HIDDEN = 3, 5
TOKENS = np.array([[-1, -2, -3, 7, 4, 0], [-1, -2, -3, 9, 0, 0], [-1, -2, -3, 2, 5, 3]])


def method(**fields):
  return AttemptPrompt(CONFIG, **{"length": LENGTH, "sources": ("a", "b"), "hidden": HIDDEN,
                                  **fields})


def random_params():
  random = np.random.default_rng(0)
  shapes = {"embedding": (LENGTH, 8), "constant_sources": (2, LENGTH, 8),
            "down_kernel": (8, HIDDEN), "up_kernel": (HIDDEN, 8), "norm_scale": (8,),
            "norm_offset": (8,)}
  return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def embeds(model, params, tokens, embedded):
  return jax.jit(lambda p, *inputs: model.apply(
    {"params": p}, PromptContext(tokens=inputs[0], embedded=inputs[1])).embeds)(
      params, tokens, embedded)


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_equals_the_formula(temperature):
  """A row at a time."""
  params = random_params()
  embedded = np.random.default_rng(1).normal(size=(3, 6, 8)).astype(np.float32)
  found = embeds(method(temperature=temperature), params, TOKENS, embedded)
  prompts = [params["embedding"], *params["constant_sources"]]
  for row, tokens, vectors in zip(found, TOKENS, embedded, strict=True):
    x = np.max([v for token, v in zip(tokens, vectors, strict=True) if token > 0], axis=0)
    y = x @ params["down_kernel"]
    y = (y / (1 + np.exp(-y))) @ params["up_kernel"]
    y = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * params["norm_scale"] + params["norm_offset"]
    scores = np.array([p.max(axis=0) @ y for p in prompts]) / (temperature or 8 * np.e)
    weights = np.exp(scores) / np.exp(scores).sum()
    wanted = params["embedding"] + sum(w * p for w, p in zip(weights, prompts, strict=True))
    np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_padding_and_virtual_tokens_are_not_pooled():
  """Nor does a gradient reach them; a row of padding alone gives numbers."""
  embedded = np.random.default_rng(1).normal(size=(3, 6, 8)).astype(np.float32)
  changed = np.where((TOKENS > 0)[..., None], embedded, 1e6).astype(np.float32)
  np.testing.assert_array_equal(pool(changed, TOKENS), pool(embedded, TOKENS))
  assert np.abs(pool(changed, TOKENS)).max() < 10
  gradient = np.asarray(jax.grad(lambda x: pool(x, TOKENS).sum())(embedded))
  assert not gradient[TOKENS <= 0].any() and gradient[TOKENS > 0].any(axis=-1).any()
  np.testing.assert_array_equal(pool(embedded, np.minimum(TOKENS, 0)), np.zeros((3, 8)))


@pytest.mark.parametrize("optimizer", [Adafactor(learning_rate=0.3, weight_decay_rate=0.1),
                                       AdamW(learning_rate=0.3, weight_decay_rate=0.1,
                                             clip_norm=1.0)],
                         ids=["adafactor", "adamw"])
def test_no_optimizer_holds_or_changes_the_sources(optimizer):
  """Weight decay, too, leaves them alone, and acts on all the rest."""
  params = {"prompt": random_params()}
  split = trees.plan_split(params, ())
  trainable, frozen = split.split(params)
  transformation = optimizer.build(trainable)
  state = transformation.init(trainable)
  assert not [leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape == (2, LENGTH, 8)]
  updates, _ = transformation.update(jax.tree.map(np.ones_like, trainable), state, trainable)
  after = split.merge(optax.apply_updates(trainable, updates), frozen)
  assert trees.differences(params, after) == [
    f"prompt/{name}" for name in sorted(params["prompt"]) if name != "constant_sources"]


def test_sources_are_read_from_files_and_runs(tmp_path):
  tables = np.random.default_rng(0).normal(size=(2, LENGTH, 8)).astype(np.float32)
  np.save(tmp_path / "one.npy", tables[0])
  run = tmp_path / "run"
  run.mkdir()
  np.save(run / "prompt.npy", tables[1])
  (run / "settings.json").write_text("{}")
  model = method(sources=[str(tmp_path / "one.npy"), str(run)], initializer=Uniform(0.5))
  sources = Sources(np.zeros((20, 8), np.float32))
  params = model.initial_params(jax.random.key(0), {"up_kernel": 1}, sources)
  np.testing.assert_array_equal(params["constant_sources"], tables)
  assert params["up_kernel"] == 1 and np.abs(params["embedding"]).max() <= 0.5
  with pytest.raises(UserError, match="SOURCE_PROMPTS does not exist"):
    method(sources=("nowhere",)).initial_params(jax.random.key(0), {}, sources)
  with pytest.raises(UserError, match="another length"):
    method(sources=model.sources, length=4).initial_params(jax.random.key(0), {}, sources)


@pytest.mark.parametrize("fields, what", [
  ({"sources": ()}, "AttemptPrompt.sources is not a list of prompts"),
  ({"sources": "a.npy"}, "AttemptPrompt.sources is not a list of prompts"),
  ({"hidden": 0}, "AttemptPrompt.hidden is not a count"),
  ({"temperature": 0}, "AttemptPrompt.temperature is not one")])
def test_fields_are_checked(fields, what):
  with pytest.raises(UserError) as error:
    method(**fields)
  assert error.value.what == what
