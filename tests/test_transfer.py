"""Similarities, rankings and averages of prompts, against loops over the definitions."""

import csv
import json

import numpy as np
import pytest
from small_models import save_prompt

from prompt_tuning.checkpoints import prompt_files
from prompt_tuning.errors import UserError
from prompt_tuning.main import main
from prompt_tuning.transfer import average, ranking, similarity


def cosine(a, b):
  return float(sum(x * y for x, y in zip(a, b, strict=True))
               / (sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5))


@pytest.fixture(scope="module")
def prompts():
  rng = np.random.default_rng(1)
  return [rng.normal(size=(n, 5)) for n in (2, 3, 7)]


def test_similarity_of_prompts_of_different_lengths(prompts):
  mean, per_token = similarity(prompts), similarity(prompts, "per_token")
  for i, a in enumerate(prompts):
    for j, b in enumerate(prompts):
      assert mean[i, j] == pytest.approx(cosine(sum(a) / len(a), sum(b) / len(b)))
      assert per_token[i, j] == pytest.approx(np.mean([cosine(x, y) for x in a for y in b]))


def test_the_target_is_most_similar_to_itself(prompts):
  for measure in ("mean", "per_token"):
    scores = ranking(prompts[0], [prompts[1], prompts[0], prompts[2]], measure)
    assert scores.argmax() == 1 and scores.shape == (3,)


def test_average_by_hand():
  a, b = np.ones((2, 3), np.float32), 5 * np.ones((2, 3), np.float32)
  np.testing.assert_allclose(average([a, b], [0.3, 0.1]), 2 * np.ones((2, 3)), rtol=1e-6)


@pytest.mark.parametrize("arguments,what", [
  (([np.ones((2, 3)), np.ones((3, 3))], [0.1, 0.2]), "Prompts of different shapes have no average"),
  (([np.ones((2, 3))] * 2, [0.1, -0.2]),
   "A source that is not similar has no weight in an average")])
def test_what_has_no_average(arguments, what):
  with pytest.raises(UserError) as error:
    average(*arguments)
  assert error.value.what == what


@pytest.fixture
def runs(tmp_path):
  """Two runs and a target that is near to the second."""
  for i, task in enumerate(("sst2", "rte")):
    folder = tmp_path / task
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps({"task": task}))
    save_prompt(folder / "prompt.npy", i)
  values = np.load(tmp_path / "rte/prompt.npy") + 0.01
  np.save(tmp_path / "target.npy", values)
  return tmp_path


def test_command_ranks_averages_and_writes(runs, capsys):
  code = main(["transfer", str(runs / "sst2"), str(runs / "rte"), f"--target={runs / 'target.npy'}",
               f"--average={runs / 'start.npz'}", f"--output_dir={runs / 'out'}"])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  assert captured.out.index("best first") < captured.out.rindex("rte") < captured.out.rindex("sst2")
  start = prompt_files.read(str(runs / "start.npz"))
  np.testing.assert_allclose(start.values, np.load(runs / "rte/prompt.npy"), rtol=1e-6)
  assert start.metadata["task"] == "rte"
  rows = list(csv.reader((runs / "out/similarity.csv").read_text().splitlines()))
  assert rows[0] == ["", "sst2", "rte", "target"] and float(rows[2][3]) > 0.9
  assert (runs / "out/similarity.png").stat().st_size > 1000


@pytest.mark.parametrize("arguments,what", [
  (["sst2"], "There is nothing to compare the prompts with"),
  (["sst2", "rte", "--average=x.npz"], "There is nothing to compare the prompts with"),
  (["sst2", "rte", "--target=target.npy", "--top=3"], "--top is out of range"),
  (["sst2", "rte", "--measure=cosine"], "There is no such measure of similarity"),
  (["sst2", "wide.npy"], "Prompts of different widths cannot be compared"),
  (["sst2", "bank.npy"], "A bank of prompts cannot be compared")])
def test_mistakes(runs, arguments, what, capsys, monkeypatch):
  monkeypatch.chdir(runs)
  np.save("wide.npy", np.ones((3, 9), np.float32))
  np.save("bank.npy", np.ones((2, 3, 16), np.float32))
  assert main(["transfer", *arguments]) == 2
  assert capsys.readouterr().err.startswith(what)


def test_prompts_that_are_not_there_are_called_by_their_argument(runs, capsys):
  for argv, what in ((["nowhere.npy", f"--target={runs / 'target.npy'}"], "SOURCE"),
                     ([str(runs / "rte"), "--target=nowhere.npy"], "--target")):
    assert main(["transfer", *argv]) == 2
    assert f"{what} does not exist\n  found:  nowhere.npy" in capsys.readouterr().err
