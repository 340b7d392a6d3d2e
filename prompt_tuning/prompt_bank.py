"""Several prompts of one frozen model, served together: which of them share a batch, and how.

A prompt is given as `NAME=SOURCE`. SOURCE is a prompt's file, a run's MODEL_DIR (its method comes
from the run's own settings), the `members` folder of a run with N_PROMPTS (all of them), or `none`:
no prompt at all. A name that stands several times is an ensemble.

  tables [P, D]     of any lengths, and `none`, share a batch: a bank [N, max P, D]
  one method alike  prefixes, deep prompts: a bank too, where length and placement are the same
  the others        LoRA, adapters, ...: a group of its own; so is a run that trained its backbone

Shorter rows are filled up in front of all that they hold, by positions that every attention masks
out: T5 knows only how far apart two positions are, so a row that stands further back is the same
row. Filling up between prompt and input, or at other offsets, would not be. What is filled up is 0
in the input and so are the table's rows there; `none` is a row whose prompt is all masked.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import config as gin_config
from prompt_tuning import trained_model
from prompt_tuning.checkpoints import prompt_files, prompt_origin, run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PAD_ID, T5Config
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.placement import PLAIN, Placement
from prompt_tuning.prompted import PromptedT5, one_of_bank
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import RANDOM, ModelConfig, TaskConfig
from prompt_tuning.t5 import T5

NO_PROMPT = "none"
# What may differ between a run and the model that serves its prompt.
_COMPUTATION = {"scan_layers": True, "remat": "none", "dropout_rate": 0.0, "dtype": "float32",
                "param_dtype": "float32"}


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt, read and checked.

  Attributes:
    name, source: as they were given.
    method: its served form, for one prompt; None: no prompt.
    params: of the method.
    placement: what stands around the input.
    in_front: whether that is the prompt alone, ahead of it.
    backbone: the checkpoint it belongs to.
    random_seed: of a run on random weights, the seed that they were drawn with; None: not known,
      or no such run.
  """

  name: str
  source: str
  method: PromptMethod | None
  params: dict[str, Any]
  placement: Placement
  in_front: bool
  backbone: str
  random_seed: int | None = None

  @property
  def is_table(self) -> bool:
    return self.method is None or isinstance(self.method, SoftPrompt)


@dataclasses.dataclass(frozen=True)
class Group:
  """Prompts that share a batch: row n of the bank is `prompts[n]`.

  Attributes:
    model: of the bank; without one where no prompt of the group is any.
    params: of the bank, `prompt/...`.
    placements: of each prompt, all of one size.
    backbone: the checkpoint.
  """

  prompts: tuple[Prompt, ...]
  model: PromptedT5
  params: dict[str, Any]
  placements: tuple[Placement, ...]
  backbone: str

  def rows(self, prompt_ids: Sequence[int], inputs: Sequence[np.ndarray],
           length: int) -> np.ndarray:
    """Inputs of at most `length` ids, each with its prompt -> `[B, size + length]` int32."""
    return np.concatenate([self.placements[i].rows([ids], length)
                           for i, ids in zip(prompt_ids, inputs, strict=True)])


@dataclasses.dataclass(frozen=True)
class Bank:
  """Attributes:
    config: the model that serves.
    groups: see `Group`.
    tasks: name -> (group, row of its bank) of each of its prompts, in the order given.
  """

  config: ModelConfig
  groups: tuple[Group, ...]
  tasks: dict[str, tuple[tuple[int, int], ...]]

  def load(self, seed: int, partitioner: Partitioner | None = None) -> list[dict[str, Any]]:
    """Parameters of every group; a backbone is loaded once, and laid out by `partitioner`.

    Args:
      seed: of random weights.

    Raises:
      UserError: a prompt was trained on the random weights of another seed.
    """
    for prompt in (prompt for group in self.groups for prompt in group.prompts):
      if prompt.random_seed not in (None, seed):
        raise UserError("This prompt is of another backbone",
                        found=f"{prompt.source}: random weights of RANDOM_SEED = "
                        f"{prompt.random_seed}", wanted=f"those of RANDOM_SEED = {seed}, as the "
                        "model that serves", fix="serve it on its own, or give the RANDOM_SEED of "
                        "its run")
    backbones: dict[str, Any] = {}
    for group in self.groups:
      if group.backbone not in backbones:
        own = dataclasses.replace(self.config, prompt=None, template=None,
                                  initial_checkpoint_path=group.backbone)
        backbones[group.backbone] = own.load_backbone(seed, partitioner=partitioner)
    prompts = [group.params if partitioner is None else
               jax.device_put(group.params, partitioner.replicated) for group in self.groups]
    return [{"backbone": backbones[group.backbone]} | ({"prompt": prompt} if prompt else {})
            for group, prompt in zip(self.groups, prompts, strict=True)]


def read_bank(config: ModelConfig, given: Sequence[tuple[str, str]],
              rules: Callable[[str], ModelConfig] | None = None) -> Bank:
  """Reads prompts, and says which share a batch. No weight of the backbone is read.

  Args:
    config: the model that serves; its prompt is the method of files that do not say theirs.
    given: (name, source) pairs.
    rules: a run's MODEL_DIR -> its `ModelConfig`; None: from its config.gin.

  Raises:
    UserError: a prompt cannot be read, or is of another backbone.
  """
  prompts = [_read(config, name, source, rules or model_of_run)
             for name, pair in given for source in _expand(pair)]
  grouped: dict[Any, list[Prompt]] = {}
  for i, prompt in enumerate(prompts):
    grouped.setdefault(_key(prompt, i), []).append(prompt)
  groups = tuple(_group(config, members) for members in grouped.values())
  place = {id(prompt): (g, row) for g, group in enumerate(groups)
           for row, prompt in enumerate(group.prompts)}
  tasks: dict[str, tuple[tuple[int, int], ...]] = {}
  for prompt in prompts:
    tasks[prompt.name] = (*tasks.get(prompt.name, ()), place[id(prompt)])
  for path in {group.backbone for group in groups}:
    dataclasses.replace(config, prompt=None, template=None, initial_checkpoint_path=path).check()
  return Bank(config, groups, tasks)


def of_trained(trained: trained_model.TrainedModel, task: str | None) -> Bank:
  """A bank of what one run, or one file, holds; the prompt of `task` where it is a bank itself."""
  own = trained.config
  row = trained.prompt_id(task)
  params = {} if trained.prompt_file is None else own.load_prompt(trained.prompt_file)
  prompt = Prompt(task or "", trained.prompt_file or NO_PROMPT, own.prompt, params,
                  own.placement(), own.module().prompt_in_front, own.initial_checkpoint_path)
  count = 1 if row is None else own.prompt.num_prompts
  group = Group((prompt,) * count, own.module(), params, (prompt.placement,) * count,
                own.initial_checkpoint_path)
  return Bank(own, (group,), {prompt.name: ((0, row or 0),)})


def model_of_run(model_dir: str) -> ModelConfig:
  """The model of a run, from its own settings. What was loaded from gin before is replaced."""
  _load_run(model_dir)
  return gin_config.build(ModelConfig)


def task_of_run(model_dir: str) -> TaskConfig:
  """The task of a run, likewise."""
  _load_run(model_dir)
  return gin_config.build(TaskConfig)


def _load_run(model_dir: str) -> None:
  gin_config.load(["commands/info.gin", str((pathlib.Path(model_dir) / "config.gin").absolute())],
                  [])


def _expand(source: str) -> list[str]:
  """The members of a run with N_PROMPTS, in order; else the source alone."""
  folder = pathlib.Path(source)
  if folder.name != run_prompts.MEMBERS or not folder.is_dir():
    return [source]
  found = [str(file) for file in run_prompts.members_of(folder.parent)]
  if not found:
    raise UserError("The run has no members", found=source, wanted="members/0/prompt.npy, ...",
                    fix="train with --gin.N_PROMPTS, or give the run itself")
  return found


def _run_of_member(file: pathlib.Path) -> pathlib.Path | None:
  """The run of `MODEL_DIR/members/<i>/prompt.npy`."""
  inside = len(file.parents) > 2 and file.parents[1].name == run_prompts.MEMBERS
  return file.parents[2] if inside else None


def _read(config: ModelConfig, name: str, source: str,
          rules: Callable[[str], ModelConfig]) -> Prompt:
  if source == NO_PROMPT:
    return Prompt(name, source, None, {}, PLAIN, True, config.initial_checkpoint_path)
  folder = pathlib.Path(source)
  run = folder if run_prompts.is_run(folder) else _run_of_member(folder)
  if run is None and folder.is_dir() and prompt_files.find(source) is None:
    raise UserError("There is neither a run nor a prompt in this folder", found=source,
                    wanted="a MODEL_DIR with its settings.json, or a prompt's file",
                    fix="correct --prompt")
  # A control's prompts stand here too, and an ensemble's under one name.
  setting = f"The prompt of {name!r}" if name else "PROMPT_FILE"
  random_seed = None
  if run is not None:
    own = rules(str(run))
    _check_same(config, own, source)
    if own.initial_checkpoint_path == RANDOM:
      random_seed = trained_model.seed_of(str(run))
    own = dataclasses.replace(own, backbone=config.backbone, vocabulary=config.vocabulary,
                              prompt=_for_backbone(own.prompt, config.backbone))
  else:
    method = config.prompt or SoftPrompt(config.backbone, 1)
    own = dataclasses.replace(config, prompt=method)
    template = prompt_origin.of_file(source, setting).get("template")
    if template is not None:
      own = dataclasses.replace(own, template=template)
  whole = run is not None and run == folder
  trained = trained_model.find(own, source if whole else None, None if whole else source,
                               setting)
  own = trained.config
  placement = own.placement()
  backbone = own.initial_checkpoint_path
  if trained.prompt_file is None:
    return Prompt(name, source, None, {}, placement, True, backbone, random_seed)
  method, params = own.prompt, own.load_prompt(trained.prompt_file)
  if method.num_prompts > 1:
    method, params = one_of_bank(own.module(), trained.prompt_id(name), params)
  return Prompt(name, source, method, params, placement, own.module().prompt_in_front, backbone,
                random_seed)


def _check_same(config: ModelConfig, own: ModelConfig, source: str) -> None:
  """Whether a run was trained on the backbone that serves."""
  def architecture(model: ModelConfig) -> T5Config:
    return dataclasses.replace(model.backbone, **_COMPUTATION)

  for what, ours, theirs in (
      ("architecture", architecture(config), architecture(own)),
      ("INITIAL_CHECKPOINT_PATH", config.initial_checkpoint_path, own.initial_checkpoint_path),
      ("VOCABULARY", config.vocabulary, own.vocabulary)):
    if ours != theirs:
      raise UserError("This prompt is of another backbone", found=f"{source}: {what} {theirs}",
                      wanted=f"{ours}, as the model that serves",
                      fix="serve it on its own, or give the gin files and INITIAL_CHECKPOINT_PATH "
                      "that it was trained with")


def _for_backbone(method: PromptMethod | None, backbone: T5Config) -> PromptMethod | None:
  """The method for the same architecture, computed otherwise."""
  if method is None:
    return None
  parts = getattr(method, "parts", None)
  if parts is None:
    return method.clone(config=backbone)
  return method.clone(config=backbone, parts={
    name: part.clone(config=backbone) for name, part in parts.items()})


def _key(prompt: Prompt, number: int) -> Any:
  """Prompts of one key share a batch."""
  if prompt.is_table:
    return prompt.backbone
  fields = {field.name for field in dataclasses.fields(prompt.method)}
  own = () if "num_prompts" in fields else (number,)
  return (prompt.backbone, prompt.method, prompt.placement, prompt.in_front, *own)


def _group(config: ModelConfig, prompts: list[Prompt]) -> Group:
  in_front = all(prompt.in_front for prompt in prompts)
  length = max(0 if p.method is None else p.method.num_virtual_tokens for p in prompts)
  size = max(prompt.placement.size for prompt in prompts)
  placements = tuple(_filled(prompt, length, size) for prompt in prompts)
  count = len(prompts)
  method, params = None, {}
  if prompts[0].is_table and length:
    method = SoftPrompt(config.backbone, length, num_prompts=count)
    tables = [_ahead(prompt, length, config.backbone.emb_dim) for prompt in prompts]
    params = {"embedding": jnp.stack(tables) if count > 1 else tables[0]}
  elif not prompts[0].is_table:
    method, params = prompts[0].method, prompts[0].params
    if count > 1:
      method = method.clone(num_prompts=count)
      params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.params for p in prompts))
  model = PromptedT5(T5(config.backbone), method, prompt_in_front=in_front)
  return Group(tuple(prompts), model, params, placements, prompts[0].backbone)


def _filled(prompt: Prompt, length: int, size: int) -> Placement:
  """The placement, filled up in front to `size`, with its rows the last of `length`."""
  own = 0 if prompt.method is None else prompt.method.num_virtual_tokens
  moved = [tuple(i - (length - own) if i < 0 else i for i in ids)
           for ids in (prompt.placement.before, prompt.placement.after)]
  return Placement((PAD_ID,) * (size - prompt.placement.size) + moved[0], moved[1])


def _ahead(prompt: Prompt, length: int, width: int) -> jax.Array:
  """`[P, D]` -> `[length, D]`, zeros first."""
  if prompt.method is None:
    return jnp.zeros((length, width), jnp.float32)
  table = jnp.asarray(prompt.params["embedding"], jnp.float32)
  return jnp.pad(table, ((length - len(table), 0), (0, 0)))
