"""Where eval and infer take their parameters from."""

import dataclasses
import json

import numpy as np
import pytest
from small_models import CONFIG, backbone, model, save_backbone, save_prompt

from prompt_tuning import trained_model, trees
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints import prompt_files
from prompt_tuning.errors import UserError
from prompt_tuning.prompts.lora import Lora
from prompt_tuning.tasks import vocabularies


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


def test_another_backbone_is_said(run, tmp_path, capsys):
  save_backbone(tmp_path / "start")
  start = model(initial_checkpoint_path=str(tmp_path / "start"))

  def said(config, model_dir, prompt_file):
    trained_model.find(config, model_dir, prompt_file)
    return capsys.readouterr().err

  save_prompt(run / "prompt.npy")
  for path, is_other in (("elsewhere", True), (str(tmp_path / "start"), False),
                         (f"{tmp_path}/./start", False)):
    (run / "settings.json").write_text(json.dumps({"model": {"initial_checkpoint_path": path}}))
    for given in ((str(run), None), (None, str(run / "prompt.npy"))):
      found = said(start, *given)
      assert (f"prompt.npy was trained on {path}, and" in found) == is_other and (
        found.count("\n") == is_other)
  # The run's own weights are those that its prompt was trained with.
  (run / "settings.json").write_text('{"model": {"initial_checkpoint_path": "elsewhere"}}')
  save_backbone(run / "backbone")
  assert said(start, str(run), None) == ""
  np.save(run / "copy.npy", np.load(run / "prompt.npy"))
  assert said(start, None, str(run / "copy.npy")) == ""


def test_the_model_of_an_adapter_is_compared_by_name(tmp_path, capsys):
  values = np.zeros((3, 16), np.float32)
  prompt_files.write(str(tmp_path / "adapter"), values, {"base_model": "google/flan-t5-base"})
  for about, is_other in (({}, True), ({"from": "hf://google/flan-t5-base@main"}, False),
                          ({"from": "hf://google/flan-t5-base", "task": "sst2"}, True)):
    backbone_files.save(tmp_path / "start", backbone(3), CONFIG, about=about,
                        vocabulary=vocabularies.fingerprint("bytes"))
    trained_model.find(model(initial_checkpoint_path=str(tmp_path / "start")), None,
                       str(tmp_path / "adapter"))
    assert ("was trained on google/flan-t5-base" in capsys.readouterr().err) == is_other


def test_a_prompt_of_a_method_that_is_not_there(tmp_path):
  config = dataclasses.replace(model(False), prompt=Lora(CONFIG, rank=2))
  with pytest.raises(UserError) as error:
    trained_model.find(config, None, str(tmp_path / "prompt.safetensors"))
  assert error.value.what == "PROMPT_FILE cannot be read"


@pytest.mark.parametrize("name", ["", "/adapter_model.safetensors"])
def test_an_adapter_for_a_method_of_ours(tmp_path, name):
  folder = tmp_path / "adapter"
  prompt_files.write(str(folder), np.zeros((3, 16), np.float32), {})
  config = dataclasses.replace(model(False), prompt=Lora(CONFIG, rank=2))
  with pytest.raises(UserError, match="(use prompts/soft.gin|of another method)"):
    trained_model.find(config, None, f"{folder}{name}")
  about = json.loads((folder / "adapter_config.json").read_text()) | {"peft_type": "LORA"}
  (folder / "adapter_config.json").write_text(json.dumps(about))
  for each in (config, model()):
    with pytest.raises(UserError, match="This PEFT adapter is not a prompt(.|\n)*merge_and_unload"):
      trained_model.find(each, None, f"{folder}{name}")
