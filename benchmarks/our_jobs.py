"""Our side of the benchmark: what `prompt-tuning train` and `infer` compile, on random weights."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import Shapes
from prompt_tuning import generation
from prompt_tuning.host_memory import return_unused_memory
from prompt_tuning.interfaces import T5Config
from prompt_tuning.optimizers import Adafactor
from prompt_tuning.plan.hlo import matmul_flop
from prompt_tuning.prompted import PromptedT5, abstract_params, add_virtual_tokens, init_backbone
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5
from prompt_tuning.train_state import LossConfig, make_train_step, new_state
from prompt_tuning.trees import plan_split

PEAK_SIZE = 2048
Run = Callable[[], dict[str, float]]


def prepare(job: str, shapes: Shapes, threads: int) -> tuple[dict[str, Any], Run]:
  """What the compiler made of a job, and a function that runs it once and times it."""
  if jax.local_device_count() != 1:
    raise ValueError("the benchmark wants one CPU device: unset XLA_FLAGS")
  prepare_job = {"prompt_step": _prompt_step, "model_step": _model_step, "decode": _decode,
                 "peak": _peak}[job]
  return prepare_job(shapes)


def config(shapes: Shapes) -> T5Config:
  return T5Config(vocab_size=shapes.vocabulary, emb_dim=shapes.width, num_heads=shapes.heads,
                  head_dim=shapes.head_width, mlp_dim=shapes.mlp,
                  num_encoder_layers=shapes.layers, num_decoder_layers=shapes.layers,
                  scan_layers=shapes.scan_layers)


def tokens(shapes: Shapes, length: int, seed: int) -> np.ndarray:
  """`[B, length]` ids without padding or end of sequence."""
  random = np.random.default_rng(seed)
  return random.integers(3, shapes.vocabulary, (shapes.rows, length)).astype(np.int32)


def _prompted(shapes: Shapes) -> tuple[PromptedT5, dict]:
  model = PromptedT5(T5(config(shapes)), SoftPrompt(config(shapes), shapes.prompt))
  table = np.random.default_rng(0).uniform(-0.5, 0.5, (shapes.prompt, shapes.width))
  return model, {"backbone": init_backbone(jax.random.key(0), config(shapes)),
                 "prompt": {"embedding": jnp.asarray(table, jnp.float32)}}


def _prompt_step(shapes: Shapes) -> tuple[dict, Run]:
  model, params = _prompted(shapes)
  return _train_step(model, params, (), Adafactor(), shapes)


def _model_step(shapes: Shapes) -> tuple[dict, Run]:
  # Adafactor has work for every leaf: of layers one by one it takes longer to compile than T5.
  shapes = dataclasses.replace(shapes, scan_layers=True)
  optimizer = Adafactor(learning_rate=1e-3, multiply_by_parameter_scale=True,
                        weight_decay_rate=None)
  params = {"backbone": init_backbone(jax.random.key(0), config(shapes))}
  return _train_step(PromptedT5(T5(config(shapes))), params, (".*",), optimizer, shapes)


def _train_step(model: PromptedT5, params: dict, trained: tuple[str, ...], optimizer: Adafactor,
                shapes: Shapes) -> tuple[dict, Run]:
  split = plan_split(abstract_params(model), trained)
  trainable, frozen = split.split(params)
  transformation = optimizer.build(trainable)
  state = new_state(trainable, transformation)
  step = make_train_step(model, split, optimizer, transformation, LossConfig(), seed=0)
  targets = tokens(shapes, shapes.targets, 1)
  inputs = add_virtual_tokens(jnp.asarray(tokens(shapes, shapes.inputs, 0)),
                              model.num_virtual_tokens)
  batch = jax.device_put({
    "encoder_input_tokens": inputs, "decoder_target_tokens": targets,
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_loss_weights": np.ones(targets.shape, np.float32)})
  began = time.perf_counter()
  compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
  prepared = {"compile_s": time.perf_counter() - began,
              "matmul_gflop": matmul_flop(compiled.as_text()) / 1e9}
  return_unused_memory()

  def run() -> dict[str, float]:
    nonlocal state
    started = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, frozen, batch))
    seconds = time.perf_counter() - started
    if state.step == 1:
      return_unused_memory()  # As `Trainer` does, twice.
    return {"seconds": seconds, "loss": float(metrics["loss"])}

  return prepared, run


def _decode(shapes: Shapes) -> tuple[dict, Run]:
  model, params = _prompted(shapes)
  inputs = add_virtual_tokens(jnp.asarray(tokens(shapes, shapes.inputs, 0)), shapes.prompt)
  length = shapes.decode_tokens

  def generate(params, inputs):
    return generation.generate(model, params, inputs, max_length=length)

  def prefill(params, inputs):
    return model.apply({"params": params}, inputs, length, method="start_decoding")

  began = time.perf_counter()
  compiled = jax.jit(generate).lower(params, inputs).compile()
  compile_s = time.perf_counter() - began
  compiled_prefill = jax.jit(prefill).lower(params, inputs).compile()

  def run() -> dict[str, float]:
    started = time.perf_counter()
    jax.block_until_ready(compiled_prefill(params, inputs))
    prefilled = time.perf_counter()
    ids = jax.block_until_ready(compiled(params, inputs))
    ended = time.perf_counter()
    if not (np.asarray(ids) != 0).any(axis=0).all():
      raise ValueError("every row ended early: choose another seed")
    return {"seconds": ended - prefilled, "prefill_s": prefilled - started}

  return {"compile_s": compile_s,
          "matmul_gflop": matmul_flop(compiled.as_text(), unknown_trips=length) / 1e9}, run


def _peak(shapes: Shapes) -> tuple[dict, Run]:
  square = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE))
  product = jax.jit(lambda a: a @ a)

  def run() -> dict[str, float]:
    times = []
    for _ in range(3):
      started = time.perf_counter()
      jax.block_until_ready(product(square))
      times.append(time.perf_counter() - started)
    return {"seconds": min(times), "gflops": 2 * PEAK_SIZE**3 / min(times) / 1e9}

  return {}, run
