"""What T5X reads and saves beside its own: hooks that work on both of its checkpoint paths.

T5X has two ways to a checkpoint (its own msgpack and zarr, and Orbax, the default), with classes of
their own; what both call are `state_transformation_fns`, so that is where these stand:

  Restore      on reading: the backbone comes from the checkpoint whole, the prompt starts anew, and
               anything else is an error
  SavePrompt   on writing: the prompt is also written by itself,
               MODEL_DIR/numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt, where the
               code of Lester et al. 2021 has it (`.npy` bytes), and as MODEL_DIR/prompt.npy; of
               methods that are more than a table prompt.safetensors
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import core

from prompt_tuning import trees
from prompt_tuning.checkpoints import (
  formats,
  loading,
  method_files,
  npy_files,
  prompt_files,
)
from prompt_tuning.checkpoints.leaves import Reader
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, activations, init_prompt
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5
from prompt_tuning.t5x_bridge import names
from prompt_tuning.tasks import vocabularies
from prompt_tuning.train_state import purpose_key

STEP = re.compile(r"checkpoint_(\d+)")
_READ_BY_T5X = ("t5x", "t5x_orbax")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restore:
  """Checks a checkpoint against the model, and takes what the run needs of it.

  Attributes:
    backbone: BACKBONE.
    vocabulary: VOCABULARY.
    path: INITIAL_CHECKPOINT_PATH or CHECKPOINT_PATH; its shapes and vocabulary are checked too.
    trains: a run starts from it. Its prompt, and a served one of `prompt_file`, are not read from
      the checkpoint, which must hold none; else the checkpoint has the prompt too.
    prompt_file: PROMPT_FILE.
  """

  backbone: T5Config
  vocabulary: str
  path: str
  trains: bool = False
  prompt_file: str | None = None

  def __call__(self, found: Mapping[str, Any], wanted: Mapping[str, Any],
               is_resuming: bool = False) -> dict[str, Any]:
    """`state_transformation_fns` of `utils.RestoreCheckpointConfig`.

    Args:
      found: the checkpoint's train state, `{"target": ..., "state": ...}`.
      wanted: the run's own, as shapes.
      is_resuming: it is the run's own checkpoint, which must have everything.

    Raises:
      UserError: a parameter is missing, unexpected, or of another shape.
    """
    given = _leaves(found.get("target", {}))
    target = trees.flatten(core.unfreeze(wanted["target"]))
    is_new = (self.trains or self.prompt_file is not None) and not is_resuming
    starts = {name for name in target if names.is_prompt(name) and is_new}
    missing = sorted(target.keys() - starts - given.keys())
    unexpected = sorted(given.keys() - (target.keys() - starts))
    if missing or unexpected:
      raise UserError(
        "The checkpoint is not this model's",
        found=f"{self.path}: missing {missing[:4]} ({len(missing)}), "
        f"unexpected {unexpected[:4]} ({len(unexpected)})",
        wanted=f"{len(target) - len(starts)} parameters" + (
          f", and none of the prompt, which is made anew ({len(starts)})" if starts else ""),
        fix=_restore_fix(unexpected, is_resuming))
    for name, leaf in given.items():
      shape = _shape(leaf)
      if shape is not None and shape != tuple(target[name].shape):
        raise UserError("A parameter of the checkpoint has another shape",
                        found=f"{name}: {shape}", wanted=str(tuple(target[name].shape)),
                        fix="use the models/*.gin file, and the method, of the checkpoint")
    if is_resuming:
      _log.info("Resumed: %d parameters and their optimizer's state.", len(target))
      return dict(found)
    # Orbax's description of an array does not say its shape.
    check_backbone(self.path, self.backbone, self.vocabulary)
    size = trees.count(trees.unflatten({name: target[name] for name in given}))
    fresh = trees.count(trees.unflatten({name: target[name] for name in starts}))
    _log.info("Restored %d parameters (%s numbers) from %s; initialised %d of the prompt (%s "
              "numbers); nothing is left over.", len(given), f"{size:,}", self.path, len(starts),
              f"{fresh:,}")
    # The optimizer's state of the pre-training is of no use, and is not read.
    return {"target": dict(found["target"]), "state": {"step": found["state"]["step"]}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavePrompt:
  """Writes the prompt by itself whenever T5X saves.

  Attributes:
    prompt: PROMPT.
    model_dir: MODEL_DIR, a folder or gs://...
  """

  prompt: Any
  model_dir: str

  def __call__(self, state: Any, infos: Any) -> tuple[Any, Any]:
    """`state_transformation_fns` of `utils.SaveCheckpointConfig`; gives back what it got."""
    if self.prompt is not None and jax.process_index() == 0:
      params = names.from_t5x(core.unfreeze(state["target"]))["prompt"]
      self._write(jax.tree.map(_on_host, params), int(_on_host(state["state"]["step"])))
    return state, infos

  def _write(self, params: Mapping[str, Any], step: int) -> None:
    served = trees.flatten(jax.device_get(self.prompt.fold(params)))
    root = epath.Path(self.model_dir)
    folder = root / "numpy_checkpoints" / f"checkpoint_{step}"
    if served.keys() == {"embedding"}:
      content = npy_files.encode(np.asarray(served["embedding"], np.float32))
      files = {prompt_files.T5X_NAME: content, "prompt.npy": content}
      newest = "prompt.npy"
    else:
      newest = method_files.NAME
      about = {"method": type(self.prompt).__name__, "step": step}
      content = method_files.encode(served, about)
      files = {newest: content}
    # Named last: a kill leaves a whole folder or none.
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
      partial.rmtree()
    partial.mkdir(parents=True)
    for name, content in files.items():
      (partial / name).write_bytes(content)
    if folder.exists():
      folder.rmtree()
    partial.rename(folder)
    (root / f"{newest}.partial").write_bytes(content)
    (root / f"{newest}.partial").replace(root / newest)
    _log.info("Saved the prompt of step %d in %s.", step, folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """Where the prompt starts, as in our own runs: one seed gives one prompt in both.

  Attributes:
    backbone, prompt, vocabulary: BACKBONE, PROMPT, VOCABULARY.
    path: INITIAL_CHECKPOINT_PATH; read only where the prompt starts from weights.
    prompt_file: PROMPT_FILE, a served prompt to use instead.
    seed: RANDOM_SEED.
  """

  backbone: T5Config
  prompt: Any
  vocabulary: str
  path: str
  prompt_file: str | None = None
  seed: int = 0

  def __post_init__(self):
    if self.prompt is None and self.prompt_file is not None:
      raise UserError("PROMPT_FILE is given, but the model has no prompt", found=self.prompt_file,
                      wanted="a prompt method", fix="add --gin_file=prompts/soft.gin")

  @functools.cached_property
  def model(self) -> ModelConfig:
    return ModelConfig(backbone=self.backbone, prompt=self.prompt, vocabulary=self.vocabulary,
                       initial_checkpoint_path=self.path)

  @property
  def module_prompt(self) -> Any:
    """The method that the model needs: what is served where the prompt comes from a file."""
    prompt = self.model.prompt
    return prompt if prompt is None or self.prompt_file is None else prompt.served()

  @functools.cached_property
  def params(self) -> dict[str, Any]:
    """The prompt's parameters, by our names, on the host."""
    if self.prompt is None:
      return {}
    # T5X asks while it traces.
    with jax.ensure_compile_time_eval():
      if self.prompt_file is not None:
        params = self.model.load_prompt(self.prompt_file)
      else:
        module = PromptedT5(T5(self.backbone), self.model.prompt)
        params = init_prompt(purpose_key(self.seed, "prompt"), module, self._sources())
      return jax.device_get(params)

  def _sources(self) -> Sources:
    reader = check_backbone(self.path, self.backbone, self.vocabulary)
    tokenizer = self.model.tokenizer()

    def of_words(ids: Any) -> Any:
      backbone = self.model.load_backbone(self.seed)
      return activations(backbone, self.backbone, ids)

    table = reader.read("token_embedder/embedding")
    output = None if self.backbone.logits_via_embedding else (
      reader.read("decoder/logits_dense/kernel").T)
    return Sources(embedding=table, encode=tokenizer.encode, output=output, activations=of_words,
                   num_ordinary=tokenizer.vocab_size - vocabularies.NUM_SENTINELS)


def check_backbone(path: str, config: T5Config, vocabulary: str) -> Reader:
  """Opens a checkpoint that T5X can read, and checks names, shapes and vocabulary.

  Raises:
    UserError: it is none, or not the model's.
  """
  form = loading.find(path)
  if form.name not in _READ_BY_T5X:
    raise UserError("T5X cannot read this checkpoint", found=f"{path}: {form.title}",
                    wanted="; ".join(formats.formats()[name].title for name in _READ_BY_T5X),
                    fix=f"prompt-tuning convert {path} checkpoint_0 --to t5x --layout unstacked")
  return loading.check(path, config, vocabularies.fingerprint(vocabulary))


def total_steps(train_steps: int, path: str) -> int:
  """T5X's `total_steps`, which counts the steps of the pre-training: those and this run's own.

  Args:
    train_steps: TRAIN_STEPS, of this run.
    path: INITIAL_CHECKPOINT_PATH; a resume starts from the same one, so the sum stays.
  """
  if isinstance(train_steps, bool) or not isinstance(train_steps, int) or train_steps < 1:
    raise UserError("TRAIN_STEPS is not a count", found=repr(train_steps),
                    wanted="a whole number, 1 or more", fix="--gin.TRAIN_STEPS=30000")
  form = loading.find(path)
  step = form.open(path).metadata.get("step") if form.name in _READ_BY_T5X else None
  if step is None:
    step = int(found[1]) if (found := STEP.search(path.rstrip("/").rpartition("/")[2])) else 0
  return int(step) + train_steps


def _leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Flat, with tensorstore's specifications of arrays as leaves."""
  flat: dict[str, Any] = {}
  waiting: list[tuple[str, Any]] = [("", tree)]
  while waiting:
    prefix, node = waiting.pop()
    for key, value in node.items():
      if isinstance(value, Mapping) and not {"driver", "kvstore"} <= value.keys():
        waiting.append((f"{prefix}{key}/", value))
      else:
        flat[prefix + key] = value
  return flat


def _shape(leaf: Any) -> tuple[int, ...] | None:
  """Of an array, or of its description; None where that does not say it."""
  if isinstance(leaf, Mapping):
    shape = leaf.get("metadata", {}).get("shape")
  else:
    shape = getattr(leaf, "shape", None)
  return None if shape is None else tuple(shape)


def _on_host(array: Any) -> np.ndarray:
  """A replicated array of any of T5X's kinds."""
  if isinstance(array, jax.Array):
    return np.asarray(array.addressable_data(0))
  return np.asarray(array.get() if hasattr(array, "get") else array)


def _restore_fix(unexpected: list[str], is_resuming: bool) -> str:
  if is_resuming:
    return "use another MODEL_DIR, or the files that this run was started with"
  if unexpected and all(map(names.is_prompt, unexpected)):
    return ("name the checkpoint of the pre-training; its prompt is in the run's "
            "numpy_checkpoints: --gin_file=inits/from_file.gin starts from it")
  return "use the models/*.gin file of the checkpoint, and the folder checkpoint_<step>"
