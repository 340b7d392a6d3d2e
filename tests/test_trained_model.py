"""Where eval and infer take their parameters from."""

import json

import numpy as np
import pytest
from small_models import model, save_backbone, save_prompt

from prompt_tuning import trained_model, trees
from prompt_tuning.errors import UserError


@pytest.fixture
def run(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "settings.json").write_text("{}")
  return folder


def test_the_prompt_of_a_run_has_the_length_of_its_file(run):
  table = save_prompt(run / "prompt.npy", length=5)
  save_backbone(run / "start")
  start = model(initial_checkpoint_path=str(run / "start"))
  trained = trained_model.find(start, str(run), None)
  assert trained.config.module().num_virtual_tokens == 5
  np.testing.assert_array_equal(trained.load(0)["prompt"]["embedding"], table)


def test_a_prompt_file_comes_before_that_of_the_run(run, tmp_path):
  save_prompt(run / "prompt.npy", 0)
  save_prompt(tmp_path / "other.npy", 1)
  assert trained_model.find(model(), str(run), str(tmp_path / "other.npy")).prompt_file == str(
    tmp_path / "other.npy")


def test_a_trained_backbone_replaces_the_one_it_started_from(run):
  params = save_backbone(run / "backbone")
  trained = trained_model.find(model(False), str(run), None)
  assert trained.prompt_file is None
  assert trees.differences(trained.load(0), {"backbone": params}) == []


@pytest.mark.parametrize("summary, step", [
  ({"best_step": 0, "steps": 100}, 0), ({"best_step": None, "steps": 100}, 100), (None, 0)])
def test_the_step_of_a_run(run, summary, step):
  if summary is not None:
    (run / "summary.json").write_text(json.dumps(summary))
  assert trained_model.trained_step(str(run)) == step


def save_step(run, name, step, counters):
  folder = run / "checkpoints" / name / str(step) / "counters"
  folder.mkdir(parents=True)
  (folder / "metadata").write_text(json.dumps(counters))


def test_the_step_of_a_run_that_goes_on_is_that_of_its_checkpoints(run):
  (run / "summary.json").write_text("{}")
  save_step(run, "last", 30, {"best_step": None})
  assert trained_model.trained_step(str(run)) == 30
  save_step(run, "best", 10, {"best_step": 10})
  (run / "checkpoints/best/20.orbax-checkpoint-tmp").mkdir()
  assert trained_model.trained_step(str(run)) == 10
  # One of several prompts was better at 20, and the best of all is that of step 10.
  save_step(run, "best", 20, {"best_step": 10})
  assert trained_model.trained_step(str(run)) == 10


def test_a_prompt_does_not_meet_a_backbone_of_another_step(run):
  (run / "settings.json").write_text('{"trainable": ["encoder/.*"]}')
  save_prompt(run / "prompt.npy")
  save_step(run, "best", 20, {"best_step": 20})
  for step, found in ((None, "without backbone/"), (10, "backbone/ is of step 10")):
    if step is not None:
      save_backbone(run / "backbone", step=step)
    with pytest.raises(UserError, match="before it wrote the backbone") as caught:
      trained_model.find(model(), str(run), None)
    assert found in caught.value.found and "it resumes" in caught.value.fix
  save_backbone(run / "backbone", step=20)
  assert trained_model.find(model(), str(run), None).config.initial_checkpoint_path == str(run)


def test_errors(run, tmp_path):
  with pytest.raises(UserError, match="has saved nothing to evaluate"):
    trained_model.find(model(), str(run), None)
  with pytest.raises(UserError, match=r"MODEL_DIR holds no run\n.*no such folder"):
    trained_model.find(model(), str(tmp_path / "nowhere"), None)
  save_prompt(run / "prompt.npy")
  with pytest.raises(UserError, match="There is a prompt, but the model takes none"):
    trained_model.find(model(False), str(run), None)
  with pytest.raises(UserError, match="neither PROMPT_FILE nor MODEL_DIR"):
    trained_model.find(model(), None, None)
  save_prompt(run / "prompt.npy", width=9)
  with pytest.raises(UserError, match="D = 9"):
    trained_model.find(model(), str(run), None)
