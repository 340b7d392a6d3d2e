"""T5X's `EncoderDecoderModel` over `PromptedT5`: MODEL of gin_configs/t5x/models/.

It adds to T5X's own class: where the prompt starts, the prompt of each row of a bank, and that
nothing but the trained leaves is differentiated.
"""

from typing import Any

import jax.numpy as jnp
from t5x import decoding, models

from prompt_tuning import trees
from prompt_tuning.t5 import T5
from prompt_tuning.t5x_bridge import names
from prompt_tuning.t5x_bridge.checkpoint import Start
from prompt_tuning.t5x_bridge.datasets import FEATURE, converter_class
from prompt_tuning.t5x_bridge.module import (
  T5XModule,
  add_prompt_ids,
  freeze_all_but,
  num_prompts,
)
from prompt_tuning.tasks import vocabularies


class PromptedModel(models.EncoderDecoderModel):
  """A prompted T5 for `t5x.train`, `t5x.eval` and `t5x.infer`."""

  def __init__(self, *, start: Start, trained: names.Trained, optimizer_def: Any,
               decode_fn: Any = decoding.temperature_sample, label_smoothing: float = 0.0,
               z_loss: float = 1e-4, loss_normalizing_factor: Any = "NUM_REAL_TARGET_TOKENS"):
    """Args:
      start: the model, and where its prompt starts.
      trained: what is trained; the rest is not differentiated.
      others: as of T5X's class. The loss is that of our own runs: a mean over target tokens.
    """
    self._start, self._trained = start, trained
    self._num_prompts = num_prompts(start.module_prompt)
    if start.module_prompt is not None:
      start.module_prompt.check_task("", (), label_smoothing=label_smoothing)
    vocabulary = vocabularies.load(start.vocabulary)
    start.model.tokenizer()  # it fits the embedding table
    super().__init__(
      module=T5XModule(T5(start.backbone), start.module_prompt), input_vocabulary=vocabulary,
      output_vocabulary=vocabulary, optimizer_def=optimizer_def, decode_fn=decode_fn,
      feature_converter_cls=converter_class(start.module_prompt), z_loss=z_loss,
      label_smoothing=label_smoothing, loss_normalizing_factor=loss_normalizing_factor)

  def get_initial_variables(self, rng: Any, input_shapes: Any, input_types: Any = None) -> Any:
    """As T5X's, with the prompt where it starts."""
    shapes = dict(input_shapes)
    if self._num_prompts > 1:
      rows, length = shapes["encoder_input_tokens"]
      shapes["encoder_input_tokens"] = (rows, 1 + length)
    variables = super().get_initial_variables(rng, shapes, input_types)
    prompt = names.to_t5x({"prompt": self._start.params}) if self._start.params else {}
    leaves = trees.flatten(variables["params"]) | {
      name: jnp.asarray(leaf) for name, leaf in trees.flatten(prompt).items()}
    return variables.copy({"params": trees.unflatten(leaves)})

  def loss_fn(self, params: Any, batch: Any, dropout_rng: Any) -> Any:
    return super().loss_fn(freeze_all_but(self._trained, params), batch, dropout_rng)

  def _compute_logits(self, params: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    return super()._compute_logits(params, self._with_ids(batch), *args, **kwargs)

  def predict_batch_with_aux(self, params: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    return super().predict_batch_with_aux(params, self._with_ids(batch), *args, **kwargs)

  def _with_ids(self, batch: Any) -> Any:
    """A bank's batch as its module reads it."""
    if self._num_prompts == 1:
      return batch
    tokens = add_prompt_ids(batch["encoder_input_tokens"], batch[FEATURE][:, 0])
    return {**batch, "encoder_input_tokens": tokens}
