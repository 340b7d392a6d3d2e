"""Steered decoding against plain loops that recompute everything; strength 0; the beams' caches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CONFIG, random_params

from prompt_tuning import steering
from prompt_tuning.errors import UserError
from prompt_tuning.generation import Decoding, Reader, generate
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

P, U, COPIES = 2, 4, 3
MODEL = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, P, num_prompts=COPIES))
PARAMS = random_params(MODEL)
# Three prompts of each of two inputs.
ROWS = np.array([[-1, -2, 5, 6, 7, 1], [-1, -2, 9, 1, 0, 0]], np.int32)
ROWS_OF_COPIES = np.repeat(ROWS, COPIES, axis=0)
IDS = np.tile(np.arange(COPIES, dtype=np.int32), 2)
HEAD = steering.AttributeHead(
  jnp.asarray(np.random.default_rng(1).normal(size=(8, 3)), jnp.float32), jnp.zeros(3))


def made(steer, tokens=ROWS, ids=(0, 0), **how):
  run = jax.jit(functools.partial(generate, MODEL, max_length=U, how=Decoding(**how)))
  return np.asarray(run(PARAMS, tokens, jax.random.key(0), np.array(ids, np.int32),
                        steering=steer))


@jax.jit
def teacher(tokens, decoder, ids):
  return MODEL.apply({"params": PARAMS}, tokens, decoder, enable_dropout=False, prompt_ids=ids)


@jax.jit
def outputs(tokens, decoder, ids):
  """The decoder's outputs `[B, U, D]`."""
  def run(module):
    encoded = module.encode(tokens, prompt_ids=ids)
    values = module.prompt_values(tokens, ids)
    return module.backbone.decoder(module.backbone.embed(decoder), encoded, tokens, values.decoder,
                                   None, None, False)
  return MODEL.apply({"params": PARAMS}, method=run)


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(
    -1, keepdims=True)


def loop(scores_of):
  """Greedy, with `scores_of(input row, prefix) -> [V]`, which reads whole prefixes."""
  found = np.zeros((len(ROWS), U), np.int32)
  for b in range(len(ROWS)):
    prefix = []
    while len(prefix) < U and 1 not in prefix:
      prefix.append(int(np.argmax(scores_of(b, prefix))))
    found[b, :len(prefix)] = prefix
  return found


def next_log_probs(b, prefix, prompt):
  decoder = np.zeros((1, U + 1), np.int32)
  decoder[0, 1:len(prefix) + 1] = prefix
  return log_softmax(teacher(ROWS[b:b + 1], decoder, np.array([prompt], np.int32))[0, len(prefix)])


PLAIN = made(None)


def test_copies_of_one_prompt_are_the_plain_model():
  same = made(steering.Mean(COPIES), ROWS_OF_COPIES, (0,) * 6)
  np.testing.assert_array_equal(same, PLAIN)
  np.testing.assert_array_equal(made(steering.Mean(1)), PLAIN)


def test_the_mean_of_prompts_is_the_loop_s():
  def scores(b, prefix):
    return np.logaddexp.reduce([next_log_probs(b, prefix, p) for p in range(COPIES)], axis=0)
  found = made(steering.Mean(COPIES), ROWS_OF_COPIES, IDS)
  np.testing.assert_array_equal(found, loop(scores))
  assert np.any(found != PLAIN)


def test_experts_are_the_loop_s_and_strength_0_the_base():
  def scores(b, prefix):
    base, expert, against = (next_log_probs(b, prefix, p) for p in range(COPIES))
    return base + 1.5 * (expert - against)
  np.testing.assert_array_equal(
    made(steering.Experts(jnp.float32(1.5)), ROWS_OF_COPIES, IDS), loop(scores))
  np.testing.assert_array_equal(
    made(steering.Experts(jnp.float32(0.0)), ROWS_OF_COPIES, IDS), PLAIN)


def test_an_expert_alone_at_strength_1():
  two = np.repeat(ROWS, 2, axis=0)
  found = made(steering.Experts(jnp.float32(1.0), copies=2), two, (0, 1, 0, 1))
  np.testing.assert_array_equal(found, made(None, ids=(1, 1)))


def test_logits_at_strength_0_are_the_base_s_bit_for_bit():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 9)), jnp.float32)
  np.testing.assert_array_equal(steering.Experts(jnp.float32(0.0)).combine(logits), logits[0])


def test_the_discriminator_judges_every_candidate_s_whole_text():
  def scores(b, prefix):
    # One row a candidate, read from its start.
    decoder = np.zeros((20, U + 2), np.int32)
    decoder[:, 1:len(prefix) + 1] = prefix
    decoder[:, len(prefix) + 1] = np.arange(20)
    rows = np.repeat(ROWS[b:b + 1], 20, axis=0)
    read = np.asarray(outputs(rows, decoder, np.zeros(20, np.int32)), np.float64)
    mean = read[:, :len(prefix) + 2].mean(axis=1)
    judged = log_softmax(mean @ np.asarray(HEAD.kernel, np.float64))[:, 2]
    return next_log_probs(b, prefix, 0) + 3.0 * judged
  steer = steering.Discriminator(HEAD, jnp.int32(2), jnp.float32(3.0), candidates=20)
  found = made(steer)
  np.testing.assert_array_equal(found, loop(scores))
  assert np.any(found != PLAIN)
  few = steering.Discriminator(HEAD, jnp.int32(2), jnp.float32(0.0), candidates=3)
  np.testing.assert_array_equal(made(few), PLAIN)


def test_the_discriminator_reads_beyond_the_last_token():
  """The last token is judged as any other: room for more text changes nothing."""
  steer = steering.Discriminator(HEAD, jnp.int32(2), jnp.float32(3.0), candidates=20)
  short, long = (np.asarray(jax.jit(functools.partial(generate, MODEL, max_length=length))(
    PARAMS, ROWS, None, np.zeros(2, np.int32), steering=steer)) for length in (U - 2, U + 3))
  np.testing.assert_array_equal(short, long[:, :U - 2])
  first = np.asarray(jax.jit(functools.partial(generate, MODEL, max_length=1))(
    PARAMS, ROWS, None, np.zeros(2, np.int32), steering=steer))
  np.testing.assert_array_equal(first, long[:, :1])


def gradients(strength, fusion=1.0, kl=0.0):
  return steering.Gradients(HEAD, jnp.int32(2), jnp.float32(strength), jnp.float32(kl),
                            jnp.float32(fusion), steps=2)


def test_gradients_at_strength_or_fusion_0_are_the_plain_model():
  run = jax.jit(functools.partial(generate, MODEL, max_length=U))
  for steer in (gradients(0.0), gradients(2.0, fusion=0.0)):
    found = run(PARAMS, ROWS, None, np.zeros(2, np.int32), steering=steer)
    np.testing.assert_array_equal(found, PLAIN)


@jax.jit
def first_token(steer, tokens):
  """log p(attribute) of the changed model's first output, of each row."""
  ids = jnp.zeros(2, jnp.int32)
  reader = Reader(MODEL, PARAMS, tokens, ids)
  cache = MODEL.apply({"params": PARAMS}, tokens, U, ids, method="start_decoding")
  _, state = steer.next_logits(reader, jnp.zeros((2, 1), jnp.int32), steer.start(reader, cache))
  return steer.head.log_probs(state.total)[:, 2]


def test_gradients_go_uphill_in_every_row_and_stay_in_it():
  up, at, down = (np.asarray(first_token(gradients(x), ROWS)) for x in (1e-2, 0.0, -1e-2))
  assert np.all(up > at) and np.all(at > down)
  # To first order as far up as down: it is the slope, not any direction that helps.
  np.testing.assert_allclose(up - at, at - down, rtol=0.1)
  far = np.asarray(first_token(gradients(0.3), ROWS))
  assert np.all(far > up)
  other = first_token(gradients(0.3), np.stack([ROWS[0], ROWS[0]]))
  np.testing.assert_array_equal(other[0], far[0])
  # A heavy price on leaving the plain distribution holds the change back.
  held = np.asarray(first_token(gradients(0.3, kl=1e4), ROWS))
  assert np.all(held < far)


@pytest.mark.parametrize("copies", [1, COPIES])
def test_beams_share_cross_attention_and_equal_a_search_that_recomputes(copies):
  from prompt_tuning.decoding import beam_search
  beams = 2
  steer = None if copies == 1 else steering.Mean(copies)
  found = made(steer, ROWS if copies == 1 else ROWS_OF_COPIES, (0, 0) if copies == 1 else IDS,
               strategy="beam", num_beams=beams)

  def next_logits(last, state):
    prefix, index = state
    prefix = prefix.at[:, index].set(last[:, 0])
    tokens = jnp.repeat(jnp.asarray(ROWS), beams, axis=0)
    rows = [teacher(tokens, prefix, jnp.full(4, p, jnp.int32))[:, index]
            for p in range(copies)]
    log_probs = jnp.stack([jax.nn.log_softmax(x) for x in rows])
    return jax.nn.logsumexp(log_probs, axis=0), (prefix, index + 1)

  wanted, _ = jax.jit(lambda: beam_search(
    next_logits, (jnp.zeros((4, U), jnp.int32), jnp.int32(0)), batch_size=2, max_length=U,
    num_beams=beams, reorder=lambda state, index: (state[0][index], state[1])))()
  np.testing.assert_array_equal(found, wanted[:, 0])


def test_cross_attention_is_kept_once_an_input():
  cache = jax.eval_shape(lambda: MODEL.apply({"params": PARAMS}, ROWS, U, np.zeros(2, np.int32),
                                             method="start_decoding"))
  jaxpr = str(jax.make_jaxpr(functools.partial(
    generate, MODEL, max_length=U, how=Decoding(strategy="beam", num_beams=5)))(
      PARAMS, ROWS, None, np.zeros(2, np.int32)))
  layers, rows, heads, positions, width = cache.cross_key.shape
  assert f"f32[{layers},{rows},{heads},{positions},{width}]" in jaxpr
  assert f"f32[{layers},{5 * rows},{heads},{positions},{width}]" not in jaxpr


def test_control_settings_are_checked(tmp_path):
  from prompt_tuning.attribute_model import AttributeModel
  from prompt_tuning.control import Discriminator, Experts, Gradients
  path = str(tmp_path / "a.npz")
  AttributeModel(("sports", "world"), np.ones((8, 2), np.float32), np.zeros(2, np.float32)).write(
    path)
  greedy = Decoding()
  with pytest.raises(UserError, match="did you mean 'sports'"):
    Discriminator(attribute_model=path, attribute="sport").check(greedy, 8)
  with pytest.raises(UserError, match="of another backbone\n  found:  D = 8"):
    Gradients(attribute_model=path, attribute="sports").check(greedy, 16)
  with pytest.raises(UserError, match="does not go with beams"):
    Gradients(attribute_model=path, attribute="sports").check(Decoding(strategy="beam"), 8)
  with pytest.raises(UserError, match="ATTRIBUTE_MODEL cannot be read"):
    Gradients(attribute_model=str(tmp_path / "no.npz"), attribute="x").check(greedy, 8)
  with pytest.raises(UserError, match="STRENGTH is not a number"):
    Experts(expert="a.npy", strength=float("nan"))
  assert Experts(expert="a.npy", strength=0.0).prompts() == []
  assert Experts(expert="a.npy", strength=0.0).steering() is None
