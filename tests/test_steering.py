"""Steering and its settings: against loops in NumPy, and the identities at strength 0."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import steering
from prompt_tuning.attribute_model import AttributeModel
from prompt_tuning.control import Discriminator, Experts, Gradients
from prompt_tuning.ensembles import label_values
from prompt_tuning.errors import UserError
from prompt_tuning.examples import of_mixed_lines
from prompt_tuning.generation import Decoding

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(3, 4, 7)).astype(np.float32)  # [N, B, V]
LABELS = ("calm", "loud")


def log_softmax(row):
  return row - np.log(sum(np.exp(value) for value in row))


@pytest.fixture
def attribute_file(tmp_path):
  path = str(tmp_path / "attribute.npz")
  AttributeModel(LABELS, RANDOM.normal(size=(5, 2)).astype(np.float32),
                 np.zeros(2, np.float32)).write(path)
  return path


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_experts_equal_a_loop(copies, strength):
  found = steering.Experts(jnp.float32(strength), copies).combine(jnp.asarray(LOGITS[:copies]))
  for b in range(4):
    against = LOGITS[2, b] if copies == 3 else LOGITS[0, b]
    wanted = LOGITS[0, b] + strength * (log_softmax(LOGITS[1, b]) - log_softmax(against))
    np.testing.assert_allclose(found[b], wanted, atol=1e-5)


@pytest.mark.parametrize("copies", [2, 3])
def test_experts_of_strength_0_are_the_base(copies):
  found = steering.Experts(jnp.float32(0.0), copies).combine(jnp.asarray(LOGITS[:copies]))
  np.testing.assert_array_equal(found, LOGITS[0])


def test_an_expert_alone_at_strength_1_is_the_expert():
  found = steering.Experts(jnp.float32(1.0), 2).combine(jnp.asarray(LOGITS[:2]))
  for b in range(4):
    np.testing.assert_allclose(log_softmax(np.asarray(found[b])), log_softmax(LOGITS[1, b]),
                               atol=1e-5)


def test_a_mean_is_of_probabilities():
  found = steering.Mean(3).combine(jnp.asarray(LOGITS))
  for b in range(4):
    wanted = sum(np.exp(log_softmax(LOGITS[n, b])) for n in range(3)) / 3
    np.testing.assert_allclose(np.exp(found[b]), wanted, atol=1e-6)


def test_an_ensemble_of_one_is_the_plain_model():
  np.testing.assert_array_equal(steering.Mean(1).combine(jnp.asarray(LOGITS[:1])), LOGITS[0])
  values = label_values(np.stack([[log_softmax(row) for row in LOGITS[0]]]))
  for how in ("majority_vote", "mean_probability"):
    np.testing.assert_array_equal(values[how].argmax(axis=-1), LOGITS[0].argmax(axis=-1))


def test_no_control_reads_or_steers_at_strength_0():
  # The files do not exist: nothing may be read.
  expert = Experts(strength=0.0, expert="missing.npy", anti_expert="missing.npy")
  assert expert.steering() is None and expert.prompts() == []
  for control in (Discriminator, Gradients):
    assert control(strength=0.0, attribute_model="missing.npz", attribute="loud").steering() is None


def test_an_attribute_model_is_read_as_it_was_written(attribute_file):
  model = AttributeModel.read(attribute_file)
  assert model.labels == LABELS
  mean = RANDOM.normal(size=(3, 5)).astype(np.float32)
  found = steering.AttributeHead(jnp.asarray(model.kernel), jnp.asarray(model.bias)).log_probs(mean)
  for row, vector in zip(found, mean, strict=True):
    logits = [sum(vector[d] * model.kernel[d, c] for d in range(5)) for c in range(2)]
    np.testing.assert_allclose(row, log_softmax(np.array(logits)), atol=1e-5)


def test_unknown_names_are_answered_with_the_nearest(attribute_file, tmp_path):
  with pytest.raises(UserError, match="does not know this ATTRIBUTE") as caught:
    Discriminator(attribute_model=attribute_file, attribute="lout").check(Decoding(), 5)
  assert "loud" in caught.value.fix
  with pytest.raises(UserError, match="of another backbone"):
    Gradients(attribute_model=attribute_file, attribute="loud").check(Decoding(), 8)
  with pytest.raises(UserError, match="does not go with beams"):
    Gradients(attribute_model=attribute_file, attribute="loud").check(Decoding(strategy="beam"), 5)
  with pytest.raises(UserError, match="ATTRIBUTE_MODEL cannot be read"):
    AttributeModel.read(str(tmp_path / "missing.npz"))
  with pytest.raises(UserError, match="of a task that has no prompt") as caught:
    of_mixed_lines(["sst3\ta film"], {"sst2": 0, "e2e": 0}, None)
  assert "sst2" in caught.value.fix
