"""Where a prompt comes from: read from its run, recorded in `.npz`, compared where it is used."""

import json

import numpy as np
import pytest

from prompt_tuning.checkpoints import method_files, prompt_files, prompt_origin
from prompt_tuning.errors import UserError
from prompt_tuning.tasks import vocabularies

VALUES = np.ones((2, 3), np.float32)


def run(folder, summary: str | None = None, vocabulary="bytes"):
  (folder / "summary.json").write_text(summary if summary is not None else json.dumps(
    {"task": "mine", "backbone": {"from": "tiny", "fingerprint": "a" * 16},
     "versions": {"jax": "1"}, "steps": 3}))
  (folder / "settings.json").write_text(json.dumps({"model": {"vocabulary": vocabulary}}))
  return folder


def test_a_run_says_what_its_prompt_was_trained_with(tmp_path):
  assert prompt_origin.of_run(run(tmp_path)) == {
    "task": "mine", "backbone": "a" * 16, "versions": {"jax": "1"},
    "vocabulary": vocabularies.fingerprint("bytes")}


@pytest.mark.parametrize("summary", ["", "[]", "[" * 100_000, '{"backbone": 3}'])
def test_a_run_that_says_nothing(tmp_path, summary):
  assert prompt_origin.of_run(run(tmp_path, summary, vocabulary="/gone/spiece.model")) == {}
  assert prompt_origin.of_run(tmp_path / "none") == {}


def check(path, used="bytes", template=None):
  prompt_origin.check(prompt_origin.of_file(path), path, vocabulary=used, template=template,
                      length=len(VALUES), encode=lambda text: list(text.encode()))


def test_another_vocabulary(tmp_path):
  path = str(tmp_path / "prompt.npz")
  about = prompt_files.describe(VALUES, vocabulary=vocabularies.fingerprint("tiny"))
  prompt_files.write(path, VALUES, about)
  check(path, "tiny")
  with pytest.raises(UserError, match="The prompt was trained with another vocabulary") as e:
    check(path)
  assert "VOCABULARY = 'bytes'" in e.value.wanted
  np.save(tmp_path / "prompt.npy", VALUES)
  check(str(tmp_path / "prompt.npy"))


def save(folder, name, template):
  """A prompt of a run, of a member, in a file of ours, or of a method that is more than a table."""
  settings = {"model": {"vocabulary": "bytes", "template": template}}
  (folder / "settings.json").write_text(json.dumps(settings))
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".npy":
    np.save(path, VALUES)
    return str(path)
  about = prompt_origin.of_run(folder)
  (folder / "settings.json").unlink()
  if path.suffix == ".npz":
    prompt_files.write(str(path), VALUES, about)
  else:
    method_files.write(path, {"embedding": VALUES}, about)
  return str(path)


@pytest.mark.parametrize("name", ["prompt.npy", "members/3/prompt.npy", "mine.npz",
                                  "prompt.safetensors"])
def test_another_place_in_the_input(tmp_path, name):
  path = save(tmp_path, name, "{inputs}{prompt}")
  check(path, template="{inputs}{prompt:2}")
  for other in (None, "{prompt}{inputs}", "{prompt:1}{inputs}{prompt:1}"):
    with pytest.raises(UserError, match="trained at another place in the input") as e:
      check(path, template=other)
    assert e.value.fix == "--gin.PROMPT_TEMPLATE=\"'{inputs}{prompt}'\""
  path = save(tmp_path, name, None)
  check(path)
  with pytest.raises(UserError, match="trained at another place in the input"):
    check(path, template="{inputs}{prompt}")


def test_a_file_beside_a_run_is_not_its_prompt(tmp_path):
  save(tmp_path, "prompt.npy", "{inputs}{prompt}")
  np.save(tmp_path / "other.npy", VALUES)
  check(str(tmp_path / "other.npy"))
