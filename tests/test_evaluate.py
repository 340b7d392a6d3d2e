"""Evaluation against loops that run the whole model a row, a label and a token at a time."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CONFIG, random_params

from prompt_tuning import examples, scoring, trees
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings, Evaluator
from prompt_tuning.prompted import add_virtual_tokens
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.prompts.warp import WarpPrompt
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.selection import Selection
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.spec import TaskSpec
from prompt_tuning.tasks.windows import Windows
from prompt_tuning.trees import Split

BYTES = vocabularies.load_light("bytes")
LENGTHS = {"inputs": 9, "targets": 5}
LABELS = ("a", "bcd", "ef")
ROWS = [("first", "bcd"), ("second", "a"), ("3", "bcd"), ("fourth", "ef"), ("the 5th", "bcd")]
CONFIG_OF_BYTES = dataclasses.replace(CONFIG, vocab_size=264)
MODEL_CONFIG = ModelConfig(backbone=CONFIG_OF_BYTES, prompt=SoftPrompt(CONFIG_OF_BYTES, length=3),
                           vocabulary="bytes", initial_checkpoint_path="random")
MODEL = MODEL_CONFIG.module()
NOTHING = Split({})


@dataclasses.dataclass(frozen=True)
class Rows:
  """A source of a task, and the object that makes it."""

  name: str
  labels: tuple[str, ...] | None = LABELS
  metrics: tuple[str, ...] = ("accuracy",)
  splits: tuple[str, ...] = ("train", "validation")

  def rows(self, split):
    return iter({"inputs": text, "targets": label} for text, label in ROWS)

  def fingerprint(self):
    return self.name

  def spec(self):
    return TaskSpec(name=self.name, source=self, to_text=dict, labels=self.labels,
                    metrics=self.metrics)


@pytest.fixture
def evaluator(tmp_path):
  def make(name="eval_ranked", lengths=LENGTHS, **settings):
    source = Rows(name) if "ranked" in name else Rows(name, None, settings.pop("metrics", (
      "exact_match",)))
    task = TaskConfig(name=source.name, feature_lengths=lengths, source=source,
                      cache_dir=str(tmp_path))
    return Evaluator(MODEL_CONFIG, task, EvalSettings(**{"batch_size": 2} | settings))
  return make


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(jnp.asarray, random_params(MODEL))


def encoder_row(text):
  ids = [*BYTES.encode(text), 1]
  return add_virtual_tokens(np.array([ids + [0] * (9 - len(ids))], np.int32), 3)


def target_row(text):
  ids = [*BYTES.encode(text), 1]
  return np.array([ids + [0] * (5 - len(ids))], np.int32)


LOGITS = jax.jit(lambda params, tokens, shifted: MODEL.apply(
  {"params": params}, tokens, shifted, enable_dropout=False))


def log_likelihood(params, text, target, tokens=None):
  """Summed over the target's tokens, in numpy from the model's logits."""
  targets = target_row(target)
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  logits = np.asarray(LOGITS(params, encoder_row(text) if tokens is None else tokens, shifted),
                      np.float64)[0]
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return sum(log_probs[i, t] for i, t in enumerate(targets[0]) if t)


def num_tokens(texts):
  return sum(len(BYTES.encode(text)) + 1 for text in texts)


def test_rank_classification_equals_a_loop_over_inputs_and_labels(evaluator, params):
  ranked = evaluator()
  assert ranked.method == "rank"
  result = ranked({}, params, NOTHING)
  scores = np.array([[log_likelihood(params, text, label) for label in LABELS]
                     for text, _ in ROWS])
  assert result.predictions == [LABELS[i] for i in scores.argmax(1)]
  assert result.inputs == [text for text, _ in ROWS]
  assert result.targets == [label for _, label in ROWS]
  known = [LABELS.index(label) for _, label in ROWS]
  picked = scores[range(5), known]
  metrics = result.metrics
  assert metrics["examples"] == 5
  assert metrics["accuracy"] == pytest.approx((scores.argmax(1) == known).mean())
  assert metrics["loss"] == pytest.approx(-picked.sum() / num_tokens(t for _, t in ROWS), rel=1e-5)
  assert set(ranked.metric_names()) == metrics.keys() - {"examples"}
  assert Selection.of(None, ranked).score(metrics) == [metrics["accuracy"], -metrics["label_loss"]]
  normalised = picked - np.log(np.exp(scores).sum(1))
  assert metrics["label_loss"] == pytest.approx(-normalised.mean(), rel=1e-4)


def shapes(jaxpr):
  """Of everything that a program computes, loops included."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.shape for variable in equation.outvars)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from shapes(inner)


def test_the_encoder_runs_once_an_input():
  """Attention of the encoder is [rows, heads, S, S]: S = 12 stands nowhere else twice."""
  labels = jnp.ones((3, 4), jnp.int32)
  tokens = jax.ShapeDtypeStruct((2, 12), jnp.int32)
  found = set(shapes(jax.make_jaxpr(lambda p, t: scoring.label_scores(MODEL, p, t, labels))(
    random_params(MODEL), tokens).jaxpr))
  attention = {shape for shape in found if shape[-2:] == (12, 12) and len(shape) == 4}
  assert (2, 2, 12, 12) in attention and not any(shape[0] == 6 for shape in attention)
  assert (6, 2, 4, 12) in found  # the decoder attends once an input and label


def test_decoding_equals_a_plain_greedy_loop(evaluator, params):
  decoded = evaluator("eval_text")
  assert decoded.method == "decode"
  # Likelier ends, so that rows end at different lengths.
  flat = trees.flatten(params)
  flat["backbone/decoder/logits_dense/kernel"] = (
    flat["backbone/decoder/logits_dense/kernel"].at[:, 1].multiply(1.6))
  params = trees.unflatten(flat)
  wanted = []
  for text, _ in ROWS:
    ids: list[int] = []
    while len(ids) < 5 and 1 not in ids:
      shifted = np.zeros((1, 5), np.int32)
      shifted[0, 1:len(ids) + 1] = ids
      ids.append(int(np.argmax(LOGITS(params, encoder_row(text), shifted)[0, len(ids)])))
    wanted.append(ids)
  result = decoded({}, params, NOTHING)
  assert len({tuple(ids) for ids in wanted}) > 1
  assert result.predictions == [BYTES.decode(ids) for ids in wanted]
  loss = -sum(log_likelihood(params, *row) for row in ROWS) / num_tokens(t for _, t in ROWS)
  assert result.metrics["loss"] == pytest.approx(loss, rel=1e-5)
  assert 0 <= result.metrics["exact_match"] <= 1
  assert set(decoded.metric_names()) == result.metrics.keys() - {"examples"}
  assert Selection.of(None, decoded).score(result.metrics) == [-result.metrics["loss"]]


def test_labels_that_the_vocabulary_does_not_tell_apart():
  with pytest.raises(UserError, match="Two labels are the same ids"):
    examples.label_ids(("good", "日", "本"), vocabularies.load_light("tiny"))


def test_loss_and_encoder_gap_equal_numpy(evaluator, params):
  measured = evaluator("eval_ranked_loss", method="loss")
  metrics = measured({}, params, NOTHING).metrics
  total = num_tokens(t for _, t in ROWS)
  own = [-log_likelihood(params, *row) for row in ROWS]
  assert metrics["loss"] == pytest.approx(sum(own) / total, rel=1e-5)
  # Batches of two: each row with its neighbour's input; the fifth stands alone.
  gap = sum(-log_likelihood(params, ROWS[i ^ 1][0], ROWS[i][1]) - own[i] for i in range(4))
  gap /= num_tokens(t for _, t in ROWS[:4])
  assert metrics["encoder_gap"] == pytest.approx(gap, rel=1e-3, abs=1e-6)
  assert abs(gap) > 1e-3 and metrics["examples"] == 5
  # A batch that is filled up: a ring of the three real rows.
  metrics = evaluator("eval_ranked_loss", method="loss", max_examples=3, batch_size=4)(
    {}, params, NOTHING).metrics
  gap = sum(-log_likelihood(params, ROWS[i - 1 if i else 2][0], ROWS[i][1]) - own[i]
            for i in range(3)) / num_tokens(t for _, t in ROWS[:3])
  assert metrics["encoder_gap"] == pytest.approx(gap, rel=1e-3, abs=1e-6)


def test_a_decoder_that_ignores_the_encoder_has_no_gap(evaluator, params):
  deaf = trees.map_with_path(
    lambda path, x: jnp.zeros_like(x) if "encoder_decoder_attention/out" in path else x, params)
  metrics = evaluator("eval_ranked_loss", method="loss")({}, deaf, NOTHING).metrics
  assert metrics["encoder_gap"] == pytest.approx(0, abs=1e-6) and metrics["loss"] > 1


def test_max_examples_takes_the_first_rows(evaluator, params):
  result = evaluator(max_examples=3)({}, params, NOTHING)
  everything = evaluator()({}, params, NOTHING)
  assert result.metrics["examples"] == 3
  assert result.predictions == everything.predictions[:3]
  loss = evaluator("eval_ranked_loss", method="loss", max_examples=3)({}, params, NOTHING).metrics
  wanted = -sum(log_likelihood(params, *row) for row in ROWS[:3]) / num_tokens(
    t for _, t in ROWS[:3])
  assert loss["loss"] == pytest.approx(wanted, rel=1e-5) and loss["examples"] == 3


def test_the_size_of_a_batch_changes_no_number(evaluator, params):
  one, other = (evaluator(batch_size=size)({}, params, NOTHING) for size in (2, 4))
  assert one.predictions == other.predictions
  assert one.metrics == pytest.approx(other.metrics, rel=1e-5)


def test_majority(evaluator):
  assert evaluator().majority() == {"examples": 5, "accuracy": 0.6, "not_a_label": 0}
  assert evaluator(max_examples=2).majority()["accuracy"] == 0.5


def test_parameters_in_two_parts_give_the_same_result(evaluator, params):
  split = trees.plan_split(params, ("decoder/.*",))
  trainable, frozen = split.split(params)
  ranked = evaluator()
  assert ranked(trainable, frozen, split).metrics == pytest.approx(
    ranked({}, params, NOTHING).metrics, rel=1e-6)


@pytest.mark.parametrize("name, settings, message", [
  ("eval_text", {"method": "rank"}, "Rank classification needs labels"),
  ("eval_ranked", {"split": "tests"}, "has no split 'tests'"),
  ("eval_ranked", {"lengths": {"inputs": 9, "targets": 3}}, "Too many targets|longer than the"),
  ("eval_ranked", {"lengths": {"inputs": 4, "targets": 5}}, "Too many inputs"),
  ("eval_ranked", {"method": "best"}, "EvalSettings.method is unknown"),
  ("eval_ranked", {"max_examples": 0}, "EvalSettings.max_examples is not a count")])
def test_settings_that_do_not_fit(evaluator, name, settings, message):
  with pytest.raises(UserError, match=message):
    evaluator(name, **settings)


@pytest.mark.parametrize("name, settings", [("eval_ranked", {"method": "loss"}),
                                            ("eval_ranked", {}), ("eval_text", {})])
def test_targets_that_the_method_cannot_write(tmp_path, evaluator, monkeypatch, name, settings):
  for labels, fits in ((LABELS, True), (("a", "bcd", "gh"), False)):
    prompt = WarpPrompt(CONFIG_OF_BYTES, 3, labels=labels)
    monkeypatch.setattr(sys.modules[__name__], "MODEL_CONFIG",
                        dataclasses.replace(MODEL_CONFIG, prompt=prompt))
    if fits:
      evaluator(name, **settings)
    else:
      with pytest.raises(UserError, match=f"WARP cannot write all(.|\n)*'ef', of {name}"):
        evaluator(name, **settings)


def test_a_task_without_metrics_is_measured_by_its_loss(evaluator):
  assert evaluator("eval_plain", metrics=()).method == "loss"


@dataclasses.dataclass(frozen=True)
class Questions:
  """Two questions; the context's words are what the model reads."""

  splits: tuple[str, ...] = ("train", "validation")

  def spec(self):
    return TaskSpec(name="eval_windows", source=Windows(self, size=1, stride=1), labels=None,
                    to_text=_of_a_window, metrics=("squad",))

  def rows(self, split):
    for context in ("one two six", "ten four"):
      yield {"question": "?", "context": context, "answers": ["two"]}

  def fingerprint(self):
    return "questions"


def _of_a_window(row):
  return {"inputs": row["context"], "targets": row["answers"][0], "references": row["answers"],
          "group": row["window_of"]}


def test_a_question_in_windows_has_the_answer_of_the_surest_window(params, tmp_path):
  task = TaskConfig(name="eval_windows", feature_lengths=LENGTHS, source=Questions(),
                    cache_dir=str(tmp_path))
  result = Evaluator(MODEL_CONFIG, task, EvalSettings(batch_size=2))({}, params, NOTHING)
  words = ["one", "two", "six", "ten", "four"]
  # A question counts once.
  assert result.inputs == ["one", "ten"] and result.metrics["examples"] == 2
  wanted = []
  model = jax.jit(lambda *arrays: MODEL.apply({"params": params}, *arrays, enable_dropout=False))
  for word in words:
    tokens, ids, total = encoder_row(word), [], 0.0
    for _ in range(LENGTHS["targets"]):
      given = np.array([[0, *ids]], np.int32)
      given = np.pad(given, ((0, 0), (0, LENGTHS["targets"] - given.shape[1])))
      logits = np.asarray(model(tokens, given), np.float64)[0, len(ids)]
      ids.append(int(logits.argmax()))
      total += logits[ids[-1]] - np.log(np.exp(logits).sum())
      if ids[-1] == 1:
        break
    wanted.append((total, BYTES.decode(ids)))
  first, second = max(wanted[:3]), max(wanted[3:])
  assert result.predictions == [first[1], second[1]]


def test_questions_count_once_however_many_windows_they_have(params, tmp_path, monkeypatch):
  """One right of three windows, one wrong of two: half, not three fifths."""
  task = TaskConfig(name="eval_windows", feature_lengths=LENGTHS, source=Questions(),
                    cache_dir=str(tmp_path))
  made = Evaluator(MODEL_CONFIG, task, EvalSettings(batch_size=2))
  answers = iter(["two", "two", "two", "six", "six"])
  monkeypatch.setattr(made, "text", lambda ids: next(answers))
  assert made({}, params, NOTHING).metrics["em"] == 0.5


def test_a_leading_sentinel_is_scored_and_is_no_part_of_what_is_said(params, tmp_path):
  """Against likelihoods of the ids with the sentinel, in numpy."""
  sentinel = BYTES.sentinel(0)

  def logits(text, given):
    shifted = np.zeros((1, 6), np.int32)
    shifted[0, 1:len(given) + 1] = given
    return np.asarray(LOGITS(params, encoder_row(text), shifted), np.float64)[0]

  def likelihood(text, ids):
    found = logits(text, ids[:-1])
    log_probs = found - np.log(np.exp(found).sum(-1, keepdims=True))
    return sum(log_probs[i, token] for i, token in enumerate(ids))

  def evaluated(name, labels):
    source = Rows(name, labels, ("accuracy",) if labels else ("exact_match",))
    task = TaskConfig(name=name, feature_lengths={"inputs": 9, "targets": 6}, source=source,
                      cache_dir=str(tmp_path), leading_sentinel=True)
    found = Evaluator(MODEL_CONFIG, task, EvalSettings(batch_size=2))
    return found, found({}, params, NOTHING)

  ids = {label: [sentinel, *BYTES.encode(label), 1] for label in LABELS}
  scores = np.array([[likelihood(text, ids[label]) for label in LABELS] for text, _ in ROWS])
  _, ranked = evaluated("sentinel_ranked", LABELS)
  assert ranked.predictions == [LABELS[i] for i in scores.argmax(1)]
  known = [LABELS.index(label) for _, label in ROWS]
  picked = scores[range(5), known]
  assert ranked.metrics["loss"] == pytest.approx(
    -picked.sum() / sum(len(ids[label]) for _, label in ROWS), rel=1e-5)
  decoder, decoded = evaluated("sentinel_text", None)
  assert decoded.metrics["loss"] == pytest.approx(ranked.metrics["loss"], rel=1e-5)
  assert decoded.targets == [label for _, label in ROWS]
  spoken = np.array([sentinel, *BYTES.encode("bcd"), 1, 0])
  assert decoder.text(spoken) == "bcd" and decoder.text(spoken[1:]) == "bcd"
