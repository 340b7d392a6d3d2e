"""`prompt-tuning merge`: what a run trained, worked into the weights; the result takes no prompt.

For methods that change kernels and nothing else (LoRA, IA3, and combinations of them), which then
cost nothing to serve. The backbone goes through leaf by leaf, in float32: never more than one leaf
is in memory. It is written beside its destination, and only then takes its name.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prompt_tuning import trained_model, trees
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints.leaves import Index, Leaf, MemoryReader, Reader, dtype_of
from prompt_tuning.checkpoints.stacking import in_layout
from prompt_tuning.errors import UserError
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.tasks import vocabularies


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConfig:
  """Attributes:
    model: of the run.
    model_dir: MODEL_DIR of the run.
    output_dir: OUTPUT_DIR, where the new backbone goes.
    seed: RANDOM_SEED of the run, for a backbone with random weights.
    dtype: EXPORT_DTYPE, of the new backbone.
  """

  model: ModelConfig
  model_dir: str
  output_dir: str
  seed: int = 0
  dtype: str = "float32"

  def __post_init__(self):
    dtype_of(self.dtype, "--gin.EXPORT_DTYPE")
    if pathlib.Path(self.output_dir).exists():
      raise UserError("OUTPUT_DIR exists", found=self.output_dir, wanted="a new name",
                      fix="give another --gin.OUTPUT_DIR")


def merge(config: MergeConfig) -> int:
  """Writes the backbone; how many of its parameters changed.

  Raises:
    UserError: MODEL_DIR is no run, or one whose method cannot be merged; a file is damaged; the
      disk is full.
  """
  method = config.model.prompt
  if method is None or method.served().merge({}, {}) is None:
    raise UserError("What the run trained cannot be worked into the backbone's weights",
                    found="no prompt method" if method is None else type(method).__name__,
                    wanted="Lora, IA3, or a Combined of them",
                    fix="serve it as it is: `eval` and `infer` take the run's MODEL_DIR")
  trained = trained_model.find(config.model, config.model_dir, None)
  reader = trained.config.check()
  if reader is None:
    backbone = dataclasses.replace(trained.config, frozen_dtype="float32").load_backbone(
      config.seed)
    reader = MemoryReader(trees.flatten(backbone))
  assert trained.prompt_file is not None
  params = jax.tree.map(np.asarray, trained.config.load_prompt(trained.prompt_file))
  merged = _Merged(in_layout(reader, True), trained.config.prompt, params)
  about: dict[str, Any] = {
    "vocabulary": vocabularies.fingerprint(config.model.vocabulary),
    "from": trained.config.initial_checkpoint_path, "merged": trained.prompt_file}
  backbone_files.write(config.output_dir, merged, config=trained.config.backbone, metadata=about,
                       dtype=config.dtype)
  return merged.changed


class _Merged:
  """A stacked backbone as a Reader, with the method worked into each leaf as it is read.

  Attributes:
    changed: how many parameters were changed so far.
  """

  def __init__(self, source: Reader, method: PromptMethod, params: Mapping[str, Any]):
    self.format, self.path, self.ignored = source.format, source.path, source.ignored
    self.config, self.metadata = source.config, source.metadata
    self.leaves = {name: Leaf(leaf.shape, np.dtype(np.float32))
                   for name, leaf in source.leaves.items()}
    self.changed = 0
    self._source, self._method, self._params = source, method, dict(params)

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    before = self._source.read(name).astype(np.float32, copy=False)
    after = self._method.merge({name: before}, self._params)[name]
    self.changed += int(np.count_nonzero(after != before))
    return after if index is None else after[index]
