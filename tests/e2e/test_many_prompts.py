"""Many prompts in one run against a run for each; resuming; ensembles; what is left."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest
from toy_runs import PROMPT, SMALL, TOY, Folder

from prompt_tuning import config as gin_config
from prompt_tuning import evaluate, run_report, trained_model
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints.trained import TrainedCheckpoints
from prompt_tuning.errors import UserError
from prompt_tuning.eval_run import EvalConfig, evaluate_runs
from prompt_tuning.evaluate import EvalSettings, Evaluator, Result
from prompt_tuning.prompts.initializers import SampledVocabulary, Uniform
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.metrics import Target
from prompt_tuning.train import TrainConfig, train
from prompt_tuning.trees import Split

pytestmark = pytest.mark.e2e
SEEDS, RATES = (4, 0, 4), (0.3, 0.3, 0.05)
MANY = {"PROMPT_SEEDS": SEEDS, "LEARNING_RATES": RATES, "DROPOUT_RATE": 0.1}
TEXT = SMALL + TOY + PROMPT.replace("TRAIN_STEPS = 8\nEVAL_PERIOD = 4",
                                    "TRAIN_STEPS = 4\nEVAL_PERIOD = 2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return Folder(tmp_path_factory.mktemp("many"), text=TEXT)


@pytest.fixture(scope="module")
def many(folder):
  return folder.train("many", **MANY)


def table(folder, name):
  with (folder.path / name / "members.csv").open() as file:
    return list(csv.DictReader(file))


def values(folder, name, split):
  return {(int(step), metric): float(value) for step, found, metric, value
          in folder.metrics(name)[1:] if found == split}


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_each_prompt_is_what_a_run_of_its_own_makes(folder, many):
  rows = table(folder, "many")
  for i, (seed, rate) in enumerate(zip(SEEDS, RATES, strict=True)):
    name = f"one_{i}"
    outcome = folder.train(name, PROMPT_SEED=seed, LEARNING_RATE=rate, DROPOUT_RATE=0.1)
    close(np.load(folder.path / f"many/members/{i}/prompt.npy"), folder.prompt(name))
    assert int(rows[i]["best_step"]) == folder.summary(name)["best_step"]
    for split in ("train", "validation"):
      found, wanted = values(folder, "many", f"{split}/{i}"), values(folder, name, split)
      assert found.keys() == wanted.keys()
      for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    for metric, value in outcome.best.metrics.items():
      assert float(rows[i][metric]) == pytest.approx(value, rel=1e-5)
    assert (rows[i]["seed"], rows[i]["learning_rate"]) == (str(seed), str(rate))
  prompts = [np.load(folder.path / f"many/members/{i}/prompt.npy") for i in range(3)]
  assert min(np.abs(a - b).max() for a, b in zip(prompts, prompts[1:], strict=False)) > 1e-3


def test_what_the_run_leaves(folder, many, capsys, monkeypatch):
  place, summary = folder.path / "many", folder.summary("many")
  assert (place / "learning_rates.png").is_file() and summary["trained"]["parameters"] == 3 * 4 * 16
  monkeypatch.setenv("COLUMNS", "200")
  run_report.ended(folder.config("many", **MANY), many)
  printed = capsys.readouterr().out
  assert "mean ± sd" in printed and "majority vote" in printed and "members.csv" in printed
  records = summary["table"]
  best = max(range(3), key=lambda i: (records[i]["accuracy"], -records[i]["label_loss"]))
  assert trained_model.trained_step(str(folder.path / "many")) == summary["best_step"]
  assert summary["best_member"] == best and summary["best_step"] == records[best]["best_step"]
  assert folder.prompt_bytes("many") == (place / f"members/{best}/prompt.npy").read_bytes()
  assert np.array_equal(many.params["prompt"]["embedding"], folder.prompt("many"))
  losses = np.array([row["label_loss"] for row in records])
  assert summary["mean"]["label_loss"] == pytest.approx(losses.mean())
  assert summary["standard_deviation"]["label_loss"] == pytest.approx(losses.std(ddof=1))
  assert [(point["rate"], point["prompts"]) for point in summary["learning_rates"]] == [
    (0.05, 1), (0.3, 2)]
  # The files that eval reads are those of a run of one prompt.
  config = folder.config("many", **MANY)
  shutil.copytree(place, folder.path / "copy")
  report, = evaluate_runs([EvalConfig(model=config.model, task=config.task,
                                      model_dir=str(folder.path / "copy"),
                                      eval_settings=EvalSettings())])
  assert report.result.metrics == pytest.approx(summary["best"], rel=1e-5)


def test_ensembles_are_those_of_the_predictions(folder, many):
  config, params = folder.config("many", **MANY), dict(many.params)
  evaluator = Evaluator(config.model, config.task, config.eval_settings)
  results = []
  for i in range(3):
    params["prompt"] = {"embedding": np.load(folder.path / f"many/members/{i}/prompt.npy")}
    results.append(evaluator({}, params, Split({})))
  found, targets = folder.summary("many")["ensembles"], results[0].targets
  votes = [max(("yes", "no"), key=[r.predictions[row] for r in results].count)
           for row in range(len(targets))]
  right = sum(vote == target for vote, target in zip(votes, targets, strict=True))
  assert found["majority_vote"]["accuracy"] == pytest.approx(right / len(targets))
  right, loss = 0, 0.0
  for row, target in enumerate(targets):
    probs = [np.mean([np.exp(r.log_probs[row][c]) for r in results]) for c in range(2)]
    assert sum(probs) == pytest.approx(1.0, abs=1e-5)
    right += ("yes", "no")[int(probs[1] > probs[0])] == target
    loss -= np.log(probs[("yes", "no").index(target)])
  assert found["mean_probability"]["accuracy"] == pytest.approx(right / len(targets))
  assert found["mean_probability"]["label_loss"] == pytest.approx(loss / len(targets), rel=1e-5)


def test_votes_ties_and_means(folder, monkeypatch):
  config = folder.config("none")
  evaluator = Evaluator(config.model, config.task, config.eval_settings)

  def right(targets, *of_yes):
    """Rows that each ensemble gets right; `of_yes`: each prompt's probabilities of "yes"."""
    results = [Result({}, [], targets, [], np.log(np.stack([p, 1.0 - p], axis=1)))
               for p in map(np.asarray, of_yes)]
    monkeypatch.setattr(evaluate, "_targets", lambda rows: [Target(text) for text in targets])
    found = evaluator.ensembles(results)
    return [round(found[name]["accuracy"] * len(targets))
            for name in ("majority_vote", "mean_probability")]

  # Two to one, against the mean.
  assert right(["yes"], [0.6], [0.6], [0.01]) == [1, 0]
  assert right(["no"], [0.6], [0.6], [0.01]) == [0, 1]
  # One to one: the mean decides, either way.
  assert right(["no", "yes"], [0.6, 0.9], [0.3, 0.4]) == [2, 2]


def test_a_run_that_is_stopped_and_resumed_is_the_same_to_the_bit(folder, many):
  folder.train("halves", **MANY, TRAIN_STEPS=2)
  folder.train("halves", **MANY)
  assert folder.summary("halves")["resumed_at"] == 2
  for name in ("prompt.npy", "members.csv", *(f"members/{i}/prompt.npy" for i in range(3))):
    assert (folder.path / "halves" / name).read_bytes() == (
      folder.path / "many" / name).read_bytes(), name
  assert folder.metrics("halves") == folder.metrics("many")
  for name in ("best", "best_step", "mean", "ensembles", "table"):
    assert folder.summary("halves")[name] == folder.summary("many")[name]
  # A third start has nothing to train, and finds the same.
  folder.train("halves", **MANY)
  assert folder.summary("halves")["ensembles"] == folder.summary("many")["ensembles"]


class Killed(BaseException):
  """Nothing catches it."""


def test_after_a_kill_between_the_two_saves_the_best_ones_are_made_of_the_last(
    folder, many, monkeypatch):
  save = TrainedCheckpoints.save

  def killed(self, state, counters, *, best=False):
    if best and int(state.step) == 2:
      raise Killed
    save(self, state, counters, best=best)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(TrainedCheckpoints, "save", killed)
    folder.train("killed", **MANY)
  folder.train("killed", **MANY, TRAIN_STEPS=2)
  assert folder.summary("killed")["resumed_at"] == 2
  best = [int(row["best_step"]) for row in table(folder, "killed")]
  assert 2 in best and set(best) <= {0, 2}
  folder.train("killed", **MANY)
  assert (folder.path / "killed/members.csv").read_bytes() == (
    folder.path / "many/members.csv").read_bytes()
  assert folder.prompt_bytes("killed") == folder.prompt_bytes("many")


def test_rows_of_their_own_equal_runs_with_those_seeds(folder):
  config = folder.config("none")
  # A random backbone would depend on RANDOM_SEED.
  backbone_files.save(
    folder.path / "frozen" / "backbone", config.model.load_backbone(7), config.model.backbone,
    vocabulary=vocabularies.fingerprint(config.model.vocabulary), about={}, dtype="float32")
  frozen = {"INITIAL_CHECKPOINT_PATH": str(folder.path / "frozen"), "TRAIN_STEPS": 2}
  folder.train("own_rows", **frozen, N_PROMPTS=2, OWN_ROWS=True, RANDOM_SEED=3,
               PROMPTS_AT_ONCE=2)
  for i in range(2):
    folder.train(f"own_{i}", **frozen, RANDOM_SEED=3 + i)
    close(np.load(folder.path / f"own_rows/members/{i}/prompt.npy"), folder.prompt(f"own_{i}"))
    found, wanted = (values(folder, name, split) for name, split in (
      ("own_rows", f"train/{i}"), (f"own_{i}", "train")))
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_one_prompt_that_diverges_does_not_end_the_others(folder):
  folder.train("sweep", LEARNING_RATES=(0.3, 3e38), TRAIN_STEPS=3, EVAL_PERIOD=1,
               optimizers__Adafactor__multiply_by_parameter_scale=True)
  rows = table(folder, "sweep")
  assert rows[0]["diverged"] == "" and int(rows[1]["diverged"]) >= 1
  assert {split for step, split, *_ in folder.metrics("sweep")[1:] if step == "3"} == {
    "train", "train/0", "validation", "validation/0"}
  assert np.isfinite(np.load(folder.path / "sweep/members/1/prompt.npy")).all()
  mean = folder.summary("sweep")["mean"]
  assert mean["label_loss"] == pytest.approx(float(rows[0]["label_loss"]))


def test_patience_is_a_prompts_own(folder):
  # Steps of nothing: no evaluation is better than the first.
  config = folder.config("patient", LEARNING_RATES=(1e-30, 0.3), TRAIN_STEPS=6, EVAL_PERIOD=1,
                         optimizers__Adafactor__weight_decay_rate=None)
  train(dataclasses.replace(config, patience=2))
  steps = {i: {step for step, _ in values(folder, "patient", f"validation/{i}")} for i in range(2)}
  assert steps[0] == {0, 1, 2} and len(steps[1]) > 3
  assert int(table(folder, "patient")[0]["best_step"]) == 0


@pytest.mark.parametrize("macros, what", [
  ({"N_PROMPTS": 2, "TRAINABLE": ("encoder/.*",)}, "A backbone that several prompts share"),
  ({"N_PROMPTS": 2, "PROMPT": None}, "but the model takes none"),
  ({"N_PROMPTS": 2, "train__TrainConfig__eval_settings": None}, "Several prompts need evalua")])
def test_what_many_prompts_cannot_be(folder, macros, what):
  with pytest.raises(UserError, match=what):
    folder.config("wrong", **macros)


@pytest.mark.parametrize("macros, files", [
  ({"PROMPT_TEXT": "words"}, ("inits/text.gin",)), ({}, ("prompts/ia3.gin",)),
  ({"PREFIX_HIDDEN": None, "PREFIX_TEXT": "words"}, ("prompts/prefix.gin",))])
def test_a_start_that_draws_nothing_needs_something_else_to_tell_prompts_apart(
    tmp_path, macros, files):
  method = [] if files[0].startswith("prompts/") else ["prompts/soft.gin"]
  text = TEXT if "PREFIX_TEXT" in macros or method else TEXT.replace("PROMPT_LENGTH = 4\n", "")
  folder = Folder(tmp_path, ("models/tiny.gin", "runs/prompt_tune.gin", *method, *files), text)
  with pytest.raises(UserError, match="Two prompts would stay the same"):
    folder.train("clones", N_PROMPTS=2, **macros)
  # Without an order of its own a member's rows are those of all.
  with pytest.raises(UserError, match="Two prompts would stay the same"):
    folder.train("in_order", N_PROMPTS=2, OWN_ROWS=True, SHUFFLE=False, **macros)
  if method:
    folder.train("dropped", N_PROMPTS=2, DROPOUT_RATE=0.1, TRAIN_STEPS=2, **macros)
    own = [np.load(tmp_path / f"dropped/members/{i}/prompt.npy") for i in range(2)]
    assert np.abs(own[0] - own[1]).max() > 1e-3


def test_one_prompt_is_an_ordinary_run_and_starts_can_be_listed(folder):
  assert folder.config("one", N_PROMPTS=1).members is None
  arguments = folder.arguments("starts") + [
    "--gin.PROMPT_INITS=(@initializers.SampledVocabulary(), @initializers.Uniform())"]
  gin_config.load(["commands/train.gin", *folder.files],
                  gin_config.split_gin_flags(arguments)[0])
  config = gin_config.build(TrainConfig)
  assert [type(each.initializer) for each in config.prompts()] == [SampledVocabulary, Uniform]
  assert {each.seed for each in config.prompts()} == {0}
