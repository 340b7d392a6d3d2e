"""Where a prompt comes from: read from its run, recorded in `.npz`, compared where it is used."""

import json

import numpy as np
import pytest

from prompt_tuning.checkpoints import prompt_files, prompt_origin
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


def test_another_vocabulary(tmp_path):
  path = str(tmp_path / "prompt.npz")
  for recorded, used, fits in (("tiny", "tiny", True), ("tiny", "bytes", False)):
    about = prompt_files.describe(VALUES, vocabulary=vocabularies.fingerprint(recorded))
    prompt_files.write(path, VALUES, about)
    found = prompt_files.read(path)
    if fits:
      prompt_origin.check_vocabulary(found, used)
    else:
      with pytest.raises(UserError, match="The prompt was trained with another vocabulary") as e:
        prompt_origin.check_vocabulary(found, used)
      assert "VOCABULARY = 'bytes'" in e.value.wanted
  np.save(tmp_path / "prompt.npy", VALUES)
  prompt_origin.check_vocabulary(prompt_files.read(str(tmp_path / "prompt.npy")), "bytes")
