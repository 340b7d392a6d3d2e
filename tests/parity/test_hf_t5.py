"""Our T5 against Hugging Face's: logits, every hidden state, greedy generation, in float32.

Against goldens everywhere, and against a fresh random model where torch and transformers are
installed. The hidden states are read through the block hook, which sees each block's input.
"""

import dataclasses
import functools
import pathlib
import runpy
import tempfile

import hf_folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from prompt_tuning.checkpoints import hf, loading
from prompt_tuning.interfaces import PromptContext, PromptValues, StackValues, T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.method import PromptMethod
from prompt_tuning.t5 import T5

pytestmark = pytest.mark.parity

GOLDEN = hf_folders.GOLDEN
REGENERATE = "to regenerate: python tests/golden/make_hf_t5.py"
VERSIONS = hf_folders.VERSIONS
# Of the largest absolute value: float32 sums in another order. A live torch with MKL's kernels was
# 1.1e-5 off on an Intel CPU.
TOLERANCE = 2e-5
# U of the decoder inputs; greedy generation is shorter.
CACHE_LENGTH = 13


@struct.dataclass
class Record:
  """A block hook that changes nothing and keeps what it sees in `store`, by (stack, layer)."""

  layer: Array
  stack: str = struct.field(pytree_node=False)
  store: dict = struct.field(pytree_node=False)

  def __call__(self, x: Array, tokens: Array) -> Array:
    def keep(layer, x):
      self.store[self.stack, int(layer)] = np.asarray(x)
      return np.asarray(x)

    # Without an effect, which flax's scan does not allow; what comes back keeps the call alive.
    return jax.pure_callback(keep, jax.ShapeDtypeStruct(x.shape, x.dtype), self.layer, x)


class Recorder(PromptMethod):
  """A prompt method without virtual tokens that records."""

  store: object

  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    return PromptValues(
      encoder=self.stack("encoder", self.config.num_encoder_layers),
      decoder=self.stack("decoder", self.config.num_decoder_layers))

  def stack(self, name: str, depth: int) -> StackValues:
    return StackValues(block_input=Record(jnp.arange(depth), name, self.store.seen))


class Store:
  """Holds the recorded states until they are read; flax would freeze a plain dict field."""

  def __init__(self):
    self.seen: dict = {}

  def read(self, stack: str, depth: int) -> np.ndarray:
    return np.stack([self.seen.pop((stack, i)) for i in range(depth)])


@functools.cache
def build(config: T5Config) -> tuple[PromptedT5, Store]:
  store = Store()
  return PromptedT5(T5(config), Recorder(config, store)), store


@functools.cache
def compiled(model: PromptedT5, method: str, **static):
  """One of the model's methods, or `states_and_logits`; compiled once for golden and live runs."""
  function = getattr(model, method, None) or globals()[method]
  return jax.jit(functools.partial(model.apply, method=function, **static))


def ours(golden: dict, scan_layers: bool) -> tuple[PromptedT5, dict, Store]:
  """The golden's model, through the checkpoint reader that users have."""
  version = "1_1" if "weights/lm_head.weight" in golden else "1_0"
  with tempfile.TemporaryDirectory() as folder:
    reader = hf.HFReader(hf_folders.save_golden(pathlib.Path(folder), version, golden))
    config = dataclasses.replace(reader.config, scan_layers=scan_layers)
    backbone = loading.restore(reader, abstract_params(PromptedT5(T5(config)))["backbone"])
  model, store = build(config)
  return model, {"params": {"backbone": backbone}}, store


def assert_near(actual, wanted, what: str):
  error = np.abs(np.asarray(actual) - wanted).max() / np.abs(wanted).max()
  assert error < TOLERANCE, f"{what}: off by {error:.1e} of the largest value; {REGENERATE}"


def states_and_logits(model: PromptedT5, inputs: Array, targets: Array):
  """The last states of both stacks, and the logits, teacher-forced."""
  encoded = model.encode(inputs)
  x = model.backbone.decoder(model.backbone.embed(targets), encoded, inputs,
                             model.prompt_values(inputs).decoder, None, None, False)
  return encoded, x, model(inputs, targets, enable_dropout=False)


def check_teacher_forced(golden: dict, scan_layers: bool):
  model, params, store = ours(golden, scan_layers)
  run = compiled(model, "states_and_logits")
  encoded, decoded, logits = run(params, golden["inputs"], golden["targets"])
  assert_near(logits, golden["logits"], "logits")
  for stack, last in (("encoder", encoded), ("decoder", decoded)):
    wanted = golden[f"{stack}_states"]
    seen = store.read(stack, len(wanted) - 1)
    for i, state in enumerate([*seen, last]):
      assert_near(state, wanted[i], f"{stack} state {i}")


def check_cached_steps(golden: dict, scan_layers: bool):
  model, params, store = ours(golden, scan_layers)
  inputs, targets = golden["inputs"], golden["targets"]
  cache = compiled(model, "start_decoding", max_decode_length=CACHE_LENGTH)(params, inputs)
  step = compiled(model, "decode_step")
  for u in range(targets.shape[1]):
    logits, cache = step(params, targets[:, u:u + 1], cache, inputs)
    # Tolerances are of the largest value of the whole array, as for the teacher-forced pass.
    wanted = golden["logits"].copy()
    wanted[:, u] = logits
    assert_near(wanted, golden["logits"], f"logits of step {u}")
    states = golden["decoder_states"][:-1].copy()
    states[:, :, u:u + 1] = store.read("decoder", len(states))
    for i, state in enumerate(states):
      assert_near(state, golden["decoder_states"][i], f"decoder state {i} of step {u}")


def check_greedy(golden: dict):
  model, params, _ = ours(golden, scan_layers=True)
  inputs, wanted = golden["inputs"], golden["greedy"]
  cache = compiled(model, "start_decoding", max_decode_length=CACHE_LENGTH)(params, inputs)
  step = compiled(model, "decode_step")
  tokens, ended, written = np.zeros((len(inputs), 1), np.int32), np.zeros(len(inputs), bool), []
  for _ in range(wanted.shape[1]):
    logits, cache = step(params, tokens, cache, inputs)
    choice = np.where(ended, 0, np.asarray(logits).argmax(-1))
    ended |= choice == 1
    written.append(choice)
    tokens = choice[:, None].astype(np.int32)
  np.testing.assert_array_equal(np.stack(written, 1), wanted, err_msg=REGENERATE)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("version", VERSIONS)
def test_teacher_forced(version, scan_layers):
  check_teacher_forced(hf_folders.golden(version), scan_layers)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("version", VERSIONS)
def test_cached_steps(version, scan_layers):
  check_cached_steps(hf_folders.golden(version), scan_layers)


@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_generation(version):
  golden = hf_folders.golden(version)
  assert len(np.unique(golden["greedy"])) > 4, "a golden that repeats itself shows little"
  check_greedy(golden)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
def test_cache_collection(scan_layers):
  """T5X's way: the cache is made from a batch of ones, then one token a call."""
  golden = hf_folders.golden("1_1")
  model, params, _ = ours(golden, scan_layers)
  inputs, targets = golden["inputs"], golden["targets"]
  make = functools.partial(model.apply, decode=True, enable_dropout=False, mutable=["cache"])
  _, cache = jax.jit(make)(params, np.ones_like(inputs), np.ones_like(targets))
  encoded = compiled(model, "encode")(params, inputs)
  step = jax.jit(functools.partial(make, method=model.decode, max_decode_length=CACHE_LENGTH))
  logits = []
  for u in range(targets.shape[1]):
    one, cache = step({**params, **cache}, encoded, inputs, targets[:, u:u + 1])
    logits.append(one)
  assert_near(jnp.concatenate(logits, axis=1), golden["logits"], "logits of the cached steps")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", VERSIONS)
def test_live(version):
  pytest.importorskip("torch", reason="the live comparison needs torch")
  pytest.importorskip("transformers", reason="the live comparison needs transformers")
  make = runpy.run_path(str(GOLDEN / "make_hf_t5.py"))
  fresh = make["record"](make["build"](version, seed=1), seed=1)
  assert np.abs(fresh["logits"] - hf_folders.golden(version)["logits"]).max() > 0.1
  check_teacher_forced(fresh, scan_layers=True)
  check_cached_steps(fresh, scan_layers=True)
  check_greedy(fresh)
