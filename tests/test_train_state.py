"""The step against a plain implementation, and what it must not do to frozen weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from descriptors import CASES, batch, random_params

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.optimizers import Adafactor, AdamW
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5
from prompt_tuning.train_state import LossConfig, make_train_step, new_state, purpose_key
from prompt_tuning.trees import plan_split

CASE = {case.name: case for case in CASES}
Z_LOSS = 1e-2  # large enough to be seen
BIG = T5Config(vocab_size=96, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64,
               num_encoder_layers=2, num_decoder_layers=2)


def training_batch(model):
  """Four rows; targets of different lengths, and what the decoder reads."""
  data = batch(model)
  targets = data["decoder_tokens"].copy()
  for row, length in zip(targets, (4, 1, 3, 2), strict=True):
    row[length:] = 0
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  made = {"encoder_input_tokens": data["tokens"], "decoder_input_tokens": shifted,
          "decoder_target_tokens": targets,
          "decoder_loss_weights": (targets != 0).astype(np.float32)}
  if model.prompt is not None and model.prompt.num_prompts > 1:
    made["prompt_ids"] = data["prompt_ids"]
  return made


@dataclasses.dataclass
class Setup:
  """A compiled step with its state; `traces` counts how often it was traced."""

  model: PromptedT5
  patterns: tuple = ()
  optimizer: Adafactor | AdamW = Adafactor()
  loss: LossConfig = LossConfig(z_loss=Z_LOSS)
  seed: int = 0
  traces: int = 0

  def __post_init__(self):
    self.split = plan_split(abstract_params(self.model), self.patterns)
    params = jax.tree.map(jnp.asarray, random_params(self.model))
    self.trainable, self.frozen = self.split.split(params)
    self.transformation = self.optimizer.build(self.trainable)
    self.state = new_state(self.trainable, self.transformation)
    step = make_train_step(self.model, self.split, self.optimizer, self.transformation, self.loss,
                           self.seed)

    def counted(*args):
      self.traces += 1
      return step(*args)

    self.step = jax.jit(counted, donate_argnums=0)

  def start(self):
    """A state that the step may consume."""
    return jax.tree.map(jnp.copy, self.state)


@pytest.fixture(scope="module")
def soft():
  return Setup(CASE["soft"].model())


def plain_loss(model, params, data, z_loss=Z_LOSS):
  """Log-softmax, written out; per real target token. Returns (loss, (z part, accuracy))."""
  logits = model.apply({"params": params}, data["encoder_input_tokens"],
                       data["decoder_input_tokens"], enable_dropout=False)
  real = data["decoder_target_tokens"] != 0
  log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
  picked = jnp.sum(logits * jax.nn.one_hot(data["decoder_target_tokens"], logits.shape[-1]), -1)
  z = jnp.sum(jnp.where(real, z_loss * log_z ** 2, 0.0)) / real.sum()
  right = jnp.where(real, logits.argmax(-1) == data["decoder_target_tokens"], False)
  loss = jnp.sum(jnp.where(real, log_z - picked, 0.0)) / real.sum() + z
  return loss, (z, right.sum() / real.sum())


def test_two_steps_equal_plain_gradients_of_everything_and_optax(soft):
  setup = soft
  data = training_batch(setup.model)
  params = jax.tree.map(jnp.asarray, random_params(setup.model))
  # optax's own Adafactor with the settings of the paper.
  optimizer = optax.adafactor(0.3, decay_rate=0.8, multiply_by_parameter_scale=False,
                              factored=False, weight_decay_rate=1e-5)
  opt_state = optimizer.init(params["prompt"])
  gradient = jax.jit(jax.value_and_grad(functools.partial(plain_loss, setup.model), has_aux=True))
  state = setup.start()
  for _ in range(2):
    (loss, (z, accuracy)), gradients = gradient(params, data)
    state, metrics = setup.step(state, setup.frozen, data)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["z_loss"], z, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy)
    norm = np.sqrt(np.square(gradients["prompt"]["embedding"]).sum())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert metrics["tokens"] == 10 and metrics["learning_rate"] == np.float32(0.3)
    updates, opt_state = optimizer.update(gradients["prompt"], opt_state, params["prompt"])
    params["prompt"] = optax.apply_updates(params["prompt"], updates)
    np.testing.assert_allclose(state.trainable["prompt"]["embedding"],
                               params["prompt"]["embedding"], rtol=1e-4, atol=1e-5)
  assert state.step == 2 and setup.traces == 1


def test_microbatches_equal_one_piece(soft):
  model = soft.model
  pieces = Setup(model, loss=LossConfig(z_loss=Z_LOSS, num_microbatches=4))
  data = training_batch(model)
  (state, metrics), (other, others) = (s.step(s.start(), s.frozen, data) for s in (soft, pieces))
  for name, value in metrics.items():
    np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(other.trainable["prompt"]["embedding"],
                             state.trainable["prompt"]["embedding"], rtol=1e-4, atol=1e-5)
  with pytest.raises(UserError, match="num_microbatches is not a count"):
    LossConfig(num_microbatches=0)


def test_a_batch_of_padding_changes_nothing_but_the_weight_decay(soft):
  data = {name: np.zeros_like(x) for name, x in training_batch(soft.model).items()}
  state, metrics = soft.step(soft.start(), soft.frozen, data)
  assert metrics["loss"] == metrics["tokens"] == metrics["grad_norm"] == 0.0
  np.testing.assert_allclose(state.trainable["prompt"]["embedding"],
                             (1 - 1e-5) * soft.trainable["prompt"]["embedding"], rtol=1e-6)


def test_only_rows_of_the_bank_that_were_used_move():
  setup = Setup(CASE["soft_bank"].model(), optimizer=AdamW())
  data = training_batch(setup.model) | {"prompt_ids": np.array([0, 2, 2, 0], np.int32)}
  state, _ = setup.step(setup.start(), setup.frozen, data)
  moved = np.asarray(state.trainable["prompt"]["embedding"]
                     != setup.trainable["prompt"]["embedding"]).any(axis=(1, 2))
  assert moved.tolist() == [True, False, True]


def test_a_slice_of_the_layers():
  setup = Setup(CASE["soft"].model(), patterns=("decoder/layers/mlp/.*[1:2]",), optimizer=AdamW())
  state, _ = setup.step(setup.start(), setup.frozen, training_batch(setup.model))
  after = trees.flatten(setup.split.merge(state.trainable, setup.frozen))
  for path, before in trees.flatten(random_params(setup.model)).items():
    changed = np.asarray(after[path] != before)
    if path.startswith("backbone/decoder/layers/mlp/"):
      assert changed.any(axis=tuple(range(1, changed.ndim))).tolist() == [False, True, False], path
    else:
      assert changed.any() == path.startswith("prompt/"), path


def test_dropout_depends_on_the_step_and_the_seed():
  model = CASE["soft"].model(dropout_rate=0.5)
  setup, data = Setup(model, optimizer=AdamW(learning_rate=1e-12)), training_batch(model)
  losses = [setup.step(setup.start().replace(step=jnp.int32(step)), setup.frozen, data)[1]["loss"]
            for step in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]
  keys = {tuple(jax.random.key_data(purpose_key(seed, name)).tolist())
          for seed in (0, 1) for name in ("init", "prompt", "dropout", "sampling")}
  assert len(keys) == 8


def abstract_step(model, patterns):
  """The lowered step of shapes alone, its arguments and its results."""
  params = abstract_params(model)
  split = plan_split(params, patterns)
  trainable, frozen = split.split(params) if not patterns else (params, {})
  optimizer = AdamW()
  transformation = optimizer.build(trainable)
  state = jax.eval_shape(lambda t: new_state(t, transformation), trainable)
  step = make_train_step(model, split, optimizer, transformation, LossConfig(), 0)
  tokens = jax.ShapeDtypeStruct((4, model.num_virtual_tokens + 16), jnp.int32)
  targets = jax.ShapeDtypeStruct((4, 8), jnp.int32)
  data = {"encoder_input_tokens": tokens, "decoder_input_tokens": targets,
          "decoder_target_tokens": targets,
          "decoder_loss_weights": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
  lowered = jax.jit(step, donate_argnums=0).lower(state, frozen, data)
  return lowered, state, frozen, jax.eval_shape(step, state, frozen, data)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_frozen_weights_cost_no_gradient_no_output_and_no_copy(scan_layers):
  layers = 2 if scan_layers else 1  # a loop of one layer would be no loop
  config = dataclasses.replace(BIG, scan_layers=scan_layers, num_encoder_layers=layers,
                               num_decoder_layers=layers)
  backbone = T5(config)
  lowered, state, frozen, (out_state, metrics) = abstract_step(
    PromptedT5(backbone, SoftPrompt(config, length=4)), ())
  # The outputs are the state's own shapes, and scalars.
  assert jax.tree.map(lambda x: x.shape, out_state) == jax.tree.map(lambda x: x.shape, state)
  assert all(x.shape == () for x in metrics.values())
  assert trees.count(out_state.trainable) == 4 * 32
  (state_info, frozen_info, batch_info), _ = lowered.args_info
  assert all(info.donated for info in jax.tree.leaves(state_info))
  assert not any(info.donated for info in jax.tree.leaves((frozen_info, batch_info)))
  assert len(jax.tree.leaves(frozen_info)) == len(jax.tree.leaves(frozen)) > 10
  # A backward pass of frozen weights is one product a layer, not two: 2/3 of the whole.
  prompt = lowered.compile().cost_analysis()["flops"]
  model = abstract_step(PromptedT5(backbone, SoftPrompt(config, length=4)), (".*",))[0]
  assert prompt < 0.8 * model.compile().cost_analysis()["flops"]


def test_metrics_norms_and_clipping_cost_a_hundredth_of_the_step_at_most():
  """All operations, not only products, against plain descent on optax's cross-entropy."""
  config = T5Config(vocab_size=512, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256,
                    num_encoder_layers=2, num_decoder_layers=2, scan_layers=False)
  model = PromptedT5(T5(config), SoftPrompt(config, 20))
  split = plan_split(abstract_params(model), ())
  trainable, frozen = jax.eval_shape(split.split, abstract_params(model))
  ids = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
  data = {"encoder_input_tokens": ids((8, 84)), "decoder_input_tokens": ids((8, 16)),
          "decoder_target_tokens": ids((8, 16)),
          "decoder_loss_weights": jax.ShapeDtypeStruct((8, 16), jnp.float32)}
  optimizer = Adafactor(clip_norm=1.0)
  transformation = optimizer.build(trainable)
  step = make_train_step(model, split, optimizer, transformation,
                         LossConfig(z_loss=1e-4, label_smoothing=0.1), seed=0)

  def bare(prompt, frozen, data):
    def loss(prompt):
      logits = model.apply({"params": split.merge(prompt, frozen)}, data["encoder_input_tokens"],
                           data["decoder_input_tokens"], enable_dropout=False)
      return jnp.sum(data["decoder_loss_weights"] * (
        optax.softmax_cross_entropy_with_integer_labels(logits, data["decoder_target_tokens"])))
    return jax.tree.map(lambda x, g: x - 0.1 * g, prompt, jax.grad(loss)(prompt))

  def operations(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

  state = jax.eval_shape(lambda tree: new_state(tree, transformation), trainable)
  assert operations(step, state, frozen, data) <= 1.01 * operations(bare, trainable, frozen, data)


def test_the_frozen_arrays_survive_and_nothing_is_compiled_again(soft):
  data, state = training_batch(soft.model), soft.start()
  first = state
  for _ in range(3):
    state, _ = soft.step(state, soft.frozen, data)
  assert first.trainable["prompt"]["embedding"].is_deleted()
  backbone = random_params(soft.model)["backbone"]
  assert trees.differences(soft.frozen["backbone"], backbone) == []
  assert soft.traces == 1
