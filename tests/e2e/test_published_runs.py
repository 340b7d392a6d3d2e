"""Training on data sets in their published layout: rows that are lost on the way are counted."""

import json
import re

import pytest
from toy_runs import FILES, PROMPT, SMALL, Folder

from prompt_tuning.main import main

pytestmark = pytest.mark.e2e
TASK = "MIXTURE_OR_TASK_NAME = 'super_glue_cb'\n" \
  "TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 16}\n"
LABELS = ("entailment", "contradiction", "neutral")


def cb(count, first="A premise."):
  """Lines of SuperGLUE's CB."""
  return "".join(json.dumps({"premise": first if not i else f"P {i}.", "hypothesis": "H.",
                             "label": LABELS[i % 3], "idx": i}) + "\n" for i in range(count))


def test_a_super_glue_folder(tmp_path, capfd):
  """One training row in 200 has a label that CB does not know, another is too long."""
  place = tmp_path / "data/superglue/CB"
  place.mkdir(parents=True)
  broken = json.dumps({"premise": "P.", "hypothesis": "H.", "label": "perhaps", "idx": 0}) + "\n"
  (place / "train.jsonl").write_text(cb(199, "Long " * 20) + broken)
  (place / "val.jsonl").write_text(cb(8))
  folder = Folder(tmp_path, FILES, SMALL + TASK + PROMPT)
  settings = {"DATA_DIR": str(tmp_path / "data"), "TRAIN_STEPS": 2, "EVAL_PERIOD": 2,
              "BEST_METRICS": ("macro_f1", "accuracy")}
  expected = {"super_glue_cb": {
    "train": {"rows": 199, "unusable": 1, "long_inputs": 1, "long_targets": 0,
              "short_contexts": 0},
    "validation": {"rows": 8, "unusable": 0, "long_inputs": 0, "long_targets": 0,
                   "short_contexts": 0}}}
  for name in ("first", "cached"):  # the second run finds the tokens of the first one
    assert main(folder.arguments(name, **settings)) == 0
    said = re.sub(r"\s+", " ", capfd.readouterr().out)
    assert ("super_glue_cb, train: of 199 rows, 1 inputs lose their end, 1 more could not be used "
            "and were left out") in said
    assert "validation: of" not in said
    assert folder.summary(name)["data"]["by_task"] == expected
  assert folder.prompt_bytes("first") == folder.prompt_bytes("cached")
  assert main(folder.arguments("other", **settings | {"BEST_METRICS": "em"})) == 2
  assert "wanted: one of accuracy, label_loss, loss, macro_f1" in capfd.readouterr().err
  assert not (tmp_path / "other").exists()
  where = str(tmp_path / "cached")
  assert main(["eval", f"--gin.MODEL_DIR={where!r}", "--gin.SPLIT='train'"]) == 0
  found = json.loads((tmp_path / "cached/eval_super_glue_cb_train.json").read_text())
  assert found["data"] == expected["super_glue_cb"]["train"]
  assert "Of 199 rows, 1 inputs lose their end, 1 more could not be used" in capfd.readouterr().out


def test_the_shipped_model_on_the_real_files_of_cb(tmp_path, shared_data):
  settings = {"DATA_DIR": str(shared_data), "MIXTURE_OR_TASK_NAME": "super_glue_cb",
              "TASK_FEATURE_LENGTHS": {"inputs": 160, "targets": 8}, "MAX_TRUNCATED_INPUTS": 0.2,
              "CLASS_LABELS": list(LABELS), "PROMPT_LENGTH": 4, "TRAIN_STEPS": 2, "EVAL_PERIOD": 2,
              "BATCH_SIZE": 4, "evaluate.EvalSettings.max_examples": 16,
              "MODEL_DIR": str(tmp_path / "run")}
  files = (*FILES, "inits/class_labels.gin")
  assert main(["train", *(f"--gin_file={file}" for file in files),
               *(f"--gin.{name}={value!r}" for name, value in settings.items())]) == 0
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  counts = summary["data"]["by_task"]["super_glue_cb"]
  assert (counts["train"]["rows"], counts["validation"]["rows"]) == (250, 56)
  assert counts["train"]["unusable"] == counts["validation"]["unusable"] == 0
  assert summary["restored"]["parameters"] > 2e6 and summary["best"]["examples"] == 16
