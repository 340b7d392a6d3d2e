"""Cells of a sweep that recover sentences: a row a seed, with the numbers of the command itself."""

import csv
import json

import pytest
from small_models import GIN, save_backbone

from prompt_tuning.main import main

GRID = """
AXES = {{'size': {{'small': ['--gin_file=models/tiny.gin', '--gin_file={here}/small.gin',
                           '--gin.INITIAL_CHECKPOINT_PATH={here}/backbone']}},
        'method': {{'one': ['recover', '--gin_file=runs/recover.gin', '--gin.VECTORS={vectors}']}}}}
BLOCKS = [{{'size': 'all', 'method': 'all'}}]
FLAGS = ["--gin.SENTENCES={{'mine': '{here}/text.txt'}}", "--gin.BACKBONES=('given',)",
         '--gin.SEEDS=(3, 5)', '--gin.TRAIN_STEPS=3', '--gin.MAX_EXAMPLES=2',
         '--gin.SENTENCE_LENGTH=5']
"""


@pytest.fixture
def sweep(tmp_path):
  (tmp_path / "small.gin").write_text(GIN)
  (tmp_path / "text.txt").write_text("ab\ncd\n")
  save_backbone(tmp_path / "backbone")

  def run(vectors):
    (tmp_path / "grid.gin").write_text(GRID.format(here=tmp_path, vectors=vectors))
    return main(["sweep", f"--gin_file={tmp_path / 'grid.gin'}",
                 f"--gin.SWEEP_DIR={tmp_path / 'out'}"])
  return run


def test_a_row_a_seed_with_the_numbers_of_the_run(sweep, tmp_path):
  assert sweep("(2,)") == 0
  with (tmp_path / "out/results.csv").open() as file:
    rows = list(csv.DictReader(file))
  with (tmp_path / "out/small-one/results.csv").open() as file:
    found = list(csv.DictReader(file))
  assert [row["seed"] for row in rows] == ["3", "5"]
  for row, own in zip(rows, found, strict=True):
    assert (row["seed"], float(row["test"])) == (own["seed"], float(own["exact_match"]))
    assert (row["metric"], row["status"], row["steps"]) == ("exact_match", "done", "3")
    # Two vectors of 16 numbers a sentence.
    assert row["trained_parameters"] == "32" and row["command"].startswith("prompt-tuning recover")
  record = json.loads((tmp_path / "out/records/small-one.json").read_text())
  assert record["backbone_parameters"] == int(rows[0]["backbone_parameters"]) > 0


def test_a_cell_of_several_numbers_of_vectors_is_an_error(sweep, capsys):
  assert sweep("(1, 2)") == 2
  message = capsys.readouterr().err
  assert "small-one recovers several things" in message and "VECTORS = (1, 2)" in message
