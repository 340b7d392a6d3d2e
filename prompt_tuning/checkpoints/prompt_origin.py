"""What a prompt was trained with: read from its run, and compared with where it is used.

A prompt's vectors mean something to one backbone and one vocabulary, at one place in the input. Of
what is known of a file, from itself or from the run in whose MODEL_DIR it lies:

  vocabulary   a fingerprint; another vocabulary is an error
  template     PROMPT_TEMPLATE; another place is an error
  base_model, checkpoint   PEFT's name of the model, INITIAL_CHECKPOINT_PATH of a run; another name
               is said (`other_backbone`): a copy of the same weights has another name too
  backbone     a fingerprint, recorded only: it is of the weights as the run held them, so another
               FROZEN_DTYPE has another
"""

import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from prompt_tuning import placement
from prompt_tuning.checkpoints import hub, method_files, prompt_files, run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.tasks import vocabularies

_MAX_JSON = 1 << 24


def of_run(folder: pathlib.Path) -> dict[str, Any]:
  """What the run in a MODEL_DIR recorded, with its task and versions; {} where it is none."""
  summary, settings = (_read_json(folder / name) for name in (
    run_prompts.SUMMARY, run_prompts.SETTINGS))
  backbone, model = (found if isinstance(found, dict) else {}
                     for found in (summary.get("backbone"), settings.get("model")))
  found = {"task": summary.get("task"), "versions": summary.get("versions"),
           "backbone": backbone.get("fingerprint"),
           "vocabulary": _fingerprint(model.get("vocabulary")),
           "checkpoint": model.get("initial_checkpoint_path"),
           "template": (model["template"] or placement.FRONT) if "template" in model else None}
  return {key: value for key, value in found.items() if value}


def of_prompt(path: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
  """What is known of a prompt.

  Args:
    path: of its file.
    metadata: what the file says itself, which comes before what its run does.
  """
  run = run_prompts.run_of(path)
  return ({} if run is None else of_run(run)) | {
    key: value for key, value in metadata.items() if value}


def of_file(path: str, setting: str = "PROMPT_FILE") -> dict[str, Any]:
  """The same by the path alone, of any kind of prompt.

  Raises:
    UserError: it is not a prompt.
  """
  if method_files.is_one(path):
    return of_prompt(path, method_files.metadata(path))
  prompt = prompt_files.read(path, setting)
  return of_prompt(prompt.path, prompt.metadata)


def check(about: Mapping[str, Any], path: str, *, vocabulary: str, template: str | None,
          length: int, encode: Callable[[str], Sequence[int]]) -> None:
  """Compares what a prompt was trained with to what is in use.

  Args:
    about: what is known of it.
    path: of its file.
    vocabulary, template: VOCABULARY and PROMPT_TEMPLATE.
    length: P.
    encode: text -> ids, of that vocabulary.

  Raises:
    UserError: they differ.
  """
  theirs, ours = about.get("vocabulary"), vocabularies.fingerprint(vocabulary)
  if theirs and theirs != ours:
    raise UserError("The prompt was trained with another vocabulary",
                    found=f"{path}: fingerprint {theirs}",
                    wanted=f"fingerprint {ours}, of VOCABULARY = {vocabulary!r}",
                    fix="use the models/*.gin file and the checkpoint that it was trained with")
  place = about.get("template")
  if isinstance(place, str) and (placement.parse(place, length, encode) !=
                                 placement.parse(template or placement.FRONT, length, encode)):
    raise UserError("The prompt was trained at another place in the input",
                    found=f"{path}: PROMPT_TEMPLATE = {place!r}",
                    wanted=f"{template or placement.FRONT!r}, the PROMPT_TEMPLATE in use",
                    fix=f"--gin.PROMPT_TEMPLATE=\"{place!r}\"")


def other_backbone(about: Mapping[str, Any], names: Collection[str | None]) -> str | None:
  """What a prompt's backbone was called, where that is none of these names; else None."""
  theirs = about.get("base_model") or about.get("checkpoint")
  if not isinstance(theirs, str) or _plain(theirs) in {_plain(name) for name in names if name}:
    return None
  return theirs


def _plain(name: str) -> str:
  """A model's name without scheme and revision, or the whole path of a file."""
  return os.path.realpath(name) if os.path.exists(name) else (
    name.removeprefix(hub.SCHEME).partition("@")[0].rstrip("/"))


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
