"""The search's step against exhaustive search, exact exchanges and ids written into the input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIG, backbone

from prompt_tuning import quantization, trees
from prompt_tuning.discrete import words
from prompt_tuning.discrete.autoprompt import position_of
from prompt_tuning.discrete.search import Search, answer_states, class_scores, project
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5
from prompt_tuning.tasks import vocabularies

P, T, ROWS, COPIES, AT_ONCE = 2, 5, 512, 16, 128
MODEL = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, P))
PLAIN = PromptedT5(T5(CONFIG))
# Six classes of one token each, and twelve tokens that a trigger may hold.
ANSWERS = np.arange(100, 106, dtype=np.int32).reshape(6, 1, 1)
TOKENS = np.arange(40, 52)
ALLOWED = np.isin(np.arange(CONFIG.vocab_size), TOKENS)
PLANTED = (43, 50)


def loud(params):
  """Weights under which the encoder's input moves the logits far."""
  def scale(path, leaf):
    if path == "token_embedder/embedding" or path.startswith("encoder") and "kernel" in path:
      return 3.0 * leaf
    return 6.0 * leaf if "encoder_decoder_attention" in path else leaf
  return trees.map_with_path(scale, params)


BACKBONE = loud(backbone(5))


def rows(seed):
  generator = np.random.default_rng(seed)
  texts = generator.integers(60, 90, (ROWS // COPIES, T)).astype(np.int32)
  texts[:, -1] = 1
  texts = np.repeat(texts, COPIES, axis=0)
  return np.concatenate([np.tile(np.array([-1, -2], np.int32), (ROWS, 1)), texts], axis=1)


def make(**settings):
  settings = {"allowed": ALLOWED, "candidates": len(TOKENS), "over_labels": True,
              "rows_at_once": AT_ONCE} | settings
  return Search(MODEL, BACKBONE, ANSWERS, **settings)


@pytest.fixture(scope="module")
def problem():
  """A search, and texts whose copies have the classes in the shares that the planted trigger gives
  them: its loss is then the least, up to rounding of the shares (Gibbs' inequality)."""
  search, tokens = make(), rows(0)
  unknown = np.zeros(ROWS, np.int32)
  _, scores = search.scores(search.embedding(np.array(PLANTED)), tokens, unknown)
  shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
  middles = (np.arange(ROWS) % COPIES + 0.5) / COPIES
  classes = (shares.cumsum(axis=1) < middles[:, None]).sum(axis=1).astype(np.int32)
  return search, tokens, classes


def mean_loss(search, trigger, tokens, classes):
  return float(search.scores(search.embedding(np.array(trigger)), tokens, classes)[0].mean())


def test_finds_the_planted_trigger_and_compiles_once(problem):
  search, tokens, classes = problem
  every = {trigger: mean_loss(search, trigger, tokens, classes)
           for trigger in itertools.product(TOKENS.tolist(), repeat=P)}
  assert min(every, key=every.get) == PLANTED, "the problem is not planted"
  trigger, loss, losses = [45, 41], every[45, 41], []
  for step in range(3 * P):
    position = position_of(0, step, P)
    at = np.array(trigger, np.int32)
    gradient = search.gradient(at, tokens[:AT_ONCE], classes[:AT_ONCE])
    tried, exact, _ = search.swaps(at, position, gradient, tokens, classes)
    assert sorted(tried) == TOKENS.tolist()
    for token, value in zip(tried.tolist(), exact, strict=True):
      exchanged = tuple(token if i == position else t for i, t in enumerate(trigger))
      assert value == pytest.approx(every[exchanged], rel=1e-5)
    if exact.min() < loss:
      trigger[position], loss = int(tried[exact.argmin()]), float(exact.min())
    losses.append(loss)
  assert tuple(trigger) == PLANTED
  assert losses == sorted(losses, reverse=True)
  assert search.traces == {"evaluate": 1, "gradient": 1, "step": 1}


def test_first_order_changes_equal_exact_exchanges_of_near_tokens():
  # One class for all rows: their gradients do not cancel.
  tokens, classes = rows(0)[::4], np.zeros(AT_ONCE, np.int32)
  # Tokens that differ little: what is beyond the first order is small.
  table = np.array(BACKBONE["token_embedder"]["embedding"])
  generator = np.random.default_rng(2)
  table[TOKENS] = table[45] + 3e-3 * generator.normal(size=(len(TOKENS), table.shape[1]))
  near = Search(MODEL, {**BACKBONE, "token_embedder": {"embedding": table}}, ANSWERS,
                allowed=ALLOWED, candidates=len(TOKENS), over_labels=True, rows_at_once=AT_ONCE)
  at = np.array([45, 41], np.int32)
  gradient = near.gradient(at, tokens, classes)
  before = mean_loss(near, at, tokens, classes)
  tried, exact, change = near.swaps(at, 1, gradient, tokens, classes)
  assert np.abs(change).max() > 5e-5
  np.testing.assert_allclose(exact - before, change, atol=0.05 * np.abs(change).max())
  assert np.corrcoef(exact - before, change)[0, 1] > 0.99
  # Candidates come in the order of what the gradient promises.
  assert (np.diff(change) >= 0).all() and 41 in tried


def test_a_trigger_is_the_prompt_of_its_embeddings(problem):
  search, tokens, _ = problem
  written = tokens.copy()
  written[:, :P] = PLANTED
  plain = class_scores(PLAIN, {"backbone": BACKBONE}, jnp.asarray(written[:8]), ANSWERS)
  _, scores = search.scores(search.embedding(np.array(PLANTED)), tokens[:8],
                            np.zeros(8, np.int32))
  np.testing.assert_allclose(scores, plain, atol=1e-5)
  table = BACKBONE["token_embedder"]["embedding"]
  found = project(3.0 * search.embedding(np.array(PLANTED)), table, ALLOWED)
  assert tuple(found) == PLANTED


def test_a_table_of_few_bits_is_searched_as_what_it_stands_for():
  few = quantization.quantize(BACKBONE["token_embedder"]["embedding"], quantization.Scheme(8), -1)
  at, (tokens, classes) = np.array([45, 41], np.int32), (part[:AT_ONCE] for part in (
    rows(0), np.zeros(ROWS, np.int32)))
  found = [Search(MODEL, {**BACKBONE, "token_embedder": {"embedding": table}}, ANSWERS,
                  allowed=ALLOWED, candidates=4, over_labels=True, rows_at_once=AT_ONCE)
           for table in (few, np.asarray(few, np.float32))]
  np.testing.assert_array_equal(*(search.embedding(at) for search in found))
  both = [search.swaps(at, 1, search.gradient(at, tokens, classes), tokens, classes)
          for search in found]
  for one, other in zip(*both, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_class_scores_sum_over_texts_behind_what_is_given():
  tokens = jnp.asarray(rows(3)[:2])
  params = {"backbone": BACKBONE, "prompt": {"embedding": np.ones((P, 16), np.float32)}}
  texts = np.zeros((2, 2, 2), np.int32)
  texts[0] = [[100, 1], [101, 102]]
  texts[1, 0] = [103, 104]  # its other text is padding

  reference = jax.jit(lambda shifted: jax.nn.log_softmax(MODEL.apply(
    {"params": params}, tokens, shifted, enable_dropout=False)))

  def log_prob(text, given):
    # The decoder does not see what comes later.
    shifted = np.array([([0, *given, *text] + [0] * 3)[:4]] * 2, np.int32)
    log_probs = np.asarray(reference(shifted))
    return sum(log_probs[:, len(given) + u, token] for u, token in enumerate(text))

  for given, width in (((), 1), ((258,), 2)):
    found = jax.jit(lambda answers, given=given: class_scores(
      MODEL, params, tokens, answers, given))(jnp.asarray(texts[:, :, :width]))
    first, second, third = (log_prob(text[:width], given)
                            for text in ([100, 1], [101, 102], [103, 104]))
    np.testing.assert_allclose(found, np.stack([np.logaddexp(first, second), third], axis=1),
                               atol=1e-5)


def test_answer_states_are_what_the_output_layer_reads():
  tokens = jnp.asarray(rows(4)[:3])
  params = {"backbone": BACKBONE, "prompt": {"embedding": np.ones((P, 16), np.float32)}}
  states = answer_states(MODEL, params, tokens, (258,))
  shifted = np.tile(np.array([0, 258], np.int32), (3, 1))
  logits = MODEL.apply({"params": params}, tokens, shifted, enable_dropout=False)[:, -1]
  kernel = np.asarray(BACKBONE["decoder"]["logits_dense"]["kernel"])
  np.testing.assert_allclose(states @ kernel, logits, atol=1e-4)


def test_every_sweep_goes_through_all_positions():
  orders = [[position_of(7, sweep * 5 + i, 5) for i in range(5)] for sweep in range(4)]
  assert all(sorted(order) == list(range(5)) for order in orders)
  assert len(set(map(tuple, orders))) > 1


def test_allowed_words():
  tiny = vocabularies.load_light("tiny")
  label = tiny.encode("wonderful")
  keep = words.allowed(tiny, 4128, excluded=label)
  assert not keep[:3].any() and not keep[tiny.vocab_size - 100:].any() and not keep[label].any()
  pieces = [tiny.piece(int(i)) for i in np.flatnonzero(keep)]
  assert "▁the" in pieces and all(p[0] == "▁" and p[1:].isalpha() for p in pieces)
  assert words.allowed(tiny, 4128, words_only=False).sum() > keep.sum()
  with pytest.raises(UserError, match="No token is left for a trigger"):
    words.allowed(vocabularies.load_light("bytes"), 264)


def test_logistic_regression_is_at_its_minimum():
  generator = np.random.default_rng(0)
  states, classes = generator.normal(size=(40, 3)), generator.integers(0, 3, 40)
  weights, biases = words.fit_logistic(states, classes, 3, decay=0.1)

  def loss(w, b):
    logits = states @ w + b
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(shares[np.arange(40), classes]).mean() + 0.05 * (w**2).sum()

  least = loss(weights, biases)
  # The problem is convex: no small move from the minimum may help.
  for _ in range(50):
    assert loss(weights + 1e-3 * generator.normal(size=weights.shape),
                biases + 1e-3 * generator.normal(size=3)) >= least
  numeric = [(loss(weights + h, biases) - loss(weights - h, biases)) / 2e-5
             for h in 1e-5 * np.eye(9).reshape(9, 3, 3)]
  np.testing.assert_allclose(numeric, 0, atol=1e-5)


def test_label_words_are_those_that_the_states_point_at():
  generator = np.random.default_rng(1)
  output = generator.normal(size=(60, 64))
  keep = np.arange(60) >= 10
  # The states of a class point at two words of it: 20 and 21, 30 and 31.
  classes = np.repeat([0, 1], 100)
  means = np.stack([output[20] + output[21], output[30] + output[31]])
  states = means[classes] + 0.3 * generator.normal(size=(200, 64))
  found, accuracy = words.label_words(states, classes, output, keep, 2, 2)
  assert {*found[0]} == {20, 21} and {*found[1]} == {30, 31} and accuracy == 1.0
  with pytest.raises(UserError, match="Too few tokens belong to a class"):
    words.label_words(states, classes, output, keep, 2, 50)
