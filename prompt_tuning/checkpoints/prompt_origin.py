"""What a prompt was trained with: read from its run, and compared with where it is used.

A prompt's vectors mean something to one backbone and one vocabulary. The vocabulary's fingerprint
is compared wherever both are known. The backbone's is recorded only: it is of the weights as the
run held them, so another FROZEN_DTYPE has another.
"""

import json
import pathlib
from typing import Any

from prompt_tuning.checkpoints.prompt_files import PromptFile
from prompt_tuning.errors import UserError
from prompt_tuning.tasks import vocabularies

_MAX_JSON = 1 << 24


def of_run(folder: pathlib.Path) -> dict[str, Any]:
  """Task, fingerprints and versions that the run in a MODEL_DIR recorded; {} where it is none."""
  summary, settings = (_read_json(folder / name) for name in ("summary.json", "settings.json"))
  backbone, model = summary.get("backbone"), settings.get("model")
  found = {"task": summary.get("task"), "versions": summary.get("versions"),
           "backbone": backbone.get("fingerprint") if isinstance(backbone, dict) else None,
           "vocabulary": _fingerprint(model.get("vocabulary")) if isinstance(model, dict) else None}
  return {key: value for key, value in found.items() if value}


def check_vocabulary(prompt: PromptFile, vocabulary: str) -> None:
  """Compares the vocabulary that a prompt was trained with to the one in use.

  Args:
    vocabulary: VOCABULARY.

  Raises:
    UserError: they differ.
  """
  theirs, ours = prompt.metadata.get("vocabulary"), vocabularies.fingerprint(vocabulary)
  if theirs and theirs != ours:
    raise UserError("The prompt was trained with another vocabulary",
                    found=f"{prompt.path}: fingerprint {theirs}",
                    wanted=f"fingerprint {ours}, of VOCABULARY = {vocabulary!r}",
                    fix="use the models/*.gin file and the checkpoint that it was trained with")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  # What a run wrote is a help here; that it is damaged is for the commands that need it to say.
  try:
    if path.stat().st_size > _MAX_JSON:
      return {}
    found = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _fingerprint(name: Any) -> str | None:
  """Of a vocabulary by its name; None where its file is no longer there."""
  try:
    return vocabularies.fingerprint(name)
  except (UserError, TypeError):
    return None
