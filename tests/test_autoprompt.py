"""`prompt-tuning autoprompt` from end to end: its loss, its resume, its prompt as any other."""

import csv
import json

import numpy as np
import pytest
from small_models import GIN, save_backbone, save_prompt

from prompt_tuning.main import main

ROWS = [f"{word} {i}\t{label}" for i in range(8) for word, label in (("fine", "y"), ("poor", "n"))]


@pytest.fixture
def command(tmp_path):
  for name in ("train", "dev"):
    (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *ROWS]) + "\n")
  (tmp_path / "small.gin").write_text(GIN)
  save_backbone(tmp_path / "backbone")
  return ["autoprompt", "--gin_file=models/tiny.gin", "--gin_file=runs/autoprompt.gin",
          "--gin_file=runs/your_data.gin", f"--gin_file={tmp_path / 'small.gin'}",
          f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path / 'backbone'}",
          f"--gin.TRAIN_FILE={tmp_path / 'train.tsv'}",
          f"--gin.VALIDATION_FILE={tmp_path / 'dev.tsv'}", "--gin.INPUTS='{text}'",
          "--gin.TARGETS='{label}'", "--gin.LABELS=['y', 'n']", "--gin.WORDS_ONLY=False",
          "--gin.TASK_FEATURE_LENGTHS={'inputs': 10, 'targets': 3}", "--gin.PROMPT_LENGTH=2",
          "--gin.SEARCH_ROWS=8", "--gin.BATCH_SIZE=4", "--gin.CANDIDATES=4",
          "--gin.EVAL_PERIOD=2", "--gin.MAX_EXAMPLES=8"]


def files(folder):
  return {name: (folder / name).read_bytes() for name in (
    "search.json", "swaps.csv", "prompt.npy", "trigger.json", "metrics.csv")}


def test_the_loss_never_rises_and_a_resume_is_exact(command, tmp_path, capsys):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert main([*command, "--gin.TRAIN_STEPS=6", f"--gin.MODEL_DIR={whole}"]) == 0, (
    capsys.readouterr().err)
  for steps in (2, 6):
    assert main([*command, f"--gin.TRAIN_STEPS={steps}", f"--gin.MODEL_DIR={parts}"]) == 0
  assert files(whole) == files(parts)
  swaps = list(csv.DictReader((whole / "swaps.csv").read_text().splitlines()))
  before = [float(swap["before"]) for swap in swaps]
  assert len(swaps) == 6 and before == sorted(before, reverse=True)
  summary = json.loads((whole / "summary.json").read_text())
  assert summary["compilations"] == {"evaluate": 1, "gradient": 1, "step": 1}
  # The trigger's embeddings are a prompt for `eval`, with the accuracy that the search reports.
  capsys.readouterr()
  flags = [flag for flag in command[1:] if not any(name in flag for name in (
    "autoprompt.gin", "WORDS_ONLY", "SEARCH_ROWS", "CANDIDATES", "EVAL_PERIOD"))]
  assert main(["eval", *flags, "--gin_file=prompts/soft.gin", "--gin_file=runs/eval.gin",
               f"--gin.PROMPT_FILE={whole / 'prompt.npy'}",
               "--gin.PROMPT_TEMPLATE='{inputs}{prompt}'",
               f"--gin.OUTPUT_DIR={tmp_path / 'eval'}"]) == 0, capsys.readouterr().err
  found = json.loads(next((tmp_path / "eval").glob("eval_*.json")).read_text())["metrics"]
  assert found["accuracy"] == summary["results"]["found"]["validation"]["accuracy"]


def test_a_soft_prompt_beside_its_nearest_words(command, tmp_path, capsys):
  save_prompt(tmp_path / "soft.npy", length=2)
  assert main([*command, "--gin.TRAIN_STEPS=0", f"--gin.PROMPT_FILE={tmp_path / 'soft.npy'}",
               f"--gin.MODEL_DIR={tmp_path / 'run'}"]) == 0, capsys.readouterr().err
  results = json.loads((tmp_path / "run/summary.json").read_text())["results"]
  assert set(results) == {"no prompt", "soft prompt", "its nearest words", "found"}
  assert results["its nearest words"] == results["found"] != results["soft prompt"]
  ids = json.loads((tmp_path / "run/trigger.json").read_text())["ids"]
  table = save_backbone(tmp_path / "again")["token_embedder"]["embedding"]
  np.testing.assert_array_equal(np.load(tmp_path / "run/prompt.npy"), table[ids])


@pytest.mark.parametrize("change, message", [
  (["--gin.SEARCH_ROWS=6"], "no multiple of BATCH_SIZE"),
  (["--gin.SENTINEL=True"], "does not say where the answer stands"),
  (["--gin.CANDIDATES=9999"], "fewer tokens than candidates"),
  (["--gin.PROMPT_TEXT=abc"], "PROMPT_TEXT does not fit the trigger"),
  (["--gin.SEARCH_ROWS=16"], "too few training rows for the search")])
def test_errors(command, tmp_path, capsys, change, message):
  assert main([*command, f"--gin.MODEL_DIR={tmp_path / 'run'}", *change]) == 2
  assert message in capsys.readouterr().err
