"""The prompts that `inspect` looks at: files, and runs of any method with input embeddings.

A MODEL_DIR stands for its best prompt; of a bank for the prompt of each task, and of many prompts
trained at once for each of them. Methods that are more than a table (`prompt.safetensors`) say
themselves what their virtual tokens are (`PromptValues.embeds`); a method whose virtual tokens
depend on the input is asked with an empty one.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.checkpoints import method_files, prompt_files, run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID, PromptContext
from prompt_tuning.run_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ReadPrompt:
  """Attributes:
    name: for tables and figures.
    values: `[P, D]` float32.
    task: what it was trained on; "" where nothing says so.
    labels: the class labels that it started from, or None.
  """

  name: str
  values: np.ndarray
  task: str = ""
  labels: tuple[str, ...] | None = None


def read(path: str, embedding: np.ndarray,
         config_of: Callable[[pathlib.Path], ModelConfig]) -> list[ReadPrompt]:
  """The prompts behind an argument.

  Args:
    path: of a prompt file, or a MODEL_DIR.
    embedding: `[V, D]` of the backbone.
    config_of: the model of a run, by its MODEL_DIR; called where a file alone does not do.

  Raises:
    UserError: neither; another width; a method without input embeddings.
  """
  folder = pathlib.Path(path)
  if method_files.is_one(path) and run_prompts.is_run(folder.parent):
    folder = folder.parent
  elif method_files.is_one(path):
    raise UserError("The file alone does not say which method it is of", found=path,
                    wanted="the MODEL_DIR of the run that wrote it", fix="give that folder")
  if not run_prompts.is_run(folder):
    found = prompt_files.read(path, "PROMPT")
    task = str(found.metadata.get("task", "")) if found.metadata else ""
    return _named(path, found.values, embedding, task, [], None)
  summary = run_prompts.summary_of(folder)
  settings = json.loads((folder / run_prompts.SETTINGS).read_text(encoding="utf-8"))
  labels, task = _start_labels(settings), str(summary.get("task") or "")
  members, best = run_prompts.members_of(folder), run_prompts.prompt_of(folder)
  files = members or ([best] if best is not None else [])
  if not files:
    raise UserError("This run has no prompt to look at", found=str(folder),
                    wanted="prompt.npy or prompt.safetensors in it",
                    fix="let it reach its first evaluation; model tuning has no prompt")
  tasks = list(summary.get("prompt_ids") or {})
  result = []
  for file in files:
    name = f"{path}/{file.parent.name}" if members else path
    values = (prompt_files.read(str(file)).values if file.suffix == ".npy" else
              embeddings_of(config_of(folder), str(file), embedding))
    result += _named(name, values, embedding, task, tasks, labels)
  return result


def embeddings_of(config: ModelConfig, path: str, embedding: np.ndarray) -> np.ndarray:
  """`[P, D]`, or `[N, P, D]` of a bank: the virtual tokens of the served method in a file.

  Raises:
    UserError: the method has none.
  """
  served = config.prompt.served()
  rows = max(served.num_prompts, 1)
  ids = np.array([*(-1 - p for p in range(served.num_virtual_tokens)), EOS_ID], np.int32)
  tokens = jnp.tile(jnp.asarray(ids)[None], (rows, 1))
  context = PromptContext(
    prompt_ids=jnp.arange(rows) if served.num_prompts > 1 else None, tokens=tokens,
    embedded=jnp.asarray(embedding)[jnp.maximum(tokens, 0)] if served.reads_input else None)
  embeds = served.apply({"params": config.load_prompt(path)}, context, False).embeds
  if embeds is None:
    raise UserError("This method has no input embeddings to look at",
                    found=f"{path}: {type(config.prompt).__name__}",
                    wanted="a method with virtual tokens in the encoder's input",
                    fix="leave it out; LoRA, IA3, adapters and prefixes act inside the layers")
  values = np.asarray(embeds, np.float32)
  return values[0] if values.ndim == 3 and rows == 1 else values


def _named(name: str, values: np.ndarray, embedding: np.ndarray, task: str, tasks: Sequence[str],
           labels: tuple[str, ...] | None) -> list[ReadPrompt]:
  if values.shape[-1] != embedding.shape[1]:
    raise UserError("The prompt file has the wrong width", found=f"{name}: D = {values.shape[-1]}",
                    wanted=f"D = {embedding.shape[1]}, the backbone's",
                    fix="use the prompt with the T5 size it was trained on")
  if values.ndim == 2:
    return [ReadPrompt(name, values, task, labels)]
  names = tasks if len(tasks) == len(values) else [str(i) for i in range(len(values))]
  return [ReadPrompt(f"{name}[{each}]", row, each if tasks else task, labels)
          for each, row in zip(names, values, strict=True)]


def _start_labels(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
  """CLASS_LABELS, where the run's prompt started from them."""
  prompt = (settings.get("model") or {}).get("prompt") or {}
  start = prompt.get("initializer") if isinstance(prompt, dict) else None
  if isinstance(start, dict) and start.get("class") == "ClassLabels":
    return tuple(start["labels"])
  return None
