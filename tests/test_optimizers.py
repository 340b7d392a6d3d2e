"""Optimizers against T5X's Adafactor step by step, closed forms, and unstacked layers."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.optimizers import (
  Adafactor,
  AdamW,
  Constant,
  Cosine,
  InverseSquareRoot,
  LinearDecay,
  LinearWarmup,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"
T5X = runpy.run_path(str(GOLDEN / "make_t5x_adafactor.py"))
REGENERATE = "regenerate with tests/golden/make_t5x_adafactor.py"


def descend(transformation, params, gradients):
  """The params after each step; one compiled update."""
  @jax.jit
  def step(params, state, gradient):
    updates, state = transformation.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  history, state = [], transformation.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
    history.append(params)
  return history, state


def gradients_like(params, steps, seed=0):
  random = np.random.default_rng(seed)
  return [jax.tree.map(lambda p: (random.normal(size=p.shape) * 10.0 ** random.uniform(
      -3, 1, size=p.shape[:1] + (1,) * (p.ndim - 1))).astype(np.float32), params)
      for _ in range(steps)]


@pytest.mark.parametrize("case", T5X["CASES"])
def test_adafactor_takes_the_steps_of_t5x(case):
  settings, first_step, leaves = T5X["CASES"][case]
  settings = {"momentum" if k == "beta1" else k: v for k, v in settings.items()}
  optimizer = Adafactor(**settings, step_offset=first_step)
  with np.load(GOLDEN / "t5x_adafactor.npz") as arrays:
    golden = dict(arrays)

  # Layers are axis 1 in T5X and axis 0 here.
  def ours(leaf):
    return np.moveaxis(leaf, 1, 0) if case == "scanned" else leaf

  def t5x(leaf):
    return np.moveaxis(np.asarray(leaf), 0, 1) if case == "scanned" else np.asarray(leaf)

  def tree(make):
    flat = {name: ours(make(*leaf)) for name, leaf in leaves.items()}
    if case.startswith("prompt"):
      return {"prompt": flat}
    return {"backbone": {"encoder": {"layers" if case == "scanned" else "layers_0": flat}}}

  gradients = [tree(lambda shape, _, step=step: T5X["gradient"](shape, step))
               for step in range(T5X["STEPS"])]
  params = tree(T5X["parameter"])
  history, state = descend(optimizer.build(params), params, gradients)
  for step, after in enumerate(history):
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
      wanted = golden[f"{case}/{path[-1].key}/{step}"]
      np.testing.assert_allclose(
          T5X["stored"](t5x(leaf)), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max(),
          err_msg=f"{path} after step {step}; {REGENERATE}")

  compared = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    moment = [getattr(key, "name", None) for key in path]
    for kind in {"v_row", "v_col", "v"} & set(moment):
      wanted = golden[f"{case}/{path[-1].key}/{kind}"]
      if wanted.size > 1:
        wanted = wanted.T if case == "scanned" and kind == "v_row" else wanted
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, err_msg=f"{kind}; {REGENERATE}")
        compared.add((path[-1].key, kind))
  assert {name for name, _ in compared} == set(leaves)
  assert (("kernel", "v_row") in compared) == (not case.startswith("prompt"))


def test_step_offset_is_the_papers_trap():
  params = {"prompt": jnp.zeros((2, 3))}
  gradients = [{"prompt": np.full((2, 3), size, np.float32)} for size in (1.0, 1e-2)]
  ends = {}
  for offset in (0, 1_100_000):
    optimizer = Adafactor(weight_decay_rate=None, step_offset=offset)
    history, state = descend(optimizer.build(params), params, gradients)
    second_moment = next(leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)
                         if any(getattr(key, "name", None) == "v" for key in path))
    # beta2 of steps t = offset + 1 and offset + 2, from the definition.
    beta1, beta2 = (1 - (offset + t) ** -0.8 for t in (1, 2))
    wanted = beta2 * (1 - beta1) * 1.0 + (1 - beta2) * 1e-4
    np.testing.assert_allclose(second_moment, np.full((2, 3), wanted), rtol=5e-3)
    ends[offset] = history[1]["prompt"][0, 0]
  # Afresh, a gradient a hundred times smaller steps by 1e-2 / sqrt(v); continued, v is so small
  # (1.5e-5) that the update is clipped, and the second step is a full one again.
  np.testing.assert_allclose(ends[1_100_000], -0.6, rtol=1e-5)
  assert ends[0] > -0.31


@pytest.mark.parametrize("settings", [
    {"learning_rate": 0.3},
    {"learning_rate": InverseSquareRoot(warmup_steps=2), "multiply_by_parameter_scale": True,
     "momentum": 0.9, "weight_decay_rate": None, "step_offset": 7},
])
def test_stacked_layers_train_as_separate_leaves(settings):
  random = np.random.default_rng(1)

  def leaf(*shape):
    # Layers of very different sizes, so that statistics over the whole stack would show.
    layer_scale = 10.0 ** -np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (random.normal(size=shape) * layer_scale).astype(np.float32)

  stacked = {
      "backbone": {
          "encoder": {"layers": {"wo": leaf(3, 130, 129), "scale": leaf(3, 5), "gate": leaf(3)},
                      "norm": leaf(5)},
          "decoder": {"layers": {"wo": leaf(2, 129, 128), "bias": leaf(2, 3, 4)}}},
      "prompt": {"deltas": {"layers": {"up": leaf(3, 129, 130)}}, "table": leaf(4, 6)}}

  def unstack(tree):
    if not isinstance(tree, dict):
      return tree
    flat = {}
    for name, child in tree.items():
      if name == "layers":
        length = len(jax.tree.leaves(child)[0])
        for i in range(length):
          flat[f"layers_{i}"] = jax.tree.map(lambda x, i=i: x[i], child)
      else:
        flat[name] = unstack(child)
    return flat

  gradients = gradients_like(stacked, 4)
  optimizer = Adafactor(**settings)
  ours, _ = descend(optimizer.build(stacked), stacked, gradients)
  apart, _ = descend(optimizer.build(unstack(stacked)), unstack(stacked),
                     [unstack(g) for g in gradients])
  for after, wanted in zip(ours, apart, strict=True):
    jax.tree.map(lambda a, w: np.testing.assert_allclose(a, w, rtol=1e-6, atol=1e-6),
                 unstack(after), wanted)


def test_the_prompt_is_never_factored_and_the_backbone_is_by_layer():
  tree = {"backbone": {"encoder": {"layers": {"wo": jnp.ones((2, 128, 130))}}},
          "prompt": {"table": jnp.ones((128, 130)),
                     "values": {"layers": {"key": jnp.ones((2, 128, 130))}}}}
  state = Adafactor().build(tree).init(tree)
  shapes = {(key.name, path[-1].key): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            for key in path if getattr(key, "name", None) in ("v", "v_row", "v_col")}
  assert shapes["v", "table"] == (128, 130) and shapes["v", "key"] == (2, 128, 130)
  assert shapes["v_row", "wo"] == (2, 128) and shapes["v_col", "wo"] == (2, 130)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 3 * 128 * 130 + 2 * 260 + 100


def test_a_prompt_of_128_trains_as_one_of_127():
  # Row by row the same gradients; unfactored, and unclipped, rows do not see each other.
  long = {"prompt": {"table": np.ones((128, 130), np.float32)}}
  gradients = gradients_like(long, 3)
  optimizer = Adafactor(clipping_threshold=None)
  whole, _ = descend(optimizer.build(long), long, gradients)
  short = jax.tree.map(lambda x: x[:127], long)
  part, _ = descend(optimizer.build(short), short,
                    [jax.tree.map(lambda x: x[:127], g) for g in gradients])
  np.testing.assert_allclose(part[-1]["prompt"]["table"], whole[-1]["prompt"]["table"][:127],
                             rtol=1e-6)


def test_adamw_against_the_definition():
  params = {"prompt": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
  gradients = gradients_like(params, 5)
  optimizer = AdamW(learning_rate=LinearWarmup(rate=0.1, warmup_steps=3), beta2=0.99,
                    weight_decay_rate=0.2)
  history, _ = descend(optimizer.build(params), params, gradients)
  x, first, second = params["prompt"].astype(np.float64), 0.0, 0.0
  for step, gradient in enumerate(gradients):
    g, rate = gradient["prompt"].astype(np.float64), 0.1 * min(1.0, step / 3)
    first, second = 0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g * g
    direction = first / (1 - 0.9 ** (step + 1)) / (
        np.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-8)
    x = x - rate * (direction + 0.2 * x)
    np.testing.assert_allclose(history[step]["prompt"], x, rtol=1e-4, atol=1e-6)


def test_clip_norm_is_over_all_leaves():
  params = {"backbone": {"scale": jnp.zeros(2)}, "prompt": {"table": jnp.zeros((1, 2))}}
  gradient = {"backbone": {"scale": jnp.array([3.0, 0.0])},
              "prompt": {"table": jnp.array([[0.0, 4.0]])}}
  # A large epsilon makes Adam's first step proportional to the gradient it is given.
  settings = {"learning_rate": 1.0, "epsilon": 1e6}
  (after,), _ = descend(AdamW(clip_norm=0.5, **settings).build(params), params, [gradient])
  (free,), _ = descend(AdamW(clip_norm=5.0, **settings).build(params), params, [gradient])
  np.testing.assert_allclose(after["backbone"]["scale"], [-0.3e-6, 0.0], rtol=1e-4)
  np.testing.assert_allclose(after["prompt"]["table"], [[0.0, -0.4e-6]], rtol=1e-4)
  np.testing.assert_allclose(free["prompt"]["table"], [[0.0, -4e-6]], rtol=1e-4)


@pytest.mark.parametrize("schedule,definition", [
    (Constant(rate=0.3), lambda t: 0.3),
    (LinearWarmup(rate=0.5, warmup_steps=4), lambda t: 0.5 * min(1, t / 4)),
    (LinearDecay(rate=2.0, total_steps=10), lambda t: 2.0 * max(0, 1 - t / 10)),
    (LinearDecay(rate=2.0, total_steps=10, warmup_steps=4),
     lambda t: 2.0 * (t / 4 if t < 4 else max(0, (10 - t) / 6))),
    (Cosine(rate=2.0, total_steps=10, warmup_steps=4, final_share=0.1),
     lambda t: 0.5 * t if t < 4 else
     0.2 + 1.8 * (1 + np.cos(np.pi * min(1, (t - 4) / 6))) / 2),
    (InverseSquareRoot(warmup_steps=5), lambda t: 1 / np.sqrt(max(t, 5))),
])
def test_schedules_against_their_definitions(schedule, definition):
  compiled = jax.jit(schedule)
  for step in range(13):
    value = compiled(jnp.int32(step))
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, definition(step), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(schedule(step), value, rtol=1e-6, atol=1e-7)
  optimizer = Adafactor(learning_rate=schedule)
  assert optimizer.schedule is schedule


def test_a_number_is_a_constant_schedule():
  assert Adafactor().schedule == Constant(rate=0.3)
  assert Adafactor().schedule(5) == jnp.float32(0.3)


@pytest.mark.parametrize("make,message", [
    (lambda: Adafactor(learning_rate=0), "Adafactor.learning_rate is out of range\n  found:  0"),
    (lambda: Adafactor(learning_rate="0.3"), "a number above 0, or a schedule"),
    (lambda: Adafactor(step_offset=-1_100_000), "Adafactor.step_offset is out of range"),
    (lambda: Adafactor(decay_rate=1.5), "wanted: 0 < decay_rate <= 1"),
    (lambda: Adafactor(weight_decay_rate=-1e-5), "Adafactor.weight_decay_rate is out of range"),
    (lambda: Adafactor(clipping_threshold=0.0), "Adafactor.clipping_threshold is out of range"),
    (lambda: Adafactor(momentum=1.0), "Adafactor.momentum is out of range"),
    (lambda: Adafactor(min_dim_size_to_factor=0), "wanted: 1 or more"),
    (lambda: AdamW(clip_norm=0.0), "AdamW.clip_norm is out of range"),
    (lambda: AdamW(beta1=1.0), "wanted: 0 <= beta1 < 1"),
    (lambda: AdamW(beta2=-0.1), "wanted: 0 <= beta2 < 1"),
    (lambda: AdamW(epsilon=0.0), "AdamW.epsilon is out of range"),
    (lambda: AdamW(weight_decay_rate=-0.1), "AdamW.weight_decay_rate is out of range"),
    (lambda: Adafactor(learning_rate=None), "Adafactor.learning_rate is out of range"),
    (lambda: Constant(rate="0.3"), "Constant.rate is out of range\n  found:  '0.3'"),
    (lambda: Constant(rate=-1.0), "Constant.rate is out of range\n  found:  -1.0"),
    (lambda: LinearWarmup(rate=1.0, warmup_steps=0), "LinearWarmup.warmup_steps is out of range"),
    (lambda: LinearDecay(rate=1.0, total_steps=5, warmup_steps=5), "below total_steps=5"),
    (lambda: Cosine(rate=1.0, total_steps=5, final_share=2.0), "a share from 0 to 1"),
    (lambda: InverseSquareRoot(warmup_steps=0), "InverseSquareRoot.warmup_steps is out of range"),
    (lambda: Adafactor().build({"prompt": {}}), "there is nothing to train"),
    (lambda: AdamW().build({"prompt": {"table": jnp.ones(2, jnp.bfloat16)}}),
     "found:  prompt/table: bfloat16"),
])
def test_settings_are_checked(make, message):
  with pytest.raises(UserError) as error:
    make()
  assert message in str(error.value)
