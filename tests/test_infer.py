"""Predictions for lines, against models applied row by row; the command's errors."""

import dataclasses
import functools
import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
  CONFIG,
  GIN,
  PROMPT_LENGTH,
  backbone,
  model,
  save_backbone,
  save_method,
  save_prompt,
)

from prompt_tuning import decoding, disk, generation, prompt_bank, scoring
from prompt_tuning.errors import UserError
from prompt_tuning.generation import Decoding
from prompt_tuning.infer import InferConfig, infer
from prompt_tuning.main import main
from prompt_tuning.prompts.warp import WarpPrompt
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.files import FileTask
from prompt_tuning.trees import Split

LINES = ["good dog", "a bad cat", "x", "trees are green", "no", "what", "some more"]
LENGTHS = {"inputs": 16, "targets": 6}
TOKENIZER = vocabularies.load_light("bytes")


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "in.txt").write_text("\n".join(LINES) + "\n")
  save_prompt(tmp_path / "prompt.npy")
  save_backbone(tmp_path / "backbone")
  return tmp_path


def settings(folder, lengths=LENGTHS, max_truncated=0.05, **changes):
  defaults = {"input_file": str(folder / "in.txt"), "output_file": str(folder / "out.txt"),
              "prompt_file": str(folder / "prompt.npy"), "batch_size": 3}
  task = TaskConfig(name=None, feature_lengths=lengths, max_truncated_inputs=max_truncated)
  start = model(initial_checkpoint_path=str(folder / "backbone"))
  return InferConfig(**({"model": start, "task": task} | defaults | changes))


def written(folder):
  assert not (folder / "out.txt.partial").exists()
  return (folder / "out.txt").read_text().split("\n")[:-1]


@functools.partial(jax.jit, static_argnums=0)
def forward(module, params, tokens, decoder_tokens):
  return module.apply({"params": params}, tokens, decoder_tokens, enable_dropout=False)


class Reference:
  """One unpadded row at a time, recomputed in full for every token."""

  def __init__(self, folder):
    self.module = model().module()
    self.params = {"backbone": backbone(3),
                   "prompt": {"embedding": jnp.asarray(np.load(folder / "prompt.npy"))}}

  def tokens(self, text):
    ids = [-1 - p for p in range(PROMPT_LENGTH)] + [*TOKENIZER.encode(text), TOKENIZER.eos_id]
    return jnp.array([ids], jnp.int32)

  def log_probs(self, text, prefix):
    # The decoder is causal: what stands after the prefix has no influence on it.
    padded = jnp.zeros((1, LENGTHS["targets"]), jnp.int32).at[0, 1:len(prefix) + 1].set(
      jnp.array(prefix, jnp.int32))
    logits = forward(self.module, self.params, self.tokens(text), padded)
    return np.asarray(jax.nn.log_softmax(logits[0]))

  def greedy(self, text):
    ids = []
    while len(ids) < LENGTHS["targets"] and TOKENIZER.eos_id not in ids:
      ids.append(int(self.log_probs(text, ids)[len(ids)].argmax()))
    return " ".join(TOKENIZER.decode(ids).splitlines())

  def score(self, text, label):
    ids = [*TOKENIZER.encode(label), TOKENIZER.eos_id]
    found = self.log_probs(text, ids[:-1])
    return float(sum(found[i, token] for i, token in enumerate(ids)))


def test_greedy_lines_in_order_with_one_compilation(folder, monkeypatch):
  traces = []
  generate = generation.generate
  monkeypatch.setattr(generation, "generate",
                      lambda *args, **kwargs: traces.append(1) or generate(*args, **kwargs))
  counts = infer(settings(folder))
  assert len(traces) == 1
  assert counts.predictions == len(LINES) and counts.long_inputs == 0
  reference = Reference(folder)
  assert written(folder)[:3] == [reference.greedy(text) for text in LINES[:3]]
  assert len(written(folder)) == len(LINES)
  before = written(folder)
  infer(settings(folder, max_examples=2, batch_size=2))
  assert written(folder) == before[:2]


def test_rank_classification(folder):
  labels = ("yes", "no", "maybe")
  infer(settings(folder, labels=labels, output_format="json"))
  rows = [json.loads(line) for line in written(folder)]
  assert [row["input"] for row in rows] == LINES
  reference = Reference(folder)
  for row in (rows[0], rows[-1]):
    wanted = {label: reference.score(row["input"], label) for label in labels}
    assert row["scores"] == pytest.approx(wanted, abs=1e-3)
    assert row["prediction"] == max(wanted, key=wanted.get)


def test_labels_are_read_as_training_on_files_reads_them(folder):
  (folder / "train.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
  trained = FileTask(train_file=str(folder / "train.tsv"), inputs="{text}", targets="{label}",
                     labels=[0, " 1 "]).spec().labels
  assert settings(folder, labels=[0, " 1 "]).labels == trained == ("0", "1")


def test_labels_behind_a_leading_sentinel(folder):
  task = dataclasses.replace(settings(folder).task, leading_sentinel=True)
  infer(settings(folder, task=task, labels=("yes", "no"), output_format="json"))
  first = json.loads(written(folder)[0])
  reference = Reference(folder)
  for label in ("yes", "no"):
    ids = [TOKENIZER.sentinel(0), *TOKENIZER.encode(label), TOKENIZER.eos_id]
    found = reference.log_probs(LINES[0], ids[:-1])
    wanted = sum(found[i, token] for i, token in enumerate(ids))
    assert first["scores"][label] == pytest.approx(wanted, abs=1e-3)


def test_drawing_from_the_likeliest_token_is_greedy(folder):
  infer(settings(folder))
  greedy = written(folder)
  infer(settings(folder, decoding=Decoding(strategy="sample", top_k=1), seed=5))
  assert written(folder) == greedy


def test_beams_equal_a_search_that_recomputes_everything(folder):
  reference = Reference(folder)
  tokens = jnp.concatenate([reference.tokens("ab"), reference.tokens("cd")])
  module, params = reference.module, reference.params
  how = Decoding(strategy="beam", num_beams=3, alpha=0.6)
  found = scoring.call({}, params, Split({}), module, generation.generate, tokens, max_length=4,
                       how=how)

  def next_logits(last, state):
    prefix, index = state
    prefix = prefix.at[:, index].set(last[:, 0])
    logits = forward(module, params, jnp.repeat(tokens, 3, axis=0), prefix)
    return logits[:, index], (prefix, index + 1)

  start = (jnp.zeros((6, 4), jnp.int32), jnp.int32(0))
  wanted, _ = decoding.beam_search(next_logits, start, batch_size=2, max_length=4, num_beams=3,
                                   reorder=lambda state, index: (state[0][index], state[1]))
  np.testing.assert_array_equal(found, wanted[:, 0])


def test_standard_input_and_output(folder, monkeypatch, capsys):
  (folder / "small.gin").write_text(GIN)
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"good dog\r\nno")))
  code = main(["infer", "--gin_file=models/tiny.gin", f"--gin_file={folder / 'small.gin'}",
               f"--gin.INITIAL_CHECKPOINT_PATH={folder / 'backbone'}",
               "--gin_file=prompts/none.gin", "--gin_file=runs/infer.gin", "--gin.INPUT_FILE=-",
               "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 6}",
               "--gin.LABELS=['yes', 'no']"])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  answers = captured.out.splitlines()
  assert len(answers) == 2 and set(answers) <= {"yes", "no"}
  assert "2 predictions" in captured.err


def test_long_inputs_are_counted(folder):
  short = {"inputs": 12, "targets": 2}
  counts = infer(settings(folder, lengths=short, max_truncated=0.2))
  assert counts.long_inputs == 1
  with pytest.raises(UserError, match="1 of 7 would lose their end, the first is number 4; the "
                                      "longest has 16"):
    infer(settings(folder, lengths=short, max_truncated=0.1))


@pytest.mark.parametrize("content, message", [
  (b"", "INPUT_FILE is empty"), (b" \n\n", "INPUT_FILE is empty"),
  (b"fine\nb\xffd\n", "in.txt line 2: byte 0xff at column 2"), (None, "INPUT_FILE cannot be read")])
def test_bad_files(folder, content, message):
  (folder / "in.txt").unlink()
  if content is not None:
    (folder / "in.txt").write_bytes(content)
  with pytest.raises(UserError, match=message):
    infer(settings(folder))


@pytest.mark.parametrize("changes, message", [
  ({"output_format": "jsn"}, "did you mean 'json'"), ({"labels": ("a",)}, "LABELS do not name"),
  ({"labels": "ab"}, "LABELS do not name"),
  ({"labels": (0, "0 ")}, "LABELS do not name"), ({"batch_size": 0}, "BATCH_SIZE is not a count"),
  ({"input_file": None}, "nothing to predict for"),
  ({"output_file": "/no/such/folder/x"}, "OUTPUT_FILE cannot be written"),
  ({"prompt_file": None}, "there is none to fill it"),
  ({"model": model(False)}, "the model takes none")])
def test_bad_settings(folder, changes, message):
  with pytest.raises(UserError, match=message):
    infer(settings(folder, **changes))


def refuses(*args, **kwargs):
  raise PermissionError(13, "Permission denied")


def test_a_place_that_takes_no_files_is_found_before_the_weights_are_read(folder, monkeypatch):
  monkeypatch.setattr(prompt_bank.Bank, "load", lambda *args: pytest.fail("weights were read"))
  monkeypatch.setattr(disk.tempfile, "TemporaryFile", refuses)
  with pytest.raises(UserError, match="OUTPUT_FILE cannot be written to\n.*Permission denied"):
    infer(settings(folder))


@pytest.mark.parametrize("error, raised", [(refuses, UserError), (lambda *args: 1 / 0,
                                                                  ZeroDivisionError)])
def test_an_error_leaves_no_part_of_the_output(folder, monkeypatch, error, raised):
  monkeypatch.setattr(sys.modules["prompt_tuning.infer"], "_line", error)
  with pytest.raises(raised):
    infer(settings(folder))
  assert not list(folder.glob("out.txt*"))


def test_labels_that_the_method_cannot_write(folder):
  start = dataclasses.replace(settings(folder).model, prompt=WarpPrompt(
    CONFIG, PROMPT_LENGTH, labels=("yes", "no")))
  save_method(folder / "prompt.safetensors", start)
  given = {"model": start, "prompt_file": str(folder / "prompt.safetensors")}
  infer(settings(folder, labels=("no", "yes"), **given))
  assert set(written(folder)) <= {"yes", "no"}
  with pytest.raises(UserError, match="WARP cannot write all(.|\n)*'never', of LABELS"):
    infer(settings(folder, labels=("yes", "never"), **given))
  task = dataclasses.replace(settings(folder).task, leading_sentinel=True)
  with pytest.raises(UserError, match="WARP cannot write a leading sentinel"):
    infer(settings(folder, labels=("yes", "no"), task=task, **given))


@pytest.mark.parametrize("changes, message", [
  ({"strategy": "gredy"}, "did you mean 'greedy'"), ({"top_k": 4}, "TOP_K has no effect on greedy"),
  ({"strategy": "sample", "num_beams": 2}, "NUM_BEAMS has no effect on sample"),
  ({"strategy": "sample", "temperature": 0.0}, "temperature is out of range"),
  ({"strategy": "sample", "top_k": -1}, "top_k is out of range"),
  ({"strategy": "sample", "top_p": 1.5}, "top_p is out of range"),
  ({"strategy": "beam", "num_beams": 0}, "num_beams is out of range"),
  ({"strategy": "beam", "alpha": -0.1}, "alpha is negative")])
def test_bad_decoding(changes, message):
  with pytest.raises(UserError, match=message):
    Decoding(**changes)


def test_the_width_of_the_prompt_file(folder):
  save_prompt(folder / "prompt.npy", width=8)
  with pytest.raises(UserError, match=f"wanted: D = {CONFIG.emb_dim}"):
    infer(settings(folder))
