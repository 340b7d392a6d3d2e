"""Nearest words and similarities, against loops over the definition; and the command's files."""

import csv

import numpy as np
import pytest
from small_models import GIN, save_backbone, save_prompt

from prompt_tuning import plots
from prompt_tuning.main import main
from prompt_tuning.prompt_measures import nearest_words
from prompt_tuning.tasks import vocabularies


def cosine(a, b):
  return float(sum(x * y for x, y in zip(a, b, strict=True))
               / (sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5))


def test_nearest_words_equal_brute_force():
  rng = np.random.default_rng(0)
  prompt, embedding = rng.normal(size=(4, 6)), rng.normal(size=(30, 6))
  for vector, row in zip(prompt, nearest_words(prompt, embedding, "w{}".format, 7), strict=True):
    wanted = sorted(((cosine(vector, e), f"w{i}") for i, e in enumerate(embedding)), reverse=True)
    assert [word for word, _ in row] == [word for _, word in wanted[:7]]
    np.testing.assert_allclose([c for _, c in row], [c for c, _ in wanted[:7]], atol=1e-12)


def test_a_vector_without_direction_is_near_to_nothing():
  near, = nearest_words(np.zeros((1, 4)), np.eye(4), str, 2)
  assert near == [("0", 0.0), ("1", 0.0)]


@pytest.fixture
def flags(tmp_path):
  (tmp_path / "small.gin").write_text(GIN)
  return ["inspect", "--gin_file=models/tiny.gin", f"--gin_file={tmp_path / 'small.gin'}"]


def test_command_writes_tables(flags, tmp_path, capsys):
  params = save_backbone(tmp_path / "backbone")
  first, second = tmp_path / "a.npy", tmp_path / "b.npy"
  prompt = save_prompt(first, 0)
  other = save_prompt(second, 1, length=5)
  code = main([*flags, f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path / 'backbone'}", str(first),
               str(second), "--words=2", f"--output_dir={tmp_path / 'out'}"])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  assert "similarity of prompts" in captured.out and "norm of the vocabulary" in captured.out
  words = list(csv.DictReader((tmp_path / "out/words.csv").read_text().splitlines()))
  assert len(words) == (3 + 5) * 2
  # Ids from 259 on pad the table, and are no words.
  table = np.asarray(params["token_embedder"]["embedding"])[:259]
  piece = vocabularies.load_light("bytes").piece
  assert words[0]["word"] == piece(int(np.argmax([cosine(prompt[0], e) for e in table])))
  assert float(words[0]["norm"]) == pytest.approx(np.linalg.norm(prompt[0]), rel=1e-5)
  rows = list(csv.reader((tmp_path / "out/similarity.csv").read_text().splitlines()))
  assert float(rows[1][2]) == pytest.approx(cosine(prompt.mean(0), other.mean(0)), rel=1e-4)
  assert (tmp_path / "out/similarity.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("change, message", [
  (["--gin.INITIAL_CHECKPOINT_PATH=random"], "need the backbone's weights"),
  (["--words=0"], "--words is not a count"),
  (["--words=few"], "invalid int value: 'few'"),
  (["nowhere.npy"], "PROMPT does not exist")])
def test_command_errors(flags, tmp_path, capsys, change, message):
  save_backbone(tmp_path / "backbone")
  save_prompt(tmp_path / "a.npy")
  code = main([*flags, f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path / 'backbone'}",
               str(tmp_path / "a.npy"), *change])
  captured = capsys.readouterr()
  assert code == 2 and message in captured.err and "Traceback" not in captured.err


def test_wrong_width(flags, tmp_path, capsys):
  save_backbone(tmp_path / "backbone")
  save_prompt(tmp_path / "a.npy", width=8)
  assert main([*flags, f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path / 'backbone'}",
               str(tmp_path / "a.npy")]) == 2
  assert "D = 8" in capsys.readouterr().err


def test_names_in_a_figure_leave_out_what_all_have_in_common():
  assert plots.without_common_folders(["runs/a/0", "runs/a/1", "runs/b"]) == ["a/0", "a/1", "b"]
  assert plots.without_common_folders(["runs/a", "runs/a"]) == ["a", "a"]
  assert plots.without_common_folders(["0", "1"]) == ["0", "1"]
