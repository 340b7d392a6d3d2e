"""Our batches for `t5x.train`, in the order of our own runs; the gin of the T5X tests binds it."""

import seqio
import tensorflow as tf

from prompt_tuning.data import TrainData


def get_dataset(cfg, shard_id, num_shards, feature_converter_cls, num_epochs=None,
                continue_from_last_checkpoint=False, *, seed=0, cache_dir):
  """T5X's `utils.get_dataset`, over `TrainData`."""
  assert (shard_id, num_shards, num_epochs, continue_from_last_checkpoint) == (0, 1, None, False)
  # A bank's tasks go by other names in T5X, and the order of rows depends on the name.
  task = seqio.get_mixture_or_task(cfg.mixture_or_task_name.partition("__bank_of")[0])
  tasks = seqio.get_subtasks(task)
  ids = {each.name: i for i, each in enumerate(tasks)} if len(tasks) > 1 else None
  data = TrainData(task, lengths=cfg.task_feature_lengths, batch_size=cfg.batch_size, seed=seed,
                   prompt_ids=ids, cache_dir=cache_dir)

  def batch(step):
    found = dict(data.at(step))
    if "prompt_ids" in found:
      found["prompt_ids"] = found["prompt_ids"][:, None]
    return found

  def batches():
    step = 0
    while True:
      yield batch(step)
      step += 1

  return tf.data.Dataset.from_generator(batches, output_signature={
    name: tf.TensorSpec(array.shape, array.dtype) for name, array in batch(0).items()})
