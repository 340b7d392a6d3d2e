"""One row a prompt method: the table that drives the tests which every method has to pass.

A new method adds its row here; tests/test_prompted.py does the rest.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from dummy_prompts import BlockInputPrompt, KeyValuePrompt, LowRankPrompt
from flax import linen as nn

from prompt_tuning import trees
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params, add_virtual_tokens
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

# No size is the product or the neighbour of another, so that a shape tells what a tensor is.
SIZES = dict(vocab_size=20, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12, num_encoder_layers=2,
             num_decoder_layers=3, relative_attention_num_buckets=6,
             relative_attention_max_distance=5)
CONFIG = T5Config(**SIZES)
LENGTH = 3
NUM_PROMPTS = 3


@dataclasses.dataclass(frozen=True)
class Case:
  """A prompt method.

  Attributes:
    name: of the row; for a method of the library that of its gin file.
    make: `(config, num_prompts) -> module`.
    num_prompts: N; above 1 every row of the batch names its prompt.
    is_dummy: exists in the tests only.
  """

  name: str
  make: Callable[[T5Config, int], nn.Module]
  num_prompts: int = 1
  is_dummy: bool = False

  def model(self, **changes) -> PromptedT5:
    in_front = changes.pop("prompt_in_front", True)
    config = dataclasses.replace(CONFIG, **changes)
    return PromptedT5(T5(config), self.make(config, self.num_prompts), in_front)


def _soft(config: T5Config, num_prompts: int) -> nn.Module:
  return SoftPrompt(config, LENGTH, num_prompts=num_prompts)


def _key_values(config: T5Config, num_prompts: int) -> nn.Module:
  return KeyValuePrompt(config, LENGTH, num_prompts)


CASES = (
  Case("soft", _soft),
  Case("soft_bank", _soft, NUM_PROMPTS),
  Case("key_values", _key_values, NUM_PROMPTS, is_dummy=True),
  Case("low_rank", lambda config, _: LowRankPrompt(config), is_dummy=True),
  Case("block_input", lambda config, _: BlockInputPrompt(config), is_dummy=True),
)


def batch(model: PromptedT5) -> dict[str, np.ndarray]:
  """Four rows with padding; decoder inputs without id 0; three prompts, each in use."""
  random = np.random.default_rng(1)
  tokens = random.integers(2, 20, (4, 7)).astype(np.int32)
  for row, length in zip(tokens, (7, 5, 3, 6), strict=True):
    row[length:] = 0
  return {"tokens": np.asarray(add_virtual_tokens(tokens, model.num_virtual_tokens)),
          "decoder_tokens": random.integers(2, 20, (4, 4)).astype(np.int32),
          "prompt_ids": np.array([0, 2, 1, 2], np.int32)}


@functools.cache
def random_params(model: PromptedT5, seed: int = 0) -> dict:
  """Random leaves of a trained model's size; the same backbone for every method. Not to be edited.
  """
  def leaf(path: str, shape) -> np.ndarray:
    random = np.random.default_rng([seed, *path.encode()])
    if path.endswith("/scale"):
      return random.uniform(0.5, 1.5, shape.shape).astype(np.float32)
    scale = {"prompt": 0.5, "kernel": shape.shape[-2] ** -0.5}.get(
      "prompt" if path.startswith("prompt/") else path.rsplit("/", 1)[-1], 1.0)
    return (scale * random.normal(size=shape.shape)).astype(np.float32)

  return trees.map_with_path(leaf, abstract_params(model))


def unstacked(params: dict) -> dict:
  """The backbone in the layout of `scan_layers=False`."""
  flat = {}
  for path, leaf in trees.flatten(params).items():
    if path.startswith("backbone/") and "/layers/" in path:
      flat |= {path.replace("/layers/", f"/layers_{i}/"): x for i, x in enumerate(leaf)}
    else:
      flat[path] = leaf
  return trees.unflatten(flat)


def fast_jit(function: Callable, **arguments) -> Callable:
  """`jax.jit` that spends little on optimising: tests compile much and run it a few times."""
  return jax.jit(function, **arguments, compiler_options={
    "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


def run(model: PromptedT5, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
  """(encoded `[B, S, D]`, logits `[B, U, V]`), not compiled as a whole."""
  tokens, decoder_tokens, prompt_ids = (
    jax.tree.map(jnp.asarray, batch[name]) for name in ("tokens", "decoder_tokens", "prompt_ids"))

  def both(module):
    encoded = module.encode(tokens, prompt_ids=prompt_ids)
    return encoded, module.decode(encoded, tokens, decoder_tokens, enable_dropout=False,
                                  prompt_ids=prompt_ids)

  return model.apply({"params": params}, method=both)


@functools.cache
def forward(model: PromptedT5) -> Callable:
  """`run`, compiled once a model: `(params, batch) -> (encoded, logits)`."""
  return fast_jit(functools.partial(run, model))


def loss(model: PromptedT5, prompt: dict, backbone: dict, batch: dict) -> jax.Array:
  """A weighted sum of the logits; random weights, so that no gradient vanishes by symmetry."""
  _, logits = run(model, {"backbone": backbone, "prompt": prompt}, batch)
  weights = np.random.default_rng(2).normal(size=logits.shape).astype(np.float32)
  return jnp.sum(weights * logits)


@functools.cache
def loss_and_gradient(model: PromptedT5) -> Callable:
  """`(prompt, backbone, batch) -> (loss, gradient of the prompt)`, compiled once a model."""
  return fast_jit(jax.value_and_grad(functools.partial(loss, model)))
