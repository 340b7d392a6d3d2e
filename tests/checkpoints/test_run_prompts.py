"""Which prompt a MODEL_DIR holds: one answer, and by one mark of a run, wherever a run is named."""

import numpy as np
import pytest

from prompt_tuning import distillation, transfer
from prompt_tuning.checkpoints import method_files, run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.prompts import attempt
from prompt_tuning.prompts.initializers import FromBank, FromRun, Sources

VALUES = np.ones((2, 3), np.float32)
SOURCES = Sources(np.zeros((9, 3), np.float32))
# By the macro or argument that a run is given as.
READERS = {
  "SOURCE": lambda folder: transfer.read(folder, "SOURCE").values,
  "TEACHER_PROMPTS": lambda folder: distillation.Distillation(teachers=(folder,)).bank(3)[0],
  "SOURCE_PROMPTS": lambda folder: attempt._read(folder, 2, SOURCES),
  "SOURCE_MODEL_DIR": lambda folder: FromRun(folder)(None, 2, SOURCES),
  "PROMPT_BANK": lambda folder: FromBank(folder)(None, 2, SOURCES)}


@pytest.mark.parametrize("setting", READERS)
def test_every_reader_takes_the_table_of_a_run(tmp_path, setting):
  (tmp_path / "settings.json").write_text("{}")
  method_files.write(tmp_path / method_files.NAME, {"a": VALUES}, {})
  with pytest.raises(UserError) as error:
    READERS[setting](str(tmp_path))
  assert error.value.what == f"The run in {setting} has no prompt.npy"
  assert "with prompt.safetensors" in error.value.found
  (tmp_path / method_files.NAME).unlink()
  with pytest.raises(UserError, match="without a prompt(.|\n)*first evaluation"):
    READERS[setting](str(tmp_path))
  values = np.stack([VALUES, VALUES]) if setting == "PROMPT_BANK" else VALUES
  np.save(tmp_path / "prompt.npy", values)
  np.testing.assert_array_equal(READERS[setting](str(tmp_path)), VALUES)
  (tmp_path / "settings.json").unlink()
  with pytest.raises(UserError, match="(no prompt is in this folder|holds no run)"):
    READERS[setting](str(tmp_path))


def test_files_of_a_run(tmp_path):
  (tmp_path / "settings.json").write_text("{}")
  for name in ("members/10", "members/2", "members/notes"):
    (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / name / "prompt.npy", VALUES)
  assert run_prompts.prompt_of(tmp_path) is None
  assert [path.parent.name for path in run_prompts.members_of(tmp_path)] == ["2", "10"]
  method_files.write(tmp_path / method_files.NAME, {"a": VALUES}, {})
  assert run_prompts.prompt_of(tmp_path) == tmp_path / method_files.NAME
  for name in ("prompt.npy", "prompt.safetensors", "members/2/prompt.npy"):
    assert run_prompts.run_of(tmp_path / name) == tmp_path
  assert run_prompts.run_of(tmp_path / "copy.npy") is None
  assert run_prompts.run_of(tmp_path / "members/prompt.npy") is None
