"""Our tasks, and the prompt of each row of a bank, in T5X's data.

T5X asks seqio for a name. `dataset_name` gives one: of this package's tasks after it registered
them, of a user's own as they are. Our tasks of several metrics are registered once more with one
function for all of them; for a bank, each task of the mixture with one more feature:

  prompt_ids   int32 [1], which prompt of the bank the row uses (batches: [B, 1])
"""

import functools
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError
from prompt_tuning.t5x_bridge.module import num_prompts
from prompt_tuning.tasks import registry

FEATURE = "prompt_ids"


class BankFeatureConverter(seqio.EncDecFeatureConverter):
  """seqio's converter for T5, which hands on `prompt_ids`."""

  TASK_FEATURES = seqio.EncDecFeatureConverter.TASK_FEATURES | {
    FEATURE: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)}
  MODEL_FEATURES = seqio.EncDecFeatureConverter.MODEL_FEATURES | {
    FEATURE: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)}

  def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Any) -> tf.data.Dataset:
    # TASK_FEATURE_LENGTHS are of inputs and targets.
    return super().__call__(ds, {**task_feature_lengths, FEATURE: 1})

  def get_model_feature_lengths(self, task_feature_lengths: Any) -> Any:
    return {**super().get_model_feature_lengths(task_feature_lengths), FEATURE: 1}

  def _convert_example(self, features: Any) -> Any:
    return dict(super()._convert_example(features)) | {FEATURE: features[FEATURE]}


def converter_class(prompt: Any) -> type[seqio.FeatureConverter]:
  """What turns examples into T5X's batches for a method."""
  return BankFeatureConverter if num_prompts(prompt) > 1 else seqio.EncDecFeatureConverter


def dataset_name(name: str, vocabulary: str, module: str | None = None,
                 prompt: Any = None) -> str:
  """The name that T5X gets for MIXTURE_OR_TASK_NAME; everything behind it is registered.

  Args:
    name, module: MIXTURE_OR_TASK_NAME, MIXTURE_OR_TASK_MODULE.
    vocabulary: VOCABULARY, for this package's tasks.
    prompt: PROMPT; of a bank, the tasks of the mixture use its prompts in their order.

  Raises:
    UserError: nothing has this name, or the bank has another number of prompts.
  """
  found = registry.resolve(name, module=module, vocabulary=vocabulary)
  count = num_prompts(prompt)
  tasks = seqio.get_subtasks(found)
  if count == 1:
    if not any(_needs_one_metric(task) for task in tasks):
      return found.name
    suffix, parts = "__t5x", [_registered(task, "__t5x") for task in tasks]
    if isinstance(found, seqio.Task):
      return parts[0]
  else:
    if len(tasks) != count:
      raise UserError("A bank has a prompt for every task", found=f"{count} prompts, {len(tasks)} "
                      f"tasks: {', '.join(task.name for task in tasks)}",
                      wanted="as many prompts as tasks", fix=f"--gin.NUM_PROMPTS={len(tasks)}")
    suffix = f"__bank_of_{count}"
    parts = [_registered(task, f"__prompt_{i}_of_{count}", _with_id(task, i, count))
             for i, task in enumerate(tasks)]
  mixture = found.name + suffix
  if mixture not in seqio.MixtureRegistry.names():
    rates = [found.get_rate(task) for task in tasks]
    seqio.MixtureRegistry.add(mixture, list(zip(parts, rates, strict=True)))
  return mixture


def _registered(task: seqio.Task, suffix: str, changes: dict[str, Any] | None = None) -> str:
  """Registers a task once more, as T5X needs it; its new name."""
  name = task.name + suffix
  if name not in seqio.TaskRegistry.names():
    changes = dict(changes or {})
    if _needs_one_metric(task):
      changes["metric_fns"] = [functools.partial(_all_metrics, task.metric_fns)]
    seqio.TaskRegistry.add_provider(name, task.replace(name=name, **changes))
  return name


def _with_id(task: seqio.Task, prompt_id: int, count: int) -> dict[str, Any]:
  """What makes a task's rows say which prompt is theirs."""
  feature = seqio.Feature(vocabulary=seqio.PassThroughVocabulary(size=count), add_eos=False,
                          dtype=tf.int32)
  return {"preprocessors": [*task.preprocessors, functools.partial(_add_id, prompt_id)],
          "output_features": {**task.output_features, FEATURE: feature}}


def _needs_one_metric(task: seqio.Task) -> bool:
  """Our metrics share some counts, and seqio refuses two functions that give one key."""
  return registry.row_of(task.name) is not None and len(task.metric_fns) > 1


def _all_metrics(metric_fns: Any, targets: Any, predictions: Any) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for metric in metric_fns:
    found |= metric(targets, predictions)
  return found


def _add_id(prompt_id: int, dataset: tf.data.Dataset) -> tf.data.Dataset:
  return dataset.map(lambda example: example | {FEATURE: tf.constant([prompt_id], tf.int32)})
