"""Several tasks in the same batches against an evaluation of each alone; layouts; ensembles."""

import dataclasses

import numpy as np
import pytest
from small_models import CONFIG, PROMPT_LENGTH, model, save_method, save_prompt

from prompt_tuning import prompts_report
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings, Evaluator
from prompt_tuning.mixed_eval import MixedEvalConfig, evaluate_mixed
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.prompts.warp import WarpPrompt
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.tasks.spec import TaskSpec
from prompt_tuning.trees import Split

LENGTHS = {"inputs": 12, "targets": 4}
LABELS = ("a", "bcd")
SETTINGS = EvalSettings(batch_size=4)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Five rows of text: with labels they are ranked, without they are generated."""

  name: str
  labels: tuple[str, ...] | None
  splits: tuple[str, ...] = ("train", "validation")

  def rows(self, split):
    return iter([{"inputs": f"{self.name} {i}", "targets": LABELS[i % 2]} for i in range(5)])

  def fingerprint(self):
    return self.name

  def spec(self):
    return TaskSpec(name=self.name, source=self, to_text=dict, labels=self.labels,
                    metrics=("accuracy" if self.labels else "exact_match",))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """The tasks, and three prompts, one of them longer."""
  folder = tmp_path_factory.mktemp("mixed")
  tasks = {source.name: TaskConfig(name=source.name, feature_lengths=LENGTHS, source=source,
                                   cache_dir=str(folder / "cache"))
           for source in (Rows("ranked", LABELS), Rows("said", None))}
  lengths = (PROMPT_LENGTH, PROMPT_LENGTH + 2, PROMPT_LENGTH)
  for i, length in enumerate(lengths):
    save_prompt(folder / f"{i}.npy", seed=i, length=length)
  return tasks, [str(folder / f"{i}.npy") for i in range(3)]


def mixed(given, pairs, layout="replicated"):
  tasks, files = given
  names = {name for name, _ in pairs}
  return evaluate_mixed(MixedEvalConfig(
    model=model(layout=layout), task=tasks["ranked"], eval_settings=SETTINGS,
    tasks={name: task for name, task in tasks.items() if name in names},
    prompts=tuple((name, files[i]) for name, i in pairs))).tasks


def alone(given, name, i):
  """`eval` of one prompt, without any bank."""
  tasks, files = given
  table = np.load(files[i])
  plain = dataclasses.replace(model(), prompt=SoftPrompt(CONFIG, len(table)))
  params = {"backbone": plain.load_backbone(0), "prompt": {"embedding": table}}
  return Evaluator(plain, tasks[name], SETTINGS)({}, params, Split({}))


@pytest.fixture(scope="module")
def two_tasks(given):
  return mixed(given, [("ranked", 0), ("said", 1)])


def test_each_task_is_what_it_is_alone(given, two_tasks):
  for name, i in (("ranked", 0), ("said", 1)):
    found, wanted = two_tasks[name].result, alone(given, name, i)
    assert found.predictions == wanted.predictions and found.inputs == wanted.inputs
    assert len(two_tasks[name].members) == 1 and two_tasks[name].together == {}
    for metric, value in found.metrics.items():
      assert value == pytest.approx(wanted.metrics[metric], rel=1e-5), metric
  np.testing.assert_allclose(two_tasks["ranked"].result.log_probs,
                             alone(given, "ranked", 0).log_probs, rtol=1e-5, atol=1e-5)


def test_weights_that_are_split_over_devices_answer_the_same(given, two_tasks):
  split = mixed(given, [("ranked", 0), ("said", 1)], layout="fsdp")
  for name, report in split.items():
    assert report.result.predictions == two_tasks[name].result.predictions
  np.testing.assert_allclose(split["ranked"].result.log_probs,
                             two_tasks["ranked"].result.log_probs, rtol=1e-5, atol=1e-5)


def test_a_layout_that_does_not_fit_is_refused(given):
  with pytest.raises(UserError, match="tensor"):
    mixed(given, [("ranked", 0)], layout="tensor=4")  # of two heads


def test_every_prompt_must_be_able_to_write_the_targets(given, tmp_path):
  tasks, _ = given
  start = dataclasses.replace(model(), prompt=WarpPrompt(CONFIG, PROMPT_LENGTH,
                                                         labels=("a", "other")))
  save_method(tmp_path / "prompt.safetensors", start)
  with pytest.raises(UserError, match="WARP cannot write all(.|\n)*'bcd', of ranked"):
    evaluate_mixed(MixedEvalConfig(
      model=start, task=tasks["ranked"], eval_settings=SETTINGS,
      prompts=(("ranked", str(tmp_path / "prompt.safetensors")),)))


def test_an_ensemble_is_its_members_and_their_mean(given):
  report = mixed(given, [("ranked", 0), ("ranked", 1), ("ranked", 2)])["ranked"]
  members = [alone(given, "ranked", i) for i in range(3)]
  for found, wanted in zip(report.members, members, strict=True):
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=1e-5, atol=1e-5)
  mean = np.exp(np.stack([member.log_probs for member in members])).mean(axis=0)
  assert report.result.predictions == [LABELS[i] for i in mean.argmax(axis=1)]
  targets = [LABELS[i % 2] for i in range(5)]
  right = np.mean([p == t for p, t in zip(report.result.predictions, targets, strict=True)])
  assert report.together["mean_probability"]["accuracy"] == pytest.approx(right)
  votes = np.mean([[LABELS.index(p) for p in m.predictions] for m in members], axis=0) > 0.5
  voted = np.mean([LABELS[int(v)] == t for v, t in zip(votes, targets, strict=True)])
  assert report.together["majority_vote"]["accuracy"] == pytest.approx(voted)


def test_members_are_told_apart_by_their_own_folders():
  assert prompts_report.distinct(["a/members/1/prompt.npy", "a/members/12/prompt.npy"]) == [
    "1/prompt.npy", "12/prompt.npy"]
  assert prompts_report.distinct(["runs/a", "none"]) == ["runs/a", "none"]
  assert prompts_report.distinct(["runs/a/prompt.npy"]) == ["runs/a/prompt.npy"]
