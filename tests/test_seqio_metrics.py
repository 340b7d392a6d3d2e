"""Metrics of users' seqio tasks, against seqio's own evaluator."""

import dataclasses

import pytest
import seqio
import tensorflow as tf
from small_models import CONFIG

from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings, Evaluator
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import ModelConfig, TaskConfig

BYTES = seqio.ByteVocabulary()
FEATURES = {name: seqio.Feature(BYTES) for name in ("inputs", "targets")}
ROWS = {"inputs": ["one", "two", "six"], "targets": ["1", "2", "6"], "choices": ["1|I", "2", "6"]}
PREDICTIONS = ["I!", "two", "6!"]
OF_BYTES = dataclasses.replace(CONFIG, vocab_size=264)
MODEL = ModelConfig(backbone=OF_BYTES, prompt=SoftPrompt(OF_BYTES, length=1), vocabulary="bytes",
                    initial_checkpoint_path="random")


def choices_or_answer(text, example=None, is_target=False):
  """Targets are all of the row's choices, as `t5`'s postprocessor of questions has it."""
  if is_target:
    return example["choices"].decode().split("|")
  return text.rstrip("!") if example["inputs_pretokenized"] != b"two" else None


def among(targets, predictions):
  return {"among": sum(p in t for t, p in zip(targets, predictions, strict=True)) / len(targets)}


def exact(targets, predictions):
  return {"exact": seqio.metrics.Scalar(sum(map(str.__eq__, targets, predictions)))}


def mean_score(targets, scores):
  return {"mean_score": sum(scores) / len(targets)}


@pytest.fixture
def task():
  """Makes a task; every one is forgotten afterwards."""
  made = []

  def make(name, **settings):
    def dataset(split, shuffle_files, seed=None):
      return tf.data.Dataset.from_tensor_slices(ROWS)

    made.append(name)
    return seqio.TaskRegistry.add(
      name, source=seqio.FunctionDataSource(dataset, splits=["validation"]),
      preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features=FEATURES, **settings)

  yield make
  for name in made:
    seqio.TaskRegistry.remove(name)


def evaluator(name, tmp_path, **settings):
  config = TaskConfig(name=name, feature_lengths={"inputs": 8, "targets": 4},
                      cache_dir=str(tmp_path))
  return Evaluator(MODEL, config, EvalSettings(batch_size=2, **settings))


def test_targets_and_predictions_are_postprocessed_as_seqio_does(task, tmp_path):
  task("with_choices", postprocess_fn=choices_or_answer, metric_fns=[among])
  theirs = seqio.Evaluator("with_choices", seqio.EncDecFeatureConverter(pack=False),
                           async_compute_metrics=False)
  found, _ = theirs.evaluate(compute_metrics=True, predict_fn=lambda dataset: [
    (i, [*BYTES.encode(text), 1, 0, 0][:4]) for i, text in enumerate(PREDICTIONS)])
  ours = evaluator("with_choices", tmp_path)
  assert ours.method == "decode" and ours.metric_names() == ["among", "loss"]
  assert ours.generated(PREDICTIONS).metrics == {"examples": 3} | found.result()["with_choices"]
  assert found.result()["with_choices"] == {"among": 2 / 3}
  first = evaluator("with_choices", tmp_path, max_examples=2)
  assert first.generated(PREDICTIONS[:2]).metrics == {"examples": 2, "among": 0.5}


def test_metrics_of_scores_do_not_get_texts(task, tmp_path, caplog):
  task("both", metric_fns=[mean_score, exact])
  assert evaluator("both", tmp_path).generated(["1", "2", "3"]).metrics == {
    "examples": 3, "exact": 2}
  assert "mean_score" in caplog.text


def test_a_task_without_a_metric_of_texts_is_an_error(task, tmp_path):
  task("scores_only", metric_fns=[mean_score])
  with pytest.raises(UserError, match="(?s)mean_score: of scores.*metric_fns with the arguments"):
    evaluator("scores_only", tmp_path)
  assert evaluator("scores_only", tmp_path, method="loss").metric_names() == ["loss"]


def test_a_metric_that_is_no_number(task, tmp_path):
  task("words", metric_fns=[lambda targets, predictions: {"best": "two words"}])
  with pytest.raises(UserError, match="metric 'best' of 'words' is no number"):
    evaluator("words", tmp_path).metric_names()
