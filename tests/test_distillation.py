"""The teachers' part of the loss against numpy, what it leaves alone, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descriptors import CASES, CONFIG, LENGTH, NUM_PROMPTS, forward, random_params
from test_train_state import training_batch

from prompt_tuning import trees
from prompt_tuning.distillation import Distillation, fingerprint
from prompt_tuning.errors import UserError
from prompt_tuning.optimizers import Adafactor
from prompt_tuning.prompted import PromptedT5, add_virtual_tokens
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5
from prompt_tuning.train_state import LossConfig, make_train_step, new_state

CASE = {case.name: case for case in CASES}
WEIGHT, TEACHER_LENGTH = 0.7, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Teachers, shorter than the students; one of them a run."""
  folder = tmp_path_factory.mktemp("teachers")
  random = np.random.default_rng(3)
  tables = random.normal(size=(NUM_PROMPTS, TEACHER_LENGTH, CONFIG.emb_dim)).astype(np.float32)
  for i, table in enumerate(tables[1:]):
    np.save(folder / f"{i + 1}.npy", table)
  (folder / "run").mkdir()
  np.save(folder / "run" / "prompt.npy", tables[0])
  (folder / "run" / "settings.json").write_text("{}")
  return (str(folder / "run"), str(folder / "1.npy"), str(folder / "2.npy")), tables


def in_numpy(student, teacher, given, data):
  """The term, row by row and token by token."""
  (encoded, logits), (theirs, their_logits) = (map(np.asarray, each) for each in (student, teacher))
  total = 0.0
  for row in range(len(logits)):
    squares = []
    for position, weight in enumerate(data["decoder_loss_weights"][row]):
      p, q = (np.exp(x[row, position].astype(np.float64)) for x in (their_logits, logits))
      p, q = p / p.sum(), q / q.sum()
      total += weight * np.sum(p * np.log(p / q))
    for position, token in enumerate(given[row]):
      if token != 0:
        apart = encoded[row, LENGTH + position] - theirs[row, TEACHER_LENGTH + position]
        squares.append(apart**2)
    total += data["decoder_loss_weights"][row].sum() * np.mean(squares)
  return WEIGHT * total / data["decoder_loss_weights"].sum()


def test_the_term_equals_numpy_and_moves_the_students_alone(files):
  names, tables = files
  model = CASE["multitask"].model()
  params, data = random_params(model), training_batch(model)
  distillation = Distillation(teachers=names, weight=WEIGHT)
  distillation.check(model)
  bank = distillation.bank(CONFIG.emb_dim)
  np.testing.assert_array_equal(bank, tables)
  assert fingerprint(bank) == fingerprint(tables) != fingerprint(tables + 1e-6)

  given = data["encoder_input_tokens"][:, LENGTH:]
  teacher = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, TEACHER_LENGTH, num_prompts=NUM_PROMPTS))
  arrays = {"decoder_tokens": data["decoder_input_tokens"], "prompt_ids": data["prompt_ids"]}
  wanted = in_numpy(
    forward(model)(params, {"tokens": data["encoder_input_tokens"], **arrays}),
    forward(teacher)({"backbone": params["backbone"], "prompt": {"embedding": tables}},
                     {"tokens": np.asarray(add_virtual_tokens(given, TEACHER_LENGTH)), **arrays}),
    given, data)

  optimizer = Adafactor()
  split = trees.plan_split(params, ())
  trainable, frozen = split.split(jax.tree.map(jnp.asarray, params))
  transformation = optimizer.build(trainable)
  steps = {}
  for name, term in (("taught", distillation.term(model, bank)), ("alone", None)):
    step = jax.jit(make_train_step(model, split, optimizer, transformation, LossConfig(), 0, term))
    steps[name] = step(new_state(trainable, transformation), frozen, data)
  (taught, metrics), (alone, plain) = steps["taught"], steps["alone"]
  np.testing.assert_allclose(metrics["term"], wanted, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], plain["loss"], rtol=1e-6)
  assert "term" not in plain
  assert {path.split("/")[0] for path in trees.flatten(taught.trainable)} == {"prompt"}
  assert trees.differences(taught.trainable, alone.trainable)


def test_pieces_of_a_batch_add_up(files):
  """The loss in microbatches is that of the whole batch."""
  names, _ = files
  model = CASE["multitask"].model()
  params, data = random_params(model), training_batch(model)
  distillation = Distillation(teachers=names)
  term = distillation.term(model, distillation.bank(CONFIG.emb_dim))
  value = jax.jit(lambda rows: term(params, rows, {"prompt_ids": rows["prompt_ids"]},
                                    enable_dropout=False)[1])
  pieces = [value({name: array[i:i + 1] for name, array in data.items()})
            for i in range(len(data["prompt_ids"]))]
  np.testing.assert_allclose(sum(pieces), value(data), rtol=1e-5)


def test_a_teacher_that_says_the_same_adds_nothing(files, tmp_path):
  """The student is its own teacher: no divergence, and no gradient."""
  model = CASE["soft"].model()
  params, data = random_params(model), training_batch(model)
  np.save(tmp_path / "same.npy", params["prompt"]["embedding"])
  distillation = Distillation(teachers=(str(tmp_path / "same.npy"),))
  term = distillation.term(model, distillation.bank(CONFIG.emb_dim))

  def value(prompt):
    return term({"backbone": params["backbone"], "prompt": prompt}, data, {},
                enable_dropout=False)[1]

  total, gradient = jax.value_and_grad(value)(params["prompt"])
  assert abs(total) < 1e-4
  assert np.abs(gradient["embedding"]).max() < 1e-4


def error_of(function, *arguments, **named) -> UserError:
  with pytest.raises(UserError) as error:
    function(*arguments, **named)
  return error.value


def test_what_does_not_fit_is_refused(files, tmp_path):
  names, _ = files
  error = error_of(Distillation(teachers=names).check, CASE["soft"].model())
  assert error.found == "3 teachers, 1 prompts" and "NUM_PROMPTS=3" in error.fix
  placed = CASE["soft"].model(prompt_in_front=False)
  error = error_of(Distillation(teachers=names[:1]).check, placed)
  assert error.what == "Distillation compares inputs with the prompt in front"
  np.save(tmp_path / "long.npy", np.zeros((5, CONFIG.emb_dim), np.float32))
  error = error_of(Distillation(teachers=(names[1], str(tmp_path / "long.npy"))).bank,
                   CONFIG.emb_dim)
  assert error.what == "The teachers differ in length" and "long.npy: 5" in error.found
  assert error_of(Distillation, teachers="runs/a").what == (
    "Distillation.teachers is not a list of prompts")
  assert error_of(Distillation, teachers=names, weight=0).what == "Distillation.weight is not one"
  (tmp_path / "settings.json").write_text("{}")
  error = error_of(Distillation(teachers=(str(tmp_path),)).bank, CONFIG.emb_dim)
  assert error.what == "The run in TEACHER_PROMPTS has no prompt.npy"
