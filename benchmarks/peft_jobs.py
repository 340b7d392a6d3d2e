"""The other side: the same jobs in PEFT and transformers on PyTorch's CPU build.

The prompt stands in front of the encoder alone, as ours (`num_transformer_submodules=1`). Both
train steps use transformers' Adafactor with our settings; nothing is dropped out.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model

from benchmarks.shapes import Shapes

Run = Callable[[], dict[str, float]]


def prepare(job: str, shapes: Shapes, threads: int) -> tuple[dict[str, Any], Run]:
  """The set-up's own facts, and a function that runs the job once and times it."""
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  prepared = {"torch": torch.__version__, "transformers": transformers.__version__}
  if job == "decode":
    return prepared, _decode(shapes)
  return prepared, _train_step(shapes, prompted=job == "prompt_step")


def _model(shapes: Shapes) -> torch.nn.Module:
  return transformers.T5ForConditionalGeneration(transformers.T5Config(
    vocab_size=shapes.vocabulary, d_model=shapes.width, d_kv=shapes.head_width, d_ff=shapes.mlp,
    num_layers=shapes.layers, num_decoder_layers=shapes.layers, num_heads=shapes.heads,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
    decoder_start_token_id=0))


def _prompted(shapes: Shapes) -> torch.nn.Module:
  return get_peft_model(_model(shapes), PromptTuningConfig(
    task_type="SEQ_2_SEQ_LM", num_virtual_tokens=shapes.prompt, num_transformer_submodules=1))


def _ids(shapes: Shapes, length: int, seed: int) -> torch.Tensor:
  random = np.random.default_rng(seed)
  return torch.from_numpy(random.integers(3, shapes.vocabulary, (shapes.rows, length)))


def _train_step(shapes: Shapes, prompted: bool) -> Run:
  model = _prompted(shapes) if prompted else _model(shapes)
  model.train()
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  if prompted:
    optimizer = transformers.Adafactor(trained, lr=0.3, weight_decay=1e-5, scale_parameter=False,
                                       relative_step=False)
  else:
    optimizer = transformers.Adafactor(trained, lr=1e-3, scale_parameter=True, relative_step=False)
  inputs, targets = _ids(shapes, shapes.inputs, 0), _ids(shapes, shapes.targets, 1)
  mask = torch.ones_like(inputs)

  def run() -> dict[str, float]:
    started = time.perf_counter()
    loss = model(input_ids=inputs, attention_mask=mask, labels=targets).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = loss.item()
    return {"seconds": time.perf_counter() - started, "loss": value}

  return run


def _decode(shapes: Shapes) -> Run:
  model = _prompted(shapes).eval()
  inputs = _ids(shapes, shapes.inputs, 0)
  mask = torch.ones_like(inputs)
  # No end of sequence: every row gets all its tokens.
  model.base_model.generation_config.eos_token_id = None

  def generate(length: int) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
      ids = model.generate(input_ids=inputs, attention_mask=mask, do_sample=False, num_beams=1,
                           max_new_tokens=length)
    seconds = time.perf_counter() - started
    if ids.shape[1] != length + 1:
      raise ValueError(f"{ids.shape[1] - 1} tokens instead of {length}")
    return seconds

  def run() -> dict[str, float]:
    one, every = generate(1), generate(shapes.decode_tokens)
    # The prefill is what is left of one token's time without the token.
    token = (every - one) / (shapes.decode_tokens - 1)
    return {"seconds": every, "prefill_s": one - token}

  return run
