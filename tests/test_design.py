"""Hard prompts: templates and contexts by hand, scores against loops and rank classification."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from small_models import CONFIG, GIN, backbone, save_backbone

from prompt_tuning import labelled_rows
from prompt_tuning.discrete import contexts
from prompt_tuning.discrete.design import (
  Cell,
  DesignConfig,
  Designer,
  cells_of,
  predictions,
  spread,
)
from prompt_tuning.discrete.templates import Pattern, answers
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings, Evaluator
from prompt_tuning.main import main
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.tasks import few_shot, vocabularies
from prompt_tuning.tasks.files import FileTask
from prompt_tuning.tasks.spec import TaskSpec
from prompt_tuning.tasks.variants import Variant
from prompt_tuning.trees import Split

BYTES = vocabularies.load_light("bytes")
ROWS = [(f"{word} {i}", label) for i in range(6) for word, label in (("fine", "yes"),
                                                                      ("poor", "no"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("design")
  lines = "\n".join(["text\tlabel", *(f"{text}\t{label}" for text, label in ROWS)]) + "\n"
  for name in ("train", "dev"):
    (root / f"{name}.tsv").write_text(lines)
  (root / "small.gin").write_text(GIN)
  save_backbone(root / "backbone")
  return root


def config_of(folder, **changes):
  source = FileTask(train_file=str(folder / "train.tsv"), validation_file=str(folder / "dev.tsv"),
                    inputs="{text}", targets="{label}", labels=("yes", "no"))
  task = TaskConfig(name="your_data", source=source, cache_dir=str(folder / "cache"),
                    feature_lengths=changes.pop("lengths", {"inputs": 40, "targets": 6}))
  model = ModelConfig(backbone=CONFIG, vocabulary="bytes",
                      initial_checkpoint_path=str(folder / "backbone"))
  return DesignConfig(**{"model": model, "task": task, "model_dir": str(folder / "run"),
                         "templates": ("{inputs} {targets}",), "batch_size": 4} | changes)


def test_templates():
  plain, sentinel = (Pattern("{inputs} is {targets}.", s) for s in (False, True))
  assert plain.example("It", "good") == "It is good."
  assert plain.question("It") == "It is" and sentinel.question("It") == "It is <extra_id_0>."
  assert Pattern("{targets}: {inputs}", True).question("x") == "<extra_id_0>: x"


@pytest.mark.parametrize("text, message", [
  ("{inputs}", "cannot be filled"), ("{inputs} {targets} {targets}", "cannot be filled"),
  ("{inputs} {label}", "cannot be filled"), ("{inputs} {targets:3}", "cannot be filled"),
  ("{inputs} {targets", "cannot be filled"), ("{targets}: {inputs}", "goes on behind the answer"),
  ("{inputs} {targets} film", "goes on behind the answer")])
def test_templates_that_are_none(text, message):
  with pytest.raises(UserError, match=message):
    Pattern(text)


def test_answers():
  tiny = vocabularies.load_light("tiny")
  found = answers(("a", "b"), {"b": "terrible", "a": "wonderful film"}, tiny, sentinel=True)
  assert found.words == ("wonderful film", "terrible") and found.given == 1
  assert (found.ids[:, 0] == tiny.sentinel(0)).all()
  for row, word, length in zip(found.ids, found.words, found.lengths, strict=True):
    assert row[1:1 + length].tolist() == [*tiny.encode(word), 1] and not row[1 + length:].any()
  for words in ({"a": "x"}, {"a": "x", "b": "x"}, {"a": "x", "c": "y"}):
    with pytest.raises(UserError, match="a word of its own"):
      answers(("a", "b"), words, tiny, False)


def test_words_that_the_vocabulary_does_not_tell_apart():
  with pytest.raises(UserError, match="same ids") as raised:
    answers(("a", "b"), {"a": "日本", "b": "中国"}, vocabularies.load_light("tiny"), False)
  assert "'日本' and '中国'" in str(raised.value) and "does not have" in str(raised.value)


def test_a_split_without_published_labels(folder):
  @dataclasses.dataclass(frozen=True)
  class Unpublished:
    splits: tuple[str, ...] = ("test",)

    def rows(self, split):
      return iter([{"inputs": "fine", "targets": "yes"}, {"inputs": "poor", "targets": "<unk>"}])

    def fingerprint(self):
      return "unpublished"

    def spec(self):
      return TaskSpec(name="unpublished", source=self, to_text=dict, labels=("yes", "no"),
                      metrics=("accuracy",))

  task = TaskConfig(name="unpublished", source=Unpublished(), cache_dir=str(folder / "cache"),
                    feature_lengths={"inputs": 40, "targets": 6})
  with pytest.raises(UserError, match="'test' of 'unpublished' has no labels"):
    labelled_rows.read(task, "bytes", "test")


def test_fixed_examples():
  classes = np.array([0] * 8 + [1] * 3 + [2] * 4)
  for shots in (0, 3, 6, 7, 8):
    chosen = few_shot.fixed("balanced", shots, classes, seed=3)
    counts = np.bincount(classes[chosen], minlength=3)
    assert len(set(chosen)) == shots and counts.max() - counts.min() <= (shots % 3 > 0)
    assert len(set(few_shot.fixed("random", shots, classes, 3))) == shots
  assert (few_shot.fixed("random", 6, classes, 1) != few_shot.fixed("random", 6, classes, 2)).any()
  with pytest.raises(UserError, match="too few training rows for the examples"):
    few_shot.fixed("balanced", 12, classes, 0)


def test_nearest_examples_equal_a_loop():
  generator = np.random.default_rng(0)
  table = generator.normal(size=(20, 5)).astype(np.float32)
  ids = [generator.integers(0, 20, n) for n in (3, 1, 4, 2, 6, 5)]
  vectors = contexts.mean_embeddings(ids, table)
  found = contexts.nearest(vectors[:2], vectors[2:], 3)

  def cosine(a, b):
    a, b = (sum(table[i].astype(float) for i in row) / len(row) for row in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))

  for question, row in zip(ids[:2], found, strict=True):
    order = sorted(range(4), key=lambda i: cosine(question, ids[2 + i]))
    assert row.tolist() == order[1:]


def test_what_fits_and_what_is_counted():
  examples = [np.full(n, 10 + n, np.int32) for n in (2, 5, 3)]
  question = np.array([5, 6], np.int32)

  def fit(length):
    return contexts.fit(examples, [7, 8, 9], question, 1, length)

  whole = fit(13)
  assert whole.ids.tolist() == [12] * 2 + [15] * 5 + [13] * 3 + [5, 6, 1]
  assert (whole.examples, whole.left_out, whole.is_long) == ((7, 8, 9), 0, False)
  # The nearest one first; of the rest what still fits.
  assert (fit(10).examples, fit(10).left_out) == ((7, 9), 1)
  assert (fit(5).examples, fit(5).left_out) == ((7,), 2)
  assert fit(3).ids.tolist() == [5, 6, 1] and fit(3).left_out == 3
  assert fit(2).ids.tolist() == [5, 1] and fit(2).is_long


def test_ways_of_scoring():
  scores = np.log(np.array([[0.02, 0.01], [0.001, 0.003]]))
  free = np.log(np.array([[[0.3, 0.1], [0.5, 0.5]]] * 2))
  found = predictions(scores, np.array([1, 4]), free)
  assert found["plain"].tolist() == [0, 1]
  # Four tokens of log 0.01 / 4 beat one of log 0.02.
  assert found["normalised"].tolist() == [1, 1]
  # Shares without content: (0.75 + 0.5) / 2 and (0.25 + 0.5) / 2.
  assert found["calibrated"].tolist() == [int(0.01 / 0.375 > 0.02 / 0.625), 1]
  # Whatever a constant factor of a class is, calibration takes it out.
  factor = np.log(np.array([1.0, 50.0]))
  moved = predictions(scores + factor, np.array([1, 4]), free[:, :1] + factor)
  assert (moved["calibrated"] == predictions(scores, np.array([1, 4]),
                                             free[:, :1])["calibrated"]).all()


def test_zero_shot_equals_rank_classification(folder):
  config = config_of(folder)
  designer = Designer(config)
  designer.load()
  rows = designer.cell(Cell("{inputs} {targets}", 0, 0, None, None))
  evaluator = Evaluator(config.model, config.task, EvalSettings(batch_size=4))
  params = {"backbone": jax.tree.map(np.asarray, backbone(3))}
  result = evaluator({}, params, Split({}))
  assert rows[0]["scoring"] == "plain" and rows[0]["accuracy"] == result.metrics["accuracy"]
  words = designer._answers[0]
  scores = designer._scores([np.append(BYTES.encode(text), 1).astype(np.int32)
                             for text, _ in ROWS], words)
  shares = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
  np.testing.assert_allclose(shares, result.log_probs, atol=1e-5)


def test_contexts_hold_solved_examples_ahead_of_the_question(folder):
  config = config_of(folder, templates=("{inputs}={targets}",), separator=";")
  designer = Designer(config)
  designer.load()
  for choice in contexts.CHOICES:
    made, = designer.contexts(Cell("{inputs}={targets}", 0, 2, choice, 4), ["fine 9"],
                              [np.array(BYTES.encode("fine 9"))])
    *examples, question = BYTES.decode(made.ids).split(";")
    assert question == "fine 9=" and len(examples) == 2
    assert {tuple(e.split("=")) for e in examples} <= set(ROWS)
    if choice == "balanced":
      assert {e.split("=")[1] for e in examples} == {"yes", "no"}
    if choice == "nearest":
      assert all(e.startswith("fine") for e in examples)


def test_spread_over_prompts():
  row = {"shots": 0, "choice": "", "scoring": "plain", "template": "t", "words": "w",
         "examples": 0.0, "left_out": 1}
  found, = spread([row | {"accuracy": 0.5}, row | {"accuracy": 0.8, "template": "u"}])
  assert (found["mean"], found["worst"], found["best"], found["best_template"]) == (
    pytest.approx(0.65), 0.5, 0.8, "u")
  assert found["sd"] == pytest.approx(0.3 / np.sqrt(2)) and found["left_out"] == 2


def test_the_command_keeps_every_result_and_goes_on(folder, capsys):
  run = folder / "cli"
  command = ["design", "--gin_file=models/tiny.gin", "--gin_file=runs/design.gin",
             "--gin_file=runs/your_data.gin", f"--gin_file={folder / 'small.gin'}",
             f"--gin.INITIAL_CHECKPOINT_PATH={folder / 'backbone'}",
             f"--gin.TRAIN_FILE={folder / 'train.tsv'}",
             f"--gin.VALIDATION_FILE={folder / 'dev.tsv'}", "--gin.INPUTS='{text}'",
             "--gin.TARGETS='{label}'", "--gin.LABELS=['yes', 'no']", f"--gin.MODEL_DIR={run}",
             "--gin.TEMPLATES=['{inputs} {targets}', '{inputs}. So: {targets}']",
             "--gin.SHOTS=[0, 2]", "--gin.SEEDS=[0, 1]", "--gin.BATCH_SIZE=4",
             "--gin.TASK_FEATURE_LENGTHS={'inputs': 40, 'targets': 6}"]
  assert main(command) == 0, capsys.readouterr().err
  rows = list(csv.DictReader((run / "results.csv").read_text().splitlines()))
  # Two templates: without examples, and three choices of two seeds; three scores of each.
  assert len(rows) == 2 * (1 + 3 * 2) * 3
  assert "best: " in capsys.readouterr().out
  assert json.loads((run / "summary.json").read_text())["majority"] == 0.5
  assert (run / "spread.png").read_bytes().startswith(b"\x89PNG")
  cells = json.loads((run / "cells.json").read_text())
  whole = (run / "results.csv").read_text()
  kept = dict(list(cells.items())[:5])
  # What a kill after the fifth cell leaves.
  (run / "cells.json").write_text(json.dumps(kept))
  assert main(command) == 0
  assert (run / "results.csv").read_text() == whole
  capsys.readouterr()
  assert main([*command, "--gin.SEEDS=[0]"]) == 2
  assert "MODEL_DIR holds another run" in capsys.readouterr().err


@pytest.mark.parametrize("changes, message", [
  ({"templates": "{inputs} {targets}"}, "TEMPLATES is not a list"),
  ({"choices": ("closest",)}, "unknown way to choose"), ({"shots": (-1,)}, "SHOTS holds"),
  ({"seeds": (0.5,)}, "SEEDS holds"), ({"templates": ("{inputs}",)}, "cannot be filled")])
def test_settings_that_are_wrong(folder, changes, message):
  with pytest.raises(UserError, match=message):
    config_of(folder, **changes)


def test_a_task_with_examples_of_its_own(folder):
  config = config_of(folder)
  task = dataclasses.replace(config.task, variant=Variant(few_shot=2))
  with pytest.raises(UserError, match="Discrete prompts choose their own examples"):
    Designer(dataclasses.replace(config, task=task))


def test_questions_and_words_that_do_not_fit(folder):
  with pytest.raises(UserError, match="Too many questions are longer than 5 tokens"):
    Designer(config_of(folder, lengths={"inputs": 5, "targets": 6}))
  with pytest.raises(UserError, match="longer than the targets"):
    Designer(config_of(folder, lengths={"inputs": 40, "targets": 3}))


def test_the_grid():
  class Names:
    templates, verbalizers, shots = ("a", "b"), None, (0, 1)
    choices, seeds = ("random", "nearest"), (0, 1, 2)
  cells = list(cells_of(Names))
  assert len(cells) == len(set(map(dataclasses.astuple, cells))) == 2 * (1 + 2 * 3)
