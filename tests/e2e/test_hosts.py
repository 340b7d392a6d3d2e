"""Two and four real processes against one: the same numbers, one death ends all, a resume.

What is equal bit for bit: two processes of a device each, and one process of two devices. They run
one program over two devices, and a sum of two numbers has one order. Four devices sum in the order
of the collective (gloo's ring between processes, XLA's own inside one): equal within 1e-5.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.e2e
TIMEOUT = 30  # --host_timeout, long enough for a machine that does other things too.


class Launcher:
  def __init__(self, folder):
    self.folder = folder
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(
                                  filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
                                # Compiles in less time; all runs here are compared with each other.
                                "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    self._process = subprocess.Popen(
      [sys.executable, str(HERE / "host_runs.py"), str(folder)], stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE.parent.parent,
      env=environment)

  def run(self, name, processes, **options):
    self._process.stdin.write(json.dumps({"name": name, "processes": processes, **options}) + "\n")
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def prompt(self, name):
    return np.load(self.folder / name / "prompt.npy")

  def metrics(self, name, metric="loss"):
    rows = [row.split(",") for row in (self.folder / name / "metrics.csv").read_text().split()]
    return [(int(step), split, float(value)) for step, split, found, value in rows[1:]
            if found == metric]

  def summary(self, name):
    return json.loads((self.folder / name / "summary.json").read_text())

  def close(self):
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait(30)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
  launcher = Launcher(tmp_path_factory.mktemp("hosts"))
  yield launcher
  launcher.close()


@pytest.fixture(scope="module")
def one(launcher):
  result = launcher.run("one", 1, devices=2)
  assert result["codes"] == [0], result["logs"][0]


def test_two_processes_one_is_killed_both_resume_to_the_bits_of_one(launcher, one):
  result = launcher.run("two", 2, kill=[1, 6, 9], timeout=TIMEOUT)
  assert result["codes"] == [3, -9], result["logs"][0]
  assert result["seconds"][0] < TIMEOUT + 10
  assert "another one is gone" in result["logs"][0] and "host 1" in result["logs"][0]
  assert "resumes from the last checkpoint" in result["logs"][0]
  result = launcher.run("two", 2)
  assert result["codes"] == [0, 0], result["logs"]
  assert launcher.summary("two")["resumed_at"] == 4 and launcher.summary("two")["hosts"] == 2
  assert launcher.prompt("two").tobytes() == launcher.prompt("one").tobytes()
  for metric in ("loss", "accuracy", "grad_norm", "label_loss"):
    assert launcher.metrics("two", metric) == launcher.metrics("one", metric)
  # Process 0 alone reports.
  assert "best evaluation" in result["logs"][0] and "best evaluation" not in result["logs"][1]


def test_four_processes_with_sharded_weights_stop_at_one_step(launcher, one):
  result = launcher.run("four", 4, kill=[2, 5, 15], macros={
    "LAYOUT": "fsdp", "TRAIN_STEPS": 100_000, "EVAL_PERIOD": 100_000,
    "train.TrainConfig.eval_settings": None})
  assert result["codes"] == [75] * 4, result["logs"]
  summary = launcher.summary("four")
  assert summary["interrupted"] and summary["hosts"] == 4 and 5 <= summary["steps"] < 100_000
  saved = [path.name for path in (launcher.folder / "four/checkpoints/last").iterdir()]
  assert saved == [str(summary["steps"])]
  (step, _, loss), (_, _, wanted) = launcher.metrics("four")[0], next(
    row for row in launcher.metrics("one") if row[1] == "train")
  assert step == 3 and abs(loss - wanted) < 1e-5 * wanted


def test_a_host_with_another_mistake_stops_the_others(launcher, one):
  result = launcher.run("wrong", 2, timeout=TIMEOUT, own_flags={
    "1": {"--gin.BATCH_SIZE": "7"}})
  assert result["codes"] == [3, 2], result["logs"]
  assert "host 1 ended: " in result["logs"][0] and "BATCH_SIZE" in result["logs"][0]


def test_a_folder_that_is_not_shared_is_told(launcher, one):
  result = launcher.run("apart", 2, timeout=TIMEOUT, own_flags={
    "1": {"--gin.MODEL_DIR": repr(str(launcher.folder / "elsewhere"))}})
  assert result["codes"] == [2, 2], result["logs"]
  assert all("not the same folder on every host" in log and "hosts [1]" in log
             for log in result["logs"])
