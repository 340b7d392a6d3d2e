"""Recovered sentences: a batch against each sentence alone by a plain loop; the command's files."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import CONFIG, GIN, backbone, save_backbone

from prompt_tuning import recovery
from prompt_tuning.converter import shift_right
from prompt_tuning.main import main
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

STEPS, RATE, P = 4, 0.1, 2


def test_a_batch_equals_each_sentence_alone():
  targets = np.array([[70, 71, 72, 1, 0], [80, 81, 1, 0, 0]], np.int32)
  start = np.random.default_rng(0).normal(size=(2, P, 16)).astype(np.float32)
  params = jax.tree.map(jnp.asarray, backbone(1))
  bank = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, P, num_prompts=2))
  together, _ = recovery.optimise(
    params, start, recovery.encoder_tokens(2, P, 1), targets, shift_right(targets), RATE,
    model=bank, steps=STEPS)
  alone = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, P))
  schedule = optax.linear_schedule(RATE, 0.0, STEPS)
  adam = optax.adam(schedule)
  for i in range(2):
    row = targets[i:i + 1]

    def loss(vectors, row=row):
      logits = alone.apply({"params": {"backbone": params, "prompt": {"embedding": vectors}}},
                           recovery.encoder_tokens(1, P, 1), shift_right(row),
                           enable_dropout=False)
      picked = jnp.take_along_axis(jax.nn.log_softmax(logits), row[..., None], axis=-1)[..., 0]
      return -(picked * (row != 0)).sum() / (row != 0).sum()

    gradient = jax.jit(jax.grad(loss))
    vectors, state = jnp.asarray(start[i]), adam.init(start[i])
    for _ in range(STEPS):
      updates, state = adam.update(gradient(vectors), state)
      vectors = vectors + updates
    np.testing.assert_allclose(together[i], vectors, atol=1e-4)


@pytest.fixture
def command(tmp_path):
  (tmp_path / "small.gin").write_text(GIN)
  (tmp_path / "text.txt").write_text("ab\na sentence that is too long\ncd\nef\n")
  save_backbone(tmp_path / "backbone")
  return ["recover", "--gin_file=models/tiny.gin", "--gin_file=runs/recover.gin",
          f"--gin_file={tmp_path / 'small.gin'}",
          f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path / 'backbone'}",
          "--gin.SENTENCES={'mine': '" + str(tmp_path / "text.txt") + "'}",
          f"--gin.MODEL_DIR={tmp_path / 'run'}", "--gin.VECTORS=[2]", "--gin.SEEDS=[0, 1]",
          "--gin.TRAIN_STEPS=60", "--gin.MAX_EXAMPLES=3", "--gin.SENTENCE_LENGTH=5"]


def test_command(command, tmp_path, capsys):
  assert main(command) == 0, capsys.readouterr().err
  text = (tmp_path / "run/results.csv").read_text()
  rows = list(csv.DictReader(text.splitlines()))
  assert [(r["backbone"], r["seed"]) for r in rows] == [
    (b, s) for b in ("given", "random") for s in "01"]
  assert {r["too_long"] for r in rows} == {"1"}
  assert np.load(tmp_path / "run/vectors/mine_given_2_0.npy").shape == (3, 2, 16)
  assert (tmp_path / "run/recovery.png").is_file()
  assert main(command) == 0 and (tmp_path / "run/results.csv").read_text() == text


@pytest.mark.parametrize("change, message", [
  ("--gin.MAX_EXAMPLES=4", "too few sentences"), ("--gin.VECTORS=[0]", "VECTORS is not a list"),
  ("--gin.BACKBONES=['rand']", "unknown backbone"), ("--gin.LEARNING_RATE=0.0", "not a rate"),
  ("--gin.SENTENCES={'mine': 'nowhere.txt'}", "SENTENCES cannot be read")])
def test_errors(command, capsys, change, message):
  assert main([*command, change]) == 2
  assert message in capsys.readouterr().err
