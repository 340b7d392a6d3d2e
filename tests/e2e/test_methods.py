"""Every method through the real command: trained, saved folded, evaluated from its MODEL_DIR; and
resumed to the bit, with the weights of its reparameterisation and their optimizer state.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from run_differences import differences
from safetensors.numpy import load_file
from toy_runs import SMALL, TOY, Folder

from prompt_tuning import gin_files, trees
from prompt_tuning.errors import UserError
from prompt_tuning.main import main

pytestmark = pytest.mark.e2e
SHORT = """
from prompt_tuning import train
TRAIN_STEPS = 2
EVAL_PERIOD = 1
BATCH_SIZE = 8
train.TrainConfig.log_period = 1
"""
# What a method's file asks for, in sizes of the toy model.
MACROS = {
  "adapter": {}, "combined": {"PROMPT_LENGTH": 4}, "deep": {"PROMPT_LENGTH": 4}, "ia3": {},
  "lora": {}, "low_rank": {"PROMPT_LENGTH": 4, "PROMPT_RANK": 2},
  "multitask": {"PROMPT_LENGTH": 4},
  "prefix": {"PROMPT_LENGTH": 4, "PREFIX_HIDDEN": 5, "PREFIX_TEXT": "words"},
  "ptuning": {"PROMPT_LENGTH": 4, "PROMPT_TEMPLATE": "{prompt:1}{inputs} ? {prompt:3}"},
  "residual": {"PROMPT_LENGTH": 4}, "soft": {"PROMPT_LENGTH": 4},
  "warp": {"PROMPT_LENGTH": 4, "CLASS_LABELS": ["yes", "no"]},
}
TABLES = {"low_rank", "multitask", "ptuning", "residual", "soft"}


# Two moments a leaf, where Adafactor has one.
ADAMW = """
from prompt_tuning import optimizers
OPTIMIZER = @optimizers.AdamW()
"""


def folder_of(path: pathlib.Path, method: str, text: str = "") -> Folder:
  return Folder(path, ("models/tiny.gin", f"prompts/{method}.gin", "runs/prompt_tune.gin"),
                SMALL + TOY + SHORT + text)


def test_every_shipped_method_is_run_here():
  shipped = {pathlib.Path(name).stem for name in gin_files.shipped_names()
             if name.startswith("prompts/")}
  assert shipped - {"none", "attempt"} == MACROS.keys()


def test_attempt_starts_from_the_prompts_of_other_runs_and_keeps_them(tmp_path, capsys):
  folder_of(tmp_path, "soft").train("source", PROMPT_LENGTH=4)
  source = np.load(tmp_path / "source/prompt.npy")
  folder = folder_of(tmp_path, "attempt")
  macros = {"PROMPT_LENGTH": 4, "SOURCE_PROMPTS": [str(tmp_path / "source")]}
  folder.train("run", **macros)
  saved = load_file(tmp_path / "run/prompt.safetensors")
  np.testing.assert_array_equal(saved["constant_sources"], source[None])
  trained = {name: leaf.size for name, leaf in saved.items() if name != "constant_sources"}
  assert folder.summary("run")["trained"]["parameters"] == sum(trained.values())
  folder.train("many", **macros, N_PROMPTS=2)
  assert folder.summary("many")["trained"]["parameters"] == 2 * sum(trained.values())
  for i in range(2):
    own = load_file(tmp_path / f"many/members/{i}/prompt.safetensors")
    np.testing.assert_array_equal(own["constant_sources"], source[None])
  assert main(["eval", f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("method", MACROS)
def test_a_run_is_evaluated_from_what_it_left(method, tmp_path, capsys):
  folder = folder_of(tmp_path, method)
  outcome = folder.train("run", **MACROS[method])
  assert outcome.step == 2 and folder.summary("run")["trained"]["parameters"] == trees.count(
    outcome.params["prompt"])
  name = "prompt.npy" if method in TABLES else "prompt.safetensors"
  assert {"prompt.npy", "prompt.safetensors"} & {p.name for p in (tmp_path / "run").iterdir()} == {
    name}
  prompt = folder.config("run", **MACROS[method]).model.prompt
  folded = {path: np.asarray(leaf, np.float32) for path, leaf in trees.flatten(
    jax.device_get(prompt.fold(outcome.params["prompt"]))).items()}
  if name == "prompt.npy":
    np.testing.assert_array_equal(folder.prompt("run"), folded["embedding"])
  else:
    saved = load_file(tmp_path / "run" / name)
    assert saved.keys() == folded.keys()
    for path, leaf in saved.items():
      np.testing.assert_array_equal(leaf, folded[path], err_msg=path)
  assert main(["eval", f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}"]) == 0, capsys.readouterr().err
  found = json.loads(next((tmp_path / "run").glob("eval_*.json")).read_text())["metrics"]
  assert found.keys() == outcome.best.metrics.keys()
  for metric, value in outcome.best.metrics.items():
    assert found[metric] == pytest.approx(value, rel=1e-5), metric


@pytest.mark.parametrize("method, text", [("prefix", ""), ("ptuning", ""), ("lora", ADAMW),
                                          ("multitask", ADAMW), ("attempt", ADAMW)],
                         ids=["prefix", "ptuning", "lora", "multitask", "attempt"])
def test_a_resumed_run_is_the_same_to_the_bit(method, text, tmp_path):
  folder, macros = folder_of(tmp_path, method, text), MACROS.get(method, {})
  if method == "attempt":
    np.save(tmp_path / "source.npy", np.random.default_rng(0).normal(size=(4, 16)))
    macros = {"PROMPT_LENGTH": 4, "SOURCE_PROMPTS": [str(tmp_path / "source.npy")]}
  folder.train("whole", **macros)
  folder.train("parts", **macros, TRAIN_STEPS=1)
  if method == "attempt":
    # What it goes on with is its own.
    np.save(tmp_path / "source.npy", np.ones((4, 16)))
  folder.train("parts", **macros)
  assert not differences(tmp_path / "whole", tmp_path / "parts")


def test_a_resumed_run_may_recompute_more(tmp_path):
  folder = folder_of(tmp_path, "combined")
  folder.train("run", PROMPT_LENGTH=4, TRAIN_STEPS=1)
  folder.train("run", PROMPT_LENGTH=4, REMAT="full")
  assert folder.summary("run")["resumed_at"] == 1
  with pytest.raises(UserError, match="model.backbone.mlp_dim was 32, is now 48"):
    folder.train("run", PROMPT_LENGTH=4, interfaces__T5Config__mlp_dim=48)


def test_teachers_that_change_between_start_and_resume(tmp_path):
  text = (SMALL + SHORT).replace("TRAIN_STEPS = 2\n", "") + """
MIXTURE_OR_TASK_NAME = 'toy_two'
MIXTURE_OR_TASK_MODULE = 'toy_tasks'
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}
"""
  folder = Folder(tmp_path, ("models/tiny.gin", "prompts/soft.gin", "runs/distill.gin"), text)
  given = {"NUM_PROMPTS": 2, "PROMPT_LENGTH": 4,
           "TEACHER_PROMPTS": [str(tmp_path / f"{i}.npy") for i in range(2)]}
  tables = np.random.default_rng(0).normal(size=(2, 4, 16)).astype(np.float32)
  for path, table in zip(given["TEACHER_PROMPTS"], tables, strict=True):
    np.save(path, table)
  folder.train("run", TRAIN_STEPS=1, **given)
  np.save(given["TEACHER_PROMPTS"][1], tables[1] + 1)
  with pytest.raises(UserError, match="The teachers of the run in MODEL_DIR have changed"):
    folder.train("run", TRAIN_STEPS=2, **given)
  np.save(given["TEACHER_PROMPTS"][1], tables[1])
  folder.train("run", TRAIN_STEPS=2, **given)
  assert folder.summary("run")["resumed_at"] == 1


def test_a_bank_has_a_prompt_for_each_task_of_a_mixture(tmp_path, capsys):
  text = SMALL + SHORT + """
MIXTURE_OR_TASK_NAME = 'toy_two'
MIXTURE_OR_TASK_MODULE = 'toy_tasks'
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}
"""
  folder = Folder(tmp_path, text=text)
  folder.train("run", NUM_PROMPTS=2, PROMPT_LENGTH=4)
  assert folder.summary("run")["prompt_ids"] == {"toy_labels": 0, "toy_opposite": 1}
  assert folder.prompt("run").shape == (2, 4, 16)
  scores = {}
  for task in ("toy_labels", "toy_opposite"):
    assert main(["eval", f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}",
                 f"--gin.MIXTURE_OR_TASK_NAME={task!r}"]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / f"run/eval_{task}_validation.json").read_text())
    scores[task] = found["metrics"]["label_loss"]
  # The same rows with opposite labels, and other vectors ahead of them.
  assert scores["toy_labels"] != scores["toy_opposite"]
  lines = tmp_path / "lines.txt"
  lines.write_text("row 1\n")
  infer = ["infer", f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}", "--gin.LABELS=['yes', 'no']",
           f"--gin.INPUT_FILE={str(lines)!r}", "--gin.OUTPUT_FORMAT='json'"]
  answers = []
  for task in ("toy_labels", "toy_opposite"):
    capsys.readouterr()
    assert main([*infer, f"--gin.MIXTURE_OR_TASK_NAME={task!r}"]) == 0
    answers.append(json.loads(capsys.readouterr().out)["scores"])
  assert answers[0] != answers[1]
  assert main([*infer, "--gin.MIXTURE_OR_TASK_NAME='toy_seqio'"]) == 2
  assert capsys.readouterr().err.startswith("The bank has no prompt for this task")


def test_a_bank_of_another_size_than_the_mixture_is_an_error(tmp_path, capsys):
  folder = folder_of(tmp_path, "soft")
  assert main(folder.arguments("run", NUM_PROMPTS=3, PROMPT_LENGTH=4)) == 2
  message = capsys.readouterr().err
  assert message.startswith("A bank has a prompt for every task") and "NUM_PROMPTS=1" in message
