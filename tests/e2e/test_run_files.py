"""Every shipped run file in a few steps: text files, a user's CSV, a user's own seqio task."""

import json

import numpy as np
import pytest
from toy_runs import PROMPT, SMALL, TOY, Folder

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings, Evaluator
from prompt_tuning.trees import Split

pytestmark = pytest.mark.e2e
# Alone with this the run files' steps and batches are those of pages of text.
PAGES = SMALL + """
from prompt_tuning import evaluate
from prompt_tuning import train
from prompt_tuning.tasks import pretraining
TRAIN_STEPS = 2
EVAL_PERIOD = 2
BATCH_SIZE = 8
TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 32}
MAX_TRUNCATED_INPUTS = 1.0
MAX_TRUNCATED_TARGETS = 1.0
pretraining.PretrainingMixture.docstrings = False
pretraining.PretrainingMixture.length = 24
evaluate.EvalSettings.max_examples = 16
evaluate.EvalSettings.batch_size = 8
optimizers.LinearDecay.warmup_steps = 1
""".replace("from prompt_tuning import train\n", "from prompt_tuning import optimizers\n")


def corpus(path, seed):
  random = np.random.default_rng(seed)
  words = ["time", "the", "boat", "river", "and", "slowly", "turned", "stone", "light"]
  lines = [" ".join(random.choice(words, 40)) for _ in range(30)]
  path.write_text("\n".join(lines) + "\n")
  return [str(path)]


def test_pretraining_then_lm_adaptation_then_a_prompt(tmp_path):
  macros = {"CORPUS": corpus(tmp_path / "a.txt", 0),
            "VALIDATION_CORPUS": corpus(tmp_path / "b.txt", 1)}
  pages = Folder(tmp_path, ("models/tiny.gin", "runs/pretrain.gin"), PAGES)
  first = pages.train("pretrained", **macros)
  assert first.step == 2 and np.isfinite(first.best.metrics["encoder_gap"])
  summary = pages.summary("pretrained")
  assert summary["trained"]["share"] == 1.0 and summary["frozen"]["parameters"] == 0
  assert summary["restored"]["parameters"] == 0
  metadata = json.loads((tmp_path / "pretrained/backbone/backbone.json").read_text())
  assert metadata["fingerprint"] and metadata["corpus"] == summary["corpus"]

  # The paper's objective alone, as the file says.
  pages = Folder(tmp_path, ("models/tiny.gin", "runs/lm_adapt.gin"),
                 PAGES + "RATES = {'prefix_lm': 1.0}\nOBJECTIVES = {}\n")
  adapted = pages.train("adapted", INITIAL_CHECKPOINT_PATH=str(tmp_path / "pretrained"), **macros)
  assert set(trees.differences(first.params, adapted.params)) == set(trees.flatten(first.params))
  assert pages.summary("adapted")["backbone"]["fingerprint"] == metadata["fingerprint"]

  toy = Folder(tmp_path, text=SMALL + TOY + PROMPT)
  prompted = toy.train("prompted", INITIAL_CHECKPOINT_PATH=str(tmp_path / "adapted"),
                       TRAIN_STEPS=1)
  # Both pre-training runs are unscanned, this one is scanned: the same weights.
  assert toy.summary("prompted")["restored"]["parameters"] == trees.count(adapted.params)
  assert prompted.params["backbone"]["encoder"]["layers"]


@pytest.mark.parametrize("init, macros", [
  ("class_labels", {"CLASS_LABELS": ["good", "bad"]}), ("text", {"PROMPT_TEXT": "good or bad"}),
  ("sampled_vocab", {})])
def test_your_data_from_a_csv_and_every_start(tmp_path, init, macros):
  for name in ("train", "validation", "test"):
    rows = "".join(f'"{name}, {i}",{"good" if i % 3 else "bad"}\n' for i in range(12))
    (tmp_path / f"{name}.csv").write_text("text,kind\n" + rows)
  folder = Folder(tmp_path, ("models/tiny.gin", "prompts/soft.gin", f"inits/{init}.gin",
                             "runs/prompt_tune.gin", "runs/your_data.gin"), SMALL + PROMPT)
  settings = {f"{name.upper()}_FILE": str(tmp_path / f"{name}.csv")
              for name in ("train", "validation", "test")}
  settings |= {"INPUTS": "say: {text}", "TARGETS": "{kind}", "LABELS": ["good", "bad"],
               "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 8}, "TRAIN_STEPS": 2,
               "MIXTURE_OR_TASK_NAME": f"csv_{init}"} | macros
  outcome = folder.train("run", **settings)
  assert outcome.best.inputs[1] == "say: validation, 1" and outcome.best.targets[0] == "bad"
  assert outcome.best.metrics.keys() == {"examples", "accuracy", "macro_f1", "not_a_label",
                                         "label_loss", "loss"}
  config = folder.config("run", **settings)
  test = Evaluator(config.model, config.task, EvalSettings(split="test"))
  result = test({}, outcome.params, Split({}))
  assert result.inputs[0] == "say: test, 0" and set(result.predictions) <= {"good", "bad"}
  assert test.majority()["accuracy"] == pytest.approx(8 / 12)


def test_a_seqio_task_of_a_users_module_is_decoded_and_measured_by_its_own_metric(tmp_path):
  folder = Folder(tmp_path)
  outcome = folder.train("run", MIXTURE_OR_TASK_NAME="toy_seqio", TRAIN_STEPS=1)
  assert {"exact", "loss", "examples"} == outcome.best.metrics.keys()
  assert outcome.best.targets[:2] == ["no", "yes"] and len(outcome.best.predictions) == 24


def test_a_prompt_that_starts_from_another_run(tmp_path):
  folder = Folder(tmp_path)
  folder.train("first", TRAIN_STEPS=1)
  transfer = Folder(tmp_path, (*folder.files[:-1], "inits/from_run.gin"))
  config = transfer.config("second", SOURCE_MODEL_DIR=str(tmp_path / "first"))
  start = config.model.start_prompt(config.model.load_backbone(0), 0)
  assert np.array_equal(start["embedding"], folder.prompt("first"))


def test_packed_rows_train_a_prompt_only_where_it_is_placed_by_ids(tmp_path):
  wider = TOY.replace("'inputs': 8, 'targets': 4", "'inputs': 32, 'targets': 16")
  text = SMALL + wider + PROMPT + """
from prompt_tuning import run_config
run_config.TaskConfig.pack = True
train.TrainConfig.eval_settings = None
"""
  with pytest.raises(UserError, match="Packed rows hold a prompt a segment"):
    Folder(tmp_path, text=text).train("front", TRAIN_STEPS=2)
  placed = Folder(tmp_path, text=text + "run_config.ModelConfig.prompt_in_front = False\n")
  sources = ["prompts/attempt.gin" if file == "prompts/soft.gin" else file
             for file in placed.files[:-1]]
  reading = Folder(tmp_path, sources, placed.gin.read_text())
  with pytest.raises(UserError, match="This method reads the input, and packed rows hold several"):
    reading.config("reads", SOURCE_PROMPTS=["one.npy"])
  longer, shorter = (placed.train(f"of_{steps}", TRAIN_STEPS=steps) for steps in (2, 1))
  assert longer.step == 2
  assert trees.differences(longer.params, shorter.params) == ["prompt/embedding"]
