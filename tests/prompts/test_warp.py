"""WARP's verbaliser: its start, what it lets through, its loss, and cached decoding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from descriptors import CONFIG, batch, forward, random_params

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID, PromptContext
from prompt_tuning.losses import cross_entropy
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.prompts.combined import Combined
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.lora import Lora
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.prompts.warp import NEVER, Verbalizer, WarpPrompt
from prompt_tuning.t5 import T5

LENGTH = 3
LABELS = ("a", "b c", "d e c")
IDS = ((5,), (6, 7), (8, 9, 7))
FIRST = [ids[0] for ids in IDS]


def warp(config=CONFIG, **fields):
  return WarpPrompt(config, **{"length": LENGTH, "labels": LABELS, "label_ids": IDS, **fields})


def targets():
  """A row a label, and one more of the last: `[4, 4]`, ended and padded."""
  rows = np.zeros((4, 4), np.int32)
  for row, ids in zip(rows, (*IDS, IDS[-1]), strict=True):
    row[:len(ids) + 1] = (*ids, EOS_ID)
  return rows


@pytest.mark.parametrize("tied", [False, True], ids=["t5_1_1", "t5_1_0"])
def test_the_start_has_the_backbones_logits(tied):
  """Of the labels' first tokens at the first position; T5 1.0 scales them."""
  config = CONFIG if not tied else type(CONFIG)(
    **{**vars(CONFIG), "logits_via_embedding": True, "mlp_activations": ("relu",)})
  model = PromptedT5(T5(config), warp(config))
  params, data = random_params(model), batch(model)
  backbone = params["backbone"]
  output = None if tied else backbone["decoder"]["logits_dense"]["kernel"].T
  prompt = model.prompt.initial_params(
    jax.random.key(0), {}, Sources(backbone["token_embedder"]["embedding"], output=output))
  assert prompt["verbalizer"].shape == (3, 8)
  plain = PromptedT5(model.backbone, SoftPrompt(config, LENGTH))
  wanted = forward(plain)({"backbone": backbone, "prompt": {"embedding": prompt["embedding"]}},
                          data)[1][:, 0, FIRST]
  ours = np.asarray(forward(model)({"backbone": backbone, "prompt": prompt}, data)[1])[:, 0]
  np.testing.assert_allclose(ours[:, FIRST], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
  assert (np.delete(ours, FIRST, axis=1) == NEVER).all()


def test_loss_is_that_of_a_classifier():
  """The cross-entropy of whole targets is that of the classes; one token of it is not certain."""
  random = np.random.default_rng(0)
  x, vectors = random.normal(size=(4, 4, 8)), random.normal(size=(3, 8))
  wanted_ids = targets()
  inputs = np.pad(wanted_ids, ((0, 0), (1, 0)))[:, :-1]
  scores = x[:, 0] @ vectors.T
  log_likelihood = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
  wanted = -log_likelihood[np.arange(4), [0, 1, 2, 2]]

  def loss(x, vectors):
    logits = Verbalizer(vectors, IDS)(x, inputs, jnp.arange(4), lambda y: jnp.zeros((
      *y.shape[:2], 20)))
    return cross_entropy(logits, wanted_ids, wanted_ids != 0, z_loss=0.0)

  found = loss(jnp.asarray(x, jnp.float32), jnp.asarray(vectors, jnp.float32))
  np.testing.assert_allclose(found.per_token[:, 0], wanted, rtol=1e-5)
  assert not np.asarray(found.per_token)[:, 1:].any()
  gradient = jax.grad(lambda x: loss(x, jnp.asarray(vectors, jnp.float32)).total)(
    jnp.asarray(x, jnp.float32))
  probability = np.exp(log_likelihood) - np.eye(3)[[0, 1, 2, 2]]
  np.testing.assert_allclose(gradient[:, 0], probability @ vectors, rtol=0, atol=1e-5)
  assert not np.asarray(gradient)[:, 1:].any()


def test_only_labels_can_be_written():
  """Every sequence of three ids, by brute force: certain if it is a label's, impossible if not."""
  hook = Verbalizer(jnp.zeros((3, 8)), IDS)
  ids = np.array(list(itertools.product(range(10), repeat=3)), np.int32)
  inputs = np.pad(ids, ((0, 0), (1, 0)))
  logits = np.asarray(hook(jnp.ones((len(ids), 4, 8)), inputs, jnp.arange(4),
                           lambda y: jnp.zeros((*y.shape[:2], 10))))
  whole = np.pad(ids, ((0, 0), (0, 1)), constant_values=EOS_ID)
  taken = np.take_along_axis(logits, whole[..., None], axis=2)[..., 0]
  for sequence, scores in zip(whole.tolist(), taken, strict=True):
    upto = sequence.index(EOS_ID)
    can_come = (scores[:upto + 1] == 0).all()
    assert can_come == (tuple(sequence[:upto]) in IDS), sequence


def test_cached_decoding_writes_the_best_label():
  model = PromptedT5(T5(CONFIG), warp())
  params, data = random_params(model), batch(model)
  data["decoder_tokens"][:, 0] = 0
  chosen = np.asarray(forward(model)(params, data)[1])[:, 0]
  best = chosen[:, FIRST].argmax(axis=1)
  assert len(set(best.tolist())) > 1
  cache = jax.jit(lambda p: model.apply({"params": p}, data["tokens"], 5,
                                         method=model.start_decoding))(params)
  step = jax.jit(functools.partial(model.apply, method=model.decode_step))
  token, written = np.zeros((4, 1), np.int32), []
  for u in range(5):
    logits, cache = step({"params": params}, token, cache, data["tokens"])
    if u == 0:
      np.testing.assert_allclose(logits[:, FIRST], chosen[:, FIRST], rtol=0, atol=1e-5)
    token = np.asarray(logits).argmax(axis=1).astype(np.int32)[:, None]
    written.append(token[:, 0])
  for row, label in zip(np.stack(written, axis=1).tolist(), best, strict=True):
    assert tuple(row[:row.index(EOS_ID)]) == IDS[label]


def test_the_model_fills_in_the_ids():
  """Of ByT5's vocabulary, an id is a byte and 3; a method inside another one is reached too."""
  bare = WarpPrompt(small_models.CONFIG, LENGTH, labels=["yes", "no"])
  wanted = tuple(tuple(byte + 3 for byte in label.encode()) for label in ("yes", "no"))
  small = small_models.model(prompt=False)
  assert type(small)(**{**vars(small), "prompt": bare}).module().prompt.label_ids == wanted
  both = Combined(small_models.CONFIG, {"warp": bare})
  bound = type(small)(**{**vars(small), "prompt": both}).module().prompt
  assert bound.parts["warp"].label_ids == wanted
  soft = small_models.model()
  assert soft.prompt == SoftPrompt(small_models.CONFIG, small_models.PROMPT_LENGTH)
  with pytest.raises(UserError, match="WARP does not know the ids of its labels"):
    bare.apply({"params": {}}, PromptContext())


@pytest.mark.parametrize("labels, ids, what, found", [
  (("a", "a"), (), "WarpPrompt.labels is not a list of labels", "('a', 'a')"),
  ("yes", (), "WarpPrompt.labels is not a list of labels", "'yes'"),
  (("a",), (), "WarpPrompt.labels is not a list of labels", "('a',)"),
  (("a", "b"), ((3,), ()), "WarpPrompt.label_ids are not those of the labels", "((3,), ())"),
  (("a b", "a c"), ((3, 4), (3, 5)), "Two labels begin with the same token",
   "'a b' and 'a c': id 3"),
  (("a c d", "b c e"), ((3, 5, 6), (4, 5, 7)), "A label does not follow from its last token",
   "'a c d': behind id 5 at position 2 another label goes on differently")])
def test_labels_that_cannot_be_told_apart(labels, ids, what, found):
  with pytest.raises(UserError) as error:
    warp(labels=labels, label_ids=ids)
  assert error.value.what == what and error.value.found == found
  assert "CLASS_LABELS" in error.value.fix or "run_config" in error.value.fix


@pytest.mark.parametrize("method", [
  warp(), Combined(CONFIG, {"lora": Lora(CONFIG), "warp": warp(), "soft": SoftPrompt(CONFIG, 2)})])
def test_what_it_cannot_write_is_refused(method):
  labels = list(zip(LABELS, IDS, strict=True))
  method.check_task("toy", iter(labels))
  method.check_task("toy", labels[1:])
  for given, settings, what, found in (
      ([*labels, ("z", (3,))], {}, "WARP cannot write all of the targets", "'z', of toy"),
      (labels, {"leading_sentinel": True}, "WARP cannot write a leading sentinel", "SENTINEL"),
      (labels, {"label_smoothing": 0.1}, "WARP cannot be trained with label smoothing", "0.1")):
    with pytest.raises(UserError) as error:
      method.check_task("toy", iter(given), **settings)
    assert error.value.what == what and found in error.value.found
  SoftPrompt(CONFIG, 2).check_task("toy", [("z", (3,))], leading_sentinel=True,
                                   label_smoothing=0.1)


def test_labels_may_share_their_end():
  warp(labels=("not ok", "very ok"), label_ids=((3, 5), (4, 5)))
