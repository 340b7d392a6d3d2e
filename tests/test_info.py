"""The parameter table, against closed forms; no weights, no task, no TensorFlow."""

import dataclasses
import json
import subprocess
import sys

import pytest
from small_models import CONFIG, GIN, PROMPT_LENGTH, model

from prompt_tuning import info
from prompt_tuning.main import main
from prompt_tuning.optimizers import Adafactor, AdamW
from prompt_tuning.prompts.attempt import AttemptPrompt

D, V = CONFIG.emb_dim, CONFIG.vocab_size
ATTENTION = 4 * D * CONFIG.num_heads * CONFIG.head_dim
MLP = 3 * D * CONFIG.mlp_dim
BIAS = CONFIG.relative_attention_num_buckets * CONFIG.num_heads
# Norms: two in an encoder layer, three in a decoder layer, one at the end of each stack.
ENCODER = ATTENTION + MLP + 2 * D + D + BIAS
DECODER = 2 * ATTENTION + MLP + 3 * D + D + BIAS + D * V
BACKBONE = V * D + ENCODER + DECODER
PROMPT = PROMPT_LENGTH * D


def measure(trainable=(), prompt=True, optimizer=None, **changes):
  return info.measure(info.InfoConfig(model=model(prompt, **changes), trainable=trainable,
                                      optimizer=optimizer or Adafactor()))


def test_prompt_tuning():
  found = measure(optimizer=AdamW(), frozen_dtype="bfloat16")
  assert found["backbone_parameters"] == BACKBONE
  assert found["trained_parameters"] == found["served_parameters"] == PROMPT
  assert found["trained_share"] == pytest.approx(PROMPT / (PROMPT + BACKBONE))
  assert found["frozen_bytes"] == 2 * BACKBONE
  assert found["trained_bytes"] == found["served_bytes"] == 4 * PROMPT
  # Two moments a parameter, and counters.
  assert 0 <= found["optimizer_bytes"] - 2 * 4 * PROMPT <= 64
  assert {row["module"]: row["parameters"] for row in found["modules"]} == {
    "backbone/decoder": DECODER, "backbone/encoder": ENCODER, "backbone/token_embedder": V * D,
    "prompt": PROMPT}


def test_model_tuning_and_part_of_it():
  every = measure((".*",), prompt=False)
  assert every["trained_parameters"] == every["served_parameters"] == BACKBONE
  assert every["frozen_bytes"] == 0
  part = measure((".*token_embedder.*",), frozen_dtype="bfloat16")
  assert part["trained_parameters"] == PROMPT + V * D
  assert part["trained_bytes"] == 4 * (PROMPT + V * D)
  assert part["frozen_bytes"] == 2 * (ENCODER + DECODER)


def test_source_prompts_are_frozen():
  """They are read with the backbone, have no optimizer state, and are served."""
  sources, hidden = 2, 5
  attempt = AttemptPrompt(CONFIG, PROMPT_LENGTH, sources=("a", "b"), hidden=hidden)
  found = info.measure(info.InfoConfig(
    model=dataclasses.replace(model(frozen_dtype="bfloat16"), prompt=attempt), trainable=(),
    optimizer=AdamW()))
  trained, kept = PROMPT + 2 * D * hidden + 2 * D, sources * PROMPT
  assert found["trained_parameters"] == trained and found["trained_bytes"] == 4 * trained
  assert 0 <= found["optimizer_bytes"] - 2 * 4 * trained <= 64
  assert found["frozen_bytes"] == 2 * BACKBONE + 4 * kept
  assert found["prompt_parameters"] == found["served_parameters"] == trained + kept
  assert found["total_parameters"] == BACKBONE + trained + kept


def test_a_plain_model_trains_nothing():
  found = measure(prompt=False)
  assert (found["trained_parameters"], found["optimizer_bytes"], found["served_bytes"]) == (0, 0, 0)


@pytest.mark.parametrize("count, shown", [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"),
                                          (44_543_000_000, "44.5 GB")])
def test_bytes(count, shown):
  assert info.show_bytes(count) == shown


def test_xxl_as_json(capsys):
  flags = ["--gin_file=models/t5_1_1_xxl.gin", "--gin_file=prompts/soft.gin", "--json"]
  assert main(["info", *flags, "--gin.PROMPT_LENGTH=5"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["backbone_parameters"] == 11_135_332_352
  assert found["trained_parameters"] == found["served_parameters"] == 5 * 4096


def test_table_and_paths(tmp_path, capsys):
  (tmp_path / "small.gin").write_text(GIN)
  flags = ["--gin_file=models/tiny.gin", f"--gin_file={tmp_path / 'small.gin'}", "--paths"]
  assert main(["info", *flags, "--gin.TRAINABLE=['token_embedder/embedding']"]) == 0
  out = capsys.readouterr().out
  assert "backbone/token_embedder/embedding  [264, 16]  trained" in out
  assert "frozen\n" in out and f"{BACKBONE:,}" in out


def test_errors(capsys):
  flags = ["info", "--gin_file=models/tiny.gin"]
  assert main([*flags, "--gin.TRAINABLE=['encodr/.*']"]) == 2
  assert "`prompt-tuning info --paths` lists the paths" in capsys.readouterr().err
  assert main([*flags, "--gin.MODEL_DIR=x"]) == 2
  assert "this command does not use it" in capsys.readouterr().err
  assert main(["info"]) == 2
  assert "BACKBONE" in capsys.readouterr().err


def test_info_and_tasks_do_not_import_tensorflow():
  code = ("import sys\nfrom prompt_tuning.main import main\n"
          "assert not main(['info', '--gin_file=models/tiny.gin', '--gin_file=prompts/soft.gin'])\n"
          "assert not main(['tasks'])\n"
          "print(sorted({'tensorflow', 'seqio'} & set(sys.modules)))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().endswith("[]")


def test_methods_side_by_side(capsys):
  flags = ["info", "--gin_file=models/t5_1_1_small.gin", "--methods", "--json"]
  assert main([*flags, "--gin.CLASS_LABELS=['yes', 'no']", "--gin.LORA_RANK=4"]) == 0
  found = json.loads(capsys.readouterr().out)
  # D 512, F 1024, 6 heads of 64, 8 + 8 layers.
  assert found["soft"]["trained_parameters"] == 100 * 512
  assert found["model tuning"]["served_parameters"] == 76_961_152
  assert found["lora"]["trained_parameters"] == 2 * 8 * 3 * 4 * (512 + 384)
  assert found["ia3"]["trained_parameters"] == 8 * 3 * 2 * 384 + 8 * 2 * 1024
  assert found["prefix"]["served_parameters"] == 3 * 8 * 2 * 10 * 6 * 64
  assert found["ptuning"]["served_parameters"] < found["ptuning"]["trained_parameters"]
  assert "SOURCE_PROMPTS" in found["attempt"]


def test_a_macro_that_no_method_reads_is_an_error(capsys):
  assert main(["info", "--gin_file=models/tiny.gin", "--methods", "--gin.LORA_RANG=4"]) == 2
  assert capsys.readouterr().err.startswith("No method reads these macros")
