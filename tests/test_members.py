"""The step of many prompts against a loop over steps of one; what cannot be asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CASES, random_params
from test_train_state import training_batch

from prompt_tuning import optimizers
from prompt_tuning.errors import UserError
from prompt_tuning.members import (
  Member,
  Members,
  check_different,
  choose,
  make_members_step,
  mean_and_deviation,
  member_of,
  new_members_state,
  stack,
)
from prompt_tuning.optimizers import Adafactor, AdamW, Constant
from prompt_tuning.prompted import abstract_params
from prompt_tuning.prompts.initializers import SampledVocabulary, Uniform
from prompt_tuning.train_state import LossConfig, make_train_step, new_state
from prompt_tuning.trees import plan_split

CASE = {case.name: case for case in CASES}
STEPS = 3
PLAIN = LossConfig()
MEMBERS = (Member(3, 0.3), Member(0, 0.02))


def close(found, wanted, what=""):
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert found.shape == wanted.shape, what
  np.testing.assert_allclose(found, wanted, rtol=0, err_msg=what,
                             atol=1e-5 * max(np.abs(wanted).max(initial=0.0), 1e-30))


def starts(model, members):
  """A start for each member: the random prompt, moved by its number."""
  prompt = random_params(model)["prompt"]
  return [{"prompt": jax.tree.map(lambda x, i=i: jnp.asarray(x) * (1.0 + 0.1 * i), prompt)}
          for i in range(len(members))]


def one_by_one(model, optimizer, config, member, trainable, frozen, batches):
  """STEPS steps as `Trainer` takes them: the state, and the metrics of each step."""
  schedule = dataclasses.replace(optimizer.schedule, rate=member.learning_rate)
  optimizer = dataclasses.replace(optimizer, learning_rate=schedule)
  transformation = optimizer.build(trainable)
  split = plan_split(abstract_params(model), ())
  step = jax.jit(make_train_step(model, split, optimizer, transformation, config, member.seed))
  state, metrics = new_state(trainable, transformation), []
  for batch in batches:
    state, found = step(state, frozen, batch)
    metrics.append(found)
  return state, metrics


def check(model, optimizer, config=PLAIN, members=MEMBERS, own_rows=False, at_once=None):
  data = training_batch(model)
  # Another order of the rows in every step, and with rows of their own for every member.
  orders = [[np.roll(np.arange(4), i * own_rows + step) for step in range(STEPS)]
            for i in range(len(members))]
  batches = [[{name: x[order] for name, x in data.items()} for order in own] for own in orders]
  frozen = {"backbone": jax.tree.map(jnp.asarray, random_params(model)["backbone"])}
  trainables = starts(model, members)
  split = plan_split(abstract_params(model), ())
  step = jax.jit(make_members_step(model, split, optimizer, config, members, own_rows=own_rows,
                                    at_once=at_once))
  state = new_members_state(stack(trainables), optimizer)
  metrics = []
  for index in range(STEPS):
    batch = stack([own[index] for own in batches]) if own_rows else batches[0][index]
    state, found = step(state, frozen, batch)
    metrics.append(found)
  assert int(state.step) == STEPS and state.step.shape == ()
  moved = []
  for i, (member, trainable) in enumerate(zip(members, trainables, strict=True)):
    wanted, measured = one_by_one(model, optimizer, config, member, trainable, frozen, batches[i])
    moved.append(np.asarray(jax.tree.leaves(wanted.trainable)[0]))
    for found, leaf in zip(jax.tree.leaves(member_of((state.trainable, state.opt_state), i)),
                           jax.tree.leaves((wanted.trainable, wanted.opt_state)), strict=True):
      close(found, leaf, f"member {i}")
    for found, each in zip(metrics, measured, strict=True):
      assert bool(found["is_finite"][i])
      for name, value in each.items():
        np.testing.assert_allclose(found[name][i], value, rtol=1e-5, err_msg=name)
  # Nothing would be seen of a rate or a seed that is the same for all.
  assert not np.allclose(moved[0], moved[1])


def test_soft_prompts_with_their_own_rates():
  check(CASE["soft"].model(), Adafactor(learning_rate=0.3, momentum=0.9, clip_norm=1.0),
        at_once=2)


def test_rows_of_their_own_and_two_prompts_at_once_of_three():
  cosine = optimizers.Cosine(rate=0.3, warmup_steps=2, total_steps=9, final_share=0.1)
  check(CASE["soft"].model(), AdamW(learning_rate=cosine, weight_decay_rate=0.1),
        members=(*MEMBERS, Member(1, 0.1)), own_rows=True, at_once=2)


def test_dropout_of_their_own_in_pieces_and_leaves_of_layers():
  check(CASE["key_values"].model(dropout_rate=0.3), Adafactor(learning_rate=0.3),
        LossConfig(num_microbatches=2))  # one after the other


@pytest.mark.parametrize("schedule", [
  Constant(rate=1.0), optimizers.LinearWarmup(rate=1.0, warmup_steps=3),
  optimizers.LinearDecay(rate=1.0, warmup_steps=2, total_steps=8),
  optimizers.Cosine(rate=1.0, warmup_steps=2, total_steps=8, final_share=0.2),
  optimizers.InverseSquareRoot(rate=1.0, warmup_steps=3)], ids=lambda x: type(x).__name__)
def test_a_traced_rate_is_the_rate(schedule):
  rates, optimizer = jnp.asarray([0.3, 0.007]), AdamW(learning_rate=schedule)
  steps = jnp.arange(9)
  found = jax.vmap(lambda rate: jax.vmap(optimizer.at_rate(rate).schedule)(steps))(rates)
  for row, rate in zip(found, rates.tolist(), strict=True):
    own = dataclasses.replace(schedule, rate=rate)
    np.testing.assert_allclose(row, [own(jnp.int32(step)) for step in range(9)], rtol=1e-6)


def test_the_backbone_is_there_once():
  """No product of the step has a kernel with a member axis: it has one with rows of all."""
  model, members = CASE["soft"].model(), tuple(Member(i, 0.3) for i in range(5))
  split, optimizer = plan_split(abstract_params(model), ()), Adafactor()
  params = jax.tree.map(jnp.asarray, random_params(model))
  trainable, frozen = split.split(params)
  state = new_members_state(stack([trainable] * 5), optimizer)
  step = make_members_step(model, split, optimizer, LossConfig(), members, at_once=5)
  jaxpr = jax.make_jaxpr(step)(state, frozen, training_batch(model))
  kernels = {(8, 6), (6, 8), (8, 12), (12, 8), (8, 20)}
  products = [tuple(v.aval.shape for v in eqn.invars) for eqn in equations(jaxpr.jaxpr)
              if eqn.primitive.name == "dot_general"]
  with_kernel = [pair for pair in products if pair[1] in kernels or pair[0] in kernels]
  assert len(with_kernel) > 20
  assert not [pair for pair in products if any(shape[1:] in kernels and len(shape) == 3
                                               and shape[0] == 5 for shape in pair)]


def equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(tuple(eqn.params.values()),
                                 is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


def test_a_member_that_diverges_stays_where_it_was_and_the_others_go_on():
  model, optimizer = CASE["soft"].model(), AdamW(learning_rate=0.1)
  split = plan_split(abstract_params(model), ())
  _, frozen = split.split(jax.tree.map(jnp.asarray, random_params(model)))
  trainables = starts(model, MEMBERS)
  trainables[0] = jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), trainables[0])
  state = new_members_state(stack(trainables), optimizer)
  step = jax.jit(make_members_step(model, split, optimizer, LossConfig(), MEMBERS))
  after, metrics = step(state, frozen, training_batch(model))
  assert metrics["is_finite"].tolist() == [False, True]
  for old, new in zip(jax.tree.leaves((state.trainable, state.opt_state)),
                      jax.tree.leaves((after.trainable, after.opt_state)), strict=True):
    assert np.array_equal(old[0], new[0], equal_nan=True) and not np.array_equal(old[1], new[1])


def test_choosing_and_means():
  new, old = ({"a": np.full((3, 2), value), "b": np.full(3, value)} for value in (1.0, 0.0))
  chosen = choose(np.array([True, False, True]), new, old)
  assert chosen["a"].tolist() == [[1, 1], [0, 0], [1, 1]] and chosen["b"].tolist() == [1, 0, 1]
  mean, deviation = mean_and_deviation([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}])
  assert mean == {"x": 3.0} and deviation["x"] == pytest.approx(7.0 ** 0.5)
  assert mean_and_deviation([{"x": 1.0}]) == ({"x": 1.0}, {"x": 0.0})


def test_prompts_that_nothing_tells_apart_are_refused():
  members = (Member(0, 0.3), Member(1, 0.3), Member(2, 0.1))
  alike, other = {"a": jnp.ones(3)}, {"a": jnp.zeros(3)}
  check_different(members, [alike] * 3, seeds_matter=True)
  check_different(members, [alike, other, alike], seeds_matter=False)
  with pytest.raises(UserError, match="Two prompts would stay the same") as caught:
    check_different(members, [alike] * 3, seeds_matter=False)
  assert "prompts 0 and 1, of seeds 0 and 1" in caught.value.found
  assert all(word in caught.value.fix for word in (
    "OWN_ROWS", "DROPOUT_RATE", "PROMPT_INITS", "LEARNING_RATES"))
  # Different initialisers of one seed can give one start.
  with pytest.raises(UserError, match="Two prompts would stay the same"):
    check_different([Member(0, 0.3, A), Member(0, 0.3, B)], [alike] * 2, seeds_matter=True)


A, B = Uniform(), SampledVocabulary()


@pytest.mark.parametrize("asked, wanted", [
  ({"num_prompts": 3}, [(5, 0.3, None), (6, 0.3, None), (7, 0.3, None)]),
  ({"seeds": [2, 1]}, [(2, 0.3, None), (1, 0.3, None)]),
  ({"learning_rates": [1, 0.1]}, [(5, 1.0, None), (5, 0.1, None)]),
  ({"num_prompts": 2, "learning_rates": (1, 0.1), "initializers": A},
   [(5, 1.0, A), (6, 0.1, A)]),
  ({"num_prompts": 2, "learning_rates": (1, 0.1), "grid": True},
   [(5, 1.0, None), (5, 0.1, None), (6, 1.0, None), (6, 0.1, None)]),
  ({"initializers": [A, B], "seeds": 4}, [(4, 0.3, A), (4, 0.3, B)])])
def test_what_is_asked_for(asked, wanted):
  assert Members(**asked).resolve(5, 0.3) == tuple(Member(*row) for row in wanted)


@pytest.mark.parametrize("asked, what, found", [
  ({"num_prompts": 0}, "N_PROMPTS is not a count", "0"),
  ({"num_prompts": True}, "N_PROMPTS is not a count", "True"),
  ({"num_prompts": 2, "at_once": -1}, "PROMPTS_AT_ONCE is not a count", "-1"),
  ({"seeds": (1, -1)}, "PROMPT_SEEDS is not a list of whole numbers", "(1, -1)"),
  ({"seeds": ()}, "PROMPT_SEEDS is not a list of whole numbers", "()"),
  ({"learning_rates": (0.1, "0.3")}, "LEARNING_RATES is not a list of numbers", "'0.3'"),
  ({"learning_rates": (0.1, 0)}, "LEARNING_RATES is not a list of numbers above 0", "0)"),
  ({"initializers": ("uniform",)}, "PROMPT_INITS is not a list of initialisers", "uniform"),
  ({"num_prompts": 3, "seeds": (1, 2)}, "N_PROMPTS and PROMPT_SEEDS disagree", "2 seeds"),
  ({"seeds": (1, 2, 3), "learning_rates": (0.1, 0.2)}, "have different lengths",
   "3 PROMPT_SEEDS, 2 LEARNING_RATES"),
  ({"learning_rates": (0.1, 0.2, 0.1)}, "Two prompts would be the same", "prompts 0 and 2"),
  ({"own_rows": True}, "OWN_ROWS has no effect on one prompt", "True"),
  ({"grid": True}, "PROMPT_GRID has no effect on one prompt", "True")])
def test_what_cannot_be_asked_for(asked, what, found):
  with pytest.raises(UserError, match=what) as caught:
    Members(**asked).resolve(0, 0.3)
  assert found in caught.value.found and caught.value.wanted and caught.value.fix
