"""What every command needs to know: which model, which task; and their checks before any weight.

gin fills these frozen dataclasses. `ModelConfig` says backbone, prompt, vocabulary and where the
weights come from; `TaskConfig` says the data and its lengths.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning import hosts, placement, quantization, trees
from prompt_tuning.checkpoints import hf_files, hub, loading, method_files, peft, prompt_files
from prompt_tuning.checkpoints.leaves import Reader
from prompt_tuning.disk import cache_home
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.layouts import Layout, layout_of
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.placement import Placement
from prompt_tuning.prompted import (
  PromptedT5,
  abstract_params,
  activations,
  init_backbone,
  init_prompt,
  logical_axes,
)
from prompt_tuning.prompts.initializers import Sources, read_prompt
from prompt_tuning.t5 import T5
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.variants import Variant
from prompt_tuning.train_state import purpose_key

RANDOM = "random"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Backbone, prompt, vocabulary, weights.

  Attributes:
    backbone: the architecture (BACKBONE).
    prompt: a prompt module, or None.
    vocabulary: VOCABULARY: `tiny`, `bytes`, or the path of a SentencePiece model.
    initial_checkpoint_path: INITIAL_CHECKPOINT_PATH: a shipped model's name, a MODEL_DIR, a
      checkpoint in any format of docs/checkpoints.md, or `random`.
    frozen_dtype: FROZEN_DTYPE, of backbone parameters that are not trained: a floating-point type,
      or few bits with scales (`quantization.py`).
    prompt_in_front: virtual tokens are the first ids of every row.
    layout: LAYOUT, how weights, batch and activations are split over the devices (`layouts.py`).
    template: PROMPT_TEMPLATE, where else they stand, with anchor words (`placement.py`); None: in
      front.
  """

  backbone: T5Config
  prompt: Any = None
  vocabulary: str = "tiny"
  initial_checkpoint_path: str
  frozen_dtype: str = "float32"
  prompt_in_front: bool = True
  template: str | None = None
  layout: str | Layout = "replicated"

  def __post_init__(self):
    layout_of(self.layout)
    quantization.check(self.frozen_dtype, self.backbone)
    if self.prompt is not None and self.prompt.config.emb_dim != self.backbone.emb_dim:
      raise UserError("The prompt and the backbone differ in width",
                      found=f"prompt D = {self.prompt.config.emb_dim}",
                      wanted=f"D = {self.backbone.emb_dim}", fix="use one models/*.gin file")
    if self.prompt is not None:
      # The vocabulary is read only by a method that asks for ids.
      object.__setattr__(self, "prompt", self.prompt.with_vocabulary(
        lambda text: self.tokenizer().encode(text)))

  def module(self) -> PromptedT5:
    in_front = self.prompt_in_front and (self.template is None or self.placement().is_in_front)
    return PromptedT5(T5(self.backbone), self.prompt, prompt_in_front=in_front)

  def placement(self) -> Placement:
    """What stands around every input.

    Raises:
      UserError: the template is none, or its groups do not add up to the prompt.
    """
    length = 0 if self.prompt is None else self.prompt.num_virtual_tokens
    if self.template is None:
      return Placement.front(length)
    return placement.parse(self.template, length, self.tokenizer().encode)

  def prompt_ids(self, tasks: Sequence[str]) -> dict[str, int] | None:
    """Which prompt of a bank each task uses, in the order of the mixture; None without a bank.

    Raises:
      UserError: there are more tasks than prompts.
    """
    prompts = 1 if self.prompt is None else self.prompt.num_prompts
    if prompts == 1:
      return None
    if len(tasks) != prompts:
      raise UserError("A bank has a prompt for every task", found=f"{prompts} prompts, "
                      f"{len(tasks)} tasks: {', '.join(tasks)}", wanted="as many prompts as tasks",
                      fix=f"--gin.NUM_PROMPTS={len(tasks)}")
    return {name: i for i, name in enumerate(tasks)}

  def tokenizer(self) -> vocabularies.Tokenizer:
    """The vocabulary, checked against the size of the embedding table.

    Raises:
      UserError: it cannot be loaded, or has more ids than the table has rows.
    """
    try:
      tokenizer = vocabularies.load_light(self.vocabulary)
    except UserError as error:
      file = (hub.cached_file(self.initial_checkpoint_path, hf_files.PIECES)
              if self.vocabulary in vocabularies.NOT_SHIPPED else None)
      if file is None:
        raise
      raise UserError(error.what, found=f"{error.found}; INITIAL_CHECKPOINT_PATH has {file}",
                      wanted=error.wanted, fix=f"--gin.VOCABULARY={file}") from error
    if tokenizer.vocab_size > self.backbone.vocab_size:
      raise UserError("The vocabulary does not fit the embedding table",
                      found=f"{tokenizer.vocab_size} ids in {self.vocabulary!r}",
                      wanted=f"at most {self.backbone.vocab_size}, the table's rows",
                      fix="set VOCABULARY to the one the checkpoint was trained with")
    return tokenizer

  def check(self) -> Reader | None:
    """Opens the weights, and checks all that can be known without reading them."""
    tokenizer = self.tokenizer()
    self.placement()
    if self.initial_checkpoint_path == RANDOM:
      return None
    reader = loading.check(self.initial_checkpoint_path, self.backbone,
                           vocabularies.fingerprint(self.vocabulary))
    if not reader.metadata.get("vocabulary"):
      vocabularies.check_table(self.vocabulary, tokenizer.vocab_size, self.backbone.vocab_size)
    return reader

  def check_prompt_start(self) -> None:
    """The files and runs that the prompt starts from, checked without the backbone's weights."""
    table = jax.ShapeDtypeStruct((self.backbone.vocab_size, self.backbone.emb_dim), jnp.float32)
    if self.prompt is not None:
      self.prompt.check_start(purpose_key(0, "prompt"), Sources(embedding=table))

  def load_backbone(self, seed: int, trained: trees.Split | None = None,
                    partitioner: Partitioner | None = None) -> dict[str, Any]:
    """Backbone parameters: what is trained in float32, the rest in `frozen_dtype`.

    Args:
      partitioner: where they go, each device's part read for itself; None: to the first device.
    """
    reader = self.check()
    expected = self.backbone_shapes(trained)
    if partitioner is not None:
      axes = logical_axes(PromptedT5(T5(self.backbone)))
      expected = jax.tree.map(  # values and scales of one leaf each on their own
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        expected, partitioner.params({"backbone": expected}, axes)["backbone"])
    if reader is not None:
      return loading.restore(reader, expected)

    wanted = trees.flatten(expected)

    def start(key: jax.Array) -> dict[str, Any]:
      return trees.map_with_path(lambda path, leaf: self._stored(path, leaf)
                                 if isinstance(wanted[path], quantization.Quantized)
                                 else leaf.astype(wanted[path].dtype),
                                 init_backbone(key, self.backbone))

    places = None if partitioner is None else jax.tree.map(lambda leaf: leaf.sharding, expected)
    return jax.jit(start, out_shardings=places)(purpose_key(seed, "init"))

  def backbone_shapes(self, trained: trees.Split | None = None) -> dict[str, Any]:
    """The backbone's tree as shapes, in the dtypes of a run."""
    patterns = trained.trained if trained is not None else {}

    def target(path: str, leaf: Any) -> Any:
      # A leaf of which some layers are trained is kept in float32 whole.
      if f"backbone/{path}" in patterns:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
      return jax.eval_shape(functools.partial(self._stored, path), leaf)

    return trees.map_with_path(target, abstract_params(PromptedT5(T5(self.backbone)))["backbone"])

  def _stored(self, path: str, leaf: jax.Array) -> Any:
    """A frozen leaf as FROZEN_DTYPE says."""
    scheme = quantization.scheme_of(self.frozen_dtype)
    if scheme is None:
      return leaf.astype(self.frozen_dtype)
    axis = quantization.summed_axis(path)
    # Norms and position biases: as precise as the computation.
    return leaf.astype(self.backbone.dtype) if axis is None else (
      quantization.quantize(leaf, scheme, axis))

  def start_prompt(self, backbone: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The prompt's parameters where training starts, or {} without a prompt."""
    tokenizer = self.tokenizer()
    output = backbone["decoder"].get("logits_dense", {}).get("kernel")
    table = backbone["token_embedder"]["embedding"]
    # One of them may be trained, and so be no leaf of few bits.
    table, output = (jax.jit(quantization.whole)(leaf)
                     if isinstance(leaf, quantization.Quantized) else leaf
                     for leaf in (table, output))
    output = hosts.fetch(output)
    sources = Sources(embedding=hosts.fetch(table), encode=tokenizer.encode,
                      num_ordinary=tokenizer.vocab_size - vocabularies.NUM_SENTINELS,
                      output=None if output is None else output.T,
                      activations=self._activations(backbone))
    return init_prompt(purpose_key(seed, "prompt"), self.module(), sources)

  def _activations(self, backbone: Mapping[str, Any]) -> Any:
    if hosts.count() == 1:
      return lambda ids: activations(backbone, self.backbone, ids)
    # Weights on several hosts can only be read by a compiled function.
    return lambda ids: hosts.fetch(
      jax.jit(lambda params: activations(params, self.backbone, ids))(backbone))

  def takes_table(self) -> bool:
    """Whether the served prompt is a table of vectors, and nothing else."""
    return self._served_leaves().keys() == {"embedding"}

  def load_prompt(self, path: str, setting: str = "PROMPT_FILE") -> dict[str, Any]:
    """The parameters of the served prompt from its file.

    Args:
      setting: what the path was given as, for the messages.
    """
    if self.prompt is None:
      raise UserError(f"{setting} is given, but the model has no prompt", found=path,
                      wanted="a prompt method", fix="add --gin_file=prompts/soft.gin")
    if self.takes_table():
      served = self.prompt.served()
      return {"embedding": jnp.asarray(read_prompt(path, served.length, self.backbone.emb_dim,
                                                   served.num_prompts, setting))}
    found = prompt_files.find(path)
    if found is not None and found[0] == "peft":
      peft.check_method(found[1])
    if not method_files.is_one(path):
      raise UserError("This method is more than a table of vectors", found=path,
                      wanted=f"{method_files.NAME} of a run, for {type(self.prompt).__name__}",
                      fix="give that file, or use prompts/soft.gin")
    leaves = method_files.read(path, self._served_leaves(), setting)
    return trees.unflatten({name: jnp.asarray(leaf) for name, leaf in leaves.items()})

  def _served_leaves(self) -> dict[str, tuple[int, ...]]:
    prompt = abstract_params(PromptedT5(T5(self.backbone), self.prompt.served()))["prompt"]
    return {name: leaf.shape for name, leaf in trees.flatten(prompt).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
  """The data.

  Attributes:
    name: MIXTURE_OR_TASK_NAME, of this package's tasks, or registered with seqio.
    module: MIXTURE_OR_TASK_MODULE, imported first, so that a user's tasks are registered.
    feature_lengths: TASK_FEATURE_LENGTHS, {"inputs": T, "targets": U} in real tokens.
    source: an object whose `spec()` makes the task `name` (a user's files, a text corpus), or None.
    use_cached: USE_CACHED_TASKS, read seqio's offline cache.
    cached_dirs: CACHED_TASKS_DIRS, where `seqio_cache_tasks` put it.
    pack: several examples a row (pre-training).
    stochastic: a user's own seqio task draws random numbers, so each epoch is made anew. (Of this
      package's tasks it is known.)
    max_truncated_inputs, max_truncated_targets: MAX_TRUNCATED_INPUTS, MAX_TRUNCATED_TARGETS, share
      of rows that may lose their end.
    variant: DATA_DIR, TASKLESS, K_SHOT and the like: how the table's task is varied.
    leading_sentinel: LEADING_SENTINEL, `<extra_id_0>` ahead of every target and label, for a
      backbone whose outputs always start with one (Lester et al. 2021, section 3.2: "Span
      Corruption + Sentinel"). It is no part of predictions.
    shuffle: SHUFFLE, a new order of the training rows each epoch; False: the data's own order.
    cache_dir: where token caches are kept; None: PROMPT_TUNING_CACHE or ~/.cache/prompt_tuning.
  """

  name: str
  feature_lengths: Mapping[str, int]
  module: str | None = None
  source: Any = None
  use_cached: bool = False
  cached_dirs: Sequence[str] = ()
  pack: bool = False
  stochastic: bool = False
  max_truncated_inputs: float = 0.05
  max_truncated_targets: float = 0.0
  variant: Variant = Variant()
  leading_sentinel: bool = False
  shuffle: bool = True
  cache_dir: str | None = None

  def __post_init__(self):
    lengths = self.feature_lengths
    if not isinstance(lengths, Mapping) or not {"inputs", "targets"} <= lengths.keys():
      keys = sorted(lengths) if isinstance(lengths, Mapping) else lengths
      raise UserError("TASK_FEATURE_LENGTHS lacks a feature", found=f"keys {keys}",
                      wanted="inputs and targets",
                      fix="--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 64}\"")

  def folder(self) -> pathlib.Path:
    """Where token caches are kept."""
    return cache_home() / "tokens" if self.cache_dir is None else pathlib.Path(self.cache_dir)
