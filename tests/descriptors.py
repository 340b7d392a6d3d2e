"""One row a prompt method: the table that drives the tests which every method has to pass.

A new method adds its row here; tests/test_prompted.py does the rest.
"""

import atexit
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from dummy_prompts import BlockInputPrompt, KeyValuePrompt, ProductPrompt
from flax import linen as nn

from prompt_tuning import trees
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params, add_virtual_tokens
from prompt_tuning.prompts.adapter import Adapter
from prompt_tuning.prompts.attempt import AttemptPrompt
from prompt_tuning.prompts.combined import Combined
from prompt_tuning.prompts.deep import DeepPrompt
from prompt_tuning.prompts.ia3 import IA3
from prompt_tuning.prompts.lora import Lora
from prompt_tuning.prompts.low_rank import LowRankPrompt
from prompt_tuning.prompts.multitask import MultitaskPrompt
from prompt_tuning.prompts.prefix import PrefixPrompt
from prompt_tuning.prompts.ptuning import PTuning
from prompt_tuning.prompts.residual import ResidualPrompt
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.prompts.warp import WarpPrompt
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
    starts_constant: regular expression on paths of leaves that start at one value (biases, the
      second factor of a low-rank product).
    in_front: virtual tokens stand in front.
  """

  name: str
  make: Callable[[T5Config, int], nn.Module]
  num_prompts: int = 1
  is_dummy: bool = False
  starts_constant: str = "nothing"
  in_front: bool = True

  def model(self, **changes) -> PromptedT5:
    in_front = changes.pop("prompt_in_front", self.in_front)
    config = dataclasses.replace(CONFIG, **changes)
    return PromptedT5(T5(config), self.make(config, self.num_prompts), in_front)


def _soft(config: T5Config, num_prompts: int) -> nn.Module:
  return SoftPrompt(config, LENGTH, num_prompts=num_prompts)


def _key_values(config: T5Config, num_prompts: int) -> nn.Module:
  return KeyValuePrompt(config, LENGTH, num_prompts)


def _lora(config: T5Config, num_prompts: int) -> nn.Module:
  return Lora(config, rank=2, alpha=1.0, targets=(".*/(query|value|wo)", ".*/key[1:]"))


def _combined(config: T5Config, num_prompts: int) -> nn.Module:
  return Combined(config, {"soft": _soft(config, 1), "lora": Lora(config, rank=2, alpha=1.0)})


@functools.cache
def _source_prompts() -> tuple[str, ...]:
  """Files of two random prompts, as long as the process runs."""
  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder)
  for i in range(2):
    np.save(f"{folder}/{i}.npy", np.random.default_rng(i).normal(size=(LENGTH, CONFIG.emb_dim)))
  return tuple(f"{folder}/{i}.npy" for i in range(2))


def _attempt(config: T5Config, num_prompts: int) -> nn.Module:
  return AttemptPrompt(config, LENGTH, sources=_source_prompts(), hidden=5, temperature=1.0)


CASES = (
  Case("soft", _soft),
  Case("soft_bank", _soft, NUM_PROMPTS),
  Case("prefix", lambda config, _: PrefixPrompt(config, LENGTH, hidden=5),
       starts_constant=".*_bias_(in|out)"),
  Case("prefix_bank", lambda config, n: PrefixPrompt(config, LENGTH, num_prompts=n), NUM_PROMPTS),
  Case("deep", lambda config, _: DeepPrompt(config, LENGTH)),
  Case("deep_bank", lambda config, n: DeepPrompt(config, LENGTH, "add", num_prompts=n),
       NUM_PROMPTS),
  Case("lora", _lora, starts_constant=".*/b"),
  Case("ia3", lambda config, _: IA3(config), starts_constant=".*"),
  Case("adapter", lambda config, _: Adapter(config, hidden=5), starts_constant=".*/(.*bias|up)"),
  Case("combined", _combined, starts_constant=".*/b"),
  Case("ptuning", lambda config, _: PTuning(config, LENGTH, hidden=7)),
  Case("ptuning_mlp", lambda config, _: PTuning(config, LENGTH, encoder="mlp", hidden=7)),
  Case("low_rank", lambda config, _: LowRankPrompt(config, LENGTH, rank=2)),
  Case("residual", lambda config, _: ResidualPrompt(config, LENGTH, hidden=5),
       starts_constant="norm_.*"),
  Case("residual_separate", lambda config, _: ResidualPrompt(config, LENGTH, hidden=5,
                                                             shared=False),
       starts_constant="norm_.*"),
  Case("multitask", lambda config, n: MultitaskPrompt(config, LENGTH, num_prompts=n), NUM_PROMPTS,
       starts_constant="columns|rows"),
  Case("attempt", _attempt, starts_constant="norm_.*"),
  Case("warp", lambda config, _: WarpPrompt(config, LENGTH, labels=("a", "b c", "d e c"),
                                            label_ids=((5,), (6, 7), (8, 9, 7))),
       starts_constant="verbalizer"),
  Case("key_values", _key_values, NUM_PROMPTS, is_dummy=True),
  Case("products", lambda config, _: ProductPrompt(config), is_dummy=True),
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
    scale = 0.5 if path.startswith("prompt/") else (
      shape.shape[-2] ** -0.5 if path.endswith("/kernel") else 1.0)
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
  return jax.jit(functools.partial(run, model))


def loss(model: PromptedT5, prompt: dict, backbone: dict, batch: dict) -> jax.Array:
  """A weighted sum of the logits; random weights, so that no gradient vanishes by symmetry."""
  _, logits = run(model, {"backbone": backbone, "prompt": prompt}, batch)
  weights = np.random.default_rng(2).normal(size=logits.shape).astype(np.float32)
  return jnp.sum(weights * logits)


@functools.cache
def loss_and_gradient(model: PromptedT5) -> Callable:
  """`(prompt, backbone, batch) -> (loss, gradient of the prompt)`, compiled once a model."""
  return jax.jit(jax.value_and_grad(functools.partial(loss, model)))
