"""The parameters that `eval` and `infer` use: the backbone, and what a run trained.

A run's MODEL_DIR holds `prompt.npy` (or `prompt.safetensors`, of a method that is more than a
table), or `backbone/` where it trained the backbone, or both. A PROMPT_FILE stands for itself and
comes before the run's. A table says how many virtual tokens it has, so PROMPT_LENGTH is not needed.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning import hosts
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints import prompt_files, prompt_origin, run_prompts
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompts.initializers import check_prompt
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.run_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """Checked, but not loaded.

  Attributes:
    config: the model, as what was trained needs it.
    prompt_file: what fills its prompt, or None.
    prompt_ids: task -> row of a bank of prompts, as the run numbered them; None: no bank.
  """

  config: ModelConfig
  prompt_file: str | None
  prompt_ids: Mapping[str, int] | None = None

  def prompt_id(self, task: str | None) -> int | None:
    """The row of the bank for a task; None without a bank.

    Raises:
      UserError: the bank has no prompt for it.
    """
    if self.config.prompt is None or self.config.prompt.num_prompts == 1:
      return None
    known = self.prompt_ids or {}
    if task is None or task not in known:
      raise UserError("The bank has no prompt for this task", found=str(task),
                      wanted="one of " + (", ".join(known) or "the tasks of the run in MODEL_DIR"),
                      fix=nearest(str(task), known) if known else "give --gin.MODEL_DIR")
    return known[task]

  def load(self, seed: int, partitioner: Partitioner | None = None) -> dict[str, Any]:
    """`{"backbone": ..., "prompt": ...}`, on the first device or laid out over all.

    Args:
      seed: of a backbone with random weights.
    """
    params = {"backbone": self.config.load_backbone(seed, partitioner=partitioner)}
    if self.prompt_file is not None:
      prompt = self.config.load_prompt(self.prompt_file)
      params["prompt"] = prompt if partitioner is None else (
        jax.device_put(prompt, partitioner.replicated))
    return params


def find(config: ModelConfig, model_dir: str | None, prompt_file: str | None,
         setting: str = "PROMPT_FILE") -> TrainedModel:
  """Says where the parameters come from, and checks all that can be checked without weights.

  Args:
    model_dir: MODEL_DIR of a run, or None.
    prompt_file: PROMPT_FILE, or None: the run's `prompt.npy`.
    setting: what the prompt was given as, for the messages.

  Raises:
    UserError: MODEL_DIR is not a run, or saved nothing, or not yet the backbone that belongs to its
      prompt; the model has a prompt and there is none to fill it, or the other way round; the
      prompt or the checkpoint does not fit the model.
  """
  is_own = False
  if model_dir is not None:
    folder = _run(model_dir)
    has_backbone = (folder / "backbone" / backbone_files.METADATA).is_file()
    saved = run_prompts.prompt_of(folder)
    if not (has_backbone or saved or prompt_file):
      raise UserError("The run in MODEL_DIR has saved nothing to evaluate", found=str(folder),
                      wanted="prompt.npy, prompt.safetensors or backbone/ in it",
                      fix="repeat its `prompt-tuning train` command; it resumes")
    _check_backbone(folder, has_backbone)
    if has_backbone:
      config = dataclasses.replace(config, initial_checkpoint_path=str(folder))
    is_own = has_backbone and prompt_file is None
    prompt_file = prompt_file or (None if saved is None else str(saved))
  if config.prompt is None and prompt_file is not None:
    raise UserError("There is a prompt, but the model takes none", found=prompt_file,
                    wanted="a prompt method", fix="add --gin_file=prompts/soft.gin")
  if config.prompt is not None and prompt_file is None:
    raise UserError("The model takes a prompt, but there is none to fill it",
                    found="neither PROMPT_FILE nor MODEL_DIR", wanted="one of them",
                    fix="give --gin.PROMPT_FILE=.../prompt.npy, or use prompts/none.gin for the "
                    "plain model")
  about: Mapping[str, Any] = {}
  if prompt_file is not None:
    method, about = _fitted(config, prompt_file, setting)
    config = dataclasses.replace(config, prompt=method)
  reader = config.check()
  if not is_own:
    _say_other_backbone(about, str(prompt_file), config.initial_checkpoint_path,
                        {} if reader is None else reader.metadata)
  ids = None if model_dir is None or config.prompt is None or config.prompt.num_prompts == 1 else (
    run_prompts.summary_of(model_dir).get("prompt_ids"))
  return TrainedModel(config, prompt_file, ids)


def _say_other_backbone(about: Mapping[str, Any], path: str, used: str,
                        checkpoint: Mapping[str, Any]) -> None:
  # A copy says what it was converted from; what was trained or merged here has other weights.
  is_copy = not {"task", "merged"} & checkpoint.keys()
  theirs = prompt_origin.other_backbone(about, (used, checkpoint.get("from") if is_copy else None))
  if theirs is not None and hosts.is_first():
    # No error: the same weights may have two names.
    print(f"{path} was trained on {theirs}, and INITIAL_CHECKPOINT_PATH is {used}: to other weights"
          " its vectors mean nothing", file=sys.stderr)


def _fitted(config: ModelConfig, path: str,
            setting: str) -> tuple[PromptMethod, Mapping[str, Any]]:
  """The served form of the method, as long as the prompt in the file, and what is known of that."""
  served = config.prompt.served()
  if config.takes_table():
    prompt = prompt_files.read(path, setting)
    table = check_prompt(prompt, None, config.backbone.emb_dim, served.num_prompts)
    served = served.clone(length=table.shape[-2])
    about = prompt_origin.of_prompt(prompt.path, prompt.metadata)
  else:
    config.load_prompt(path, setting)
    about = prompt_origin.of_file(path)
  prompt_origin.check(about, path, vocabulary=config.vocabulary, template=config.template,
                      length=served.num_virtual_tokens, encode=config.tokenizer().encode)
  return served, about


def seed_of(model_dir: str) -> int | None:
  """RANDOM_SEED of a run, as its summary says; None where it does not."""
  seed: int | None = run_prompts.summary_of(model_dir).get("seed")
  return seed


def trained_step(model_dir: str) -> int:
  """The step of the run's best parameters, the last ones of a run without evaluations.

  Its checkpoints say so at any moment; of a folder that was copied without them, the summary.
  """
  saved = _checkpointed_step(_run(model_dir))
  if saved is not None:
    return saved
  found = run_prompts.summary_of(_run(model_dir))
  steps = (found.get("best_step"), found.get("steps"))
  return next((step for step in steps if step is not None), 0)


def _checkpointed_step(folder: pathlib.Path) -> int | None:
  for name in ("best", "last"):
    # A second folder is the one before, or unfinished.
    steps = [int(path.name) for path in (folder / "checkpoints" / name).glob("*")
             if path.name.isdecimal()]
    if not steps:
      continue
    # Of several prompts at once, each has a best step of its own.
    counters = folder / "checkpoints" / name / str(max(steps)) / "counters" / "metadata"
    best: int | None = json.loads(counters.read_text())["best_step"] if (
      counters.is_file()) else None
    return max(steps) if best is None else best
  return None


def _check_backbone(folder: pathlib.Path, has_backbone: bool) -> None:
  """The backbone that a run trains is exported at its end; a kill leaves none, or an older one."""
  settings = json.loads((folder / "settings.json").read_text())
  saved = _checkpointed_step(folder)
  if not settings.get("trainable") or saved is None:
    return
  exported = None
  if has_backbone:
    about = json.loads((folder / "backbone" / backbone_files.METADATA).read_text())
    exported = about.get("step")
  if exported != saved:
    raise UserError("The run in MODEL_DIR was stopped before it wrote the backbone that it trained",
                    found=f"{folder}: the best step is {saved}, "
                    + (f"backbone/ is of step {exported}" if has_backbone else "without backbone/"),
                    wanted=f"backbone/ of step {saved}",
                    fix="repeat its `prompt-tuning train` command; it resumes")


def _run(model_dir: str) -> pathlib.Path:
  folder = pathlib.Path(model_dir)
  if not run_prompts.is_run(folder):
    found = "a folder without settings.json" if folder.is_dir() else "no such folder"
    raise UserError("MODEL_DIR holds no run", found=f"{folder} ({found})",
                    wanted="the MODEL_DIR of a `prompt-tuning train` command",
                    fix="correct the path, or give --gin.PROMPT_FILE instead")
  return folder
