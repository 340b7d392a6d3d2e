"""What the launch scripts run on a worker, with this machine as the worker."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "tpu_scripts" / "on_worker"
pytestmark = pytest.mark.skipif(shutil.which("setsid") is None, reason="workers run Linux")


class Worker:
  def __init__(self, home):
    self.home = home

  def run(self, script, *words):
    return subprocess.run(
      ["bash", str(SCRIPTS / f"{script}.sh"), *words], capture_output=True, text=True, timeout=60,
      env={"HOME": str(self.home), "PATH": "/usr/bin:/bin", "START_SECONDS": "0.3",
           "STOP_SECONDS": "2", "CHIPS": str(self.home / "chip*"),
           "LIBTPU_LOCK": str(self.home / "lock")})

  def state(self, run):
    return self.run("status", run).stdout.strip().partition(": ")[2]

  def log(self, run):
    return (self.home / "prompt_tuning_runs" / run / "log").read_text()

  def until(self, run, state):
    for _ in range(100):
      if self.state(run) == state:
        return
      time.sleep(0.05)
    raise AssertionError(f"{self.state(run)}, not {state}: {self.log(run)}")


@pytest.fixture
def worker(tmp_path):
  worker = Worker(tmp_path)
  yield worker
  worker.run("stop", "--all")


def test_a_command_runs_detached_and_its_end_is_noted(worker):
  assert worker.state("r") == "not started"
  done = worker.run("start", "r", "sh", "-c", "pwd; echo \"$1\"; sleep 1; exit 0", "sh", "a  'b'")
  assert done.returncode == 0 and worker.state("r") == "running"
  worker.until("r", "ended 0")
  assert worker.log("r").splitlines()[1:] == [str(worker.home), "a  'b'"]


def test_what_fails_at_once_is_told_at_once(worker):
  done = worker.run("start", "r", "sh", "-c", "echo no such macro; exit 2")
  assert done.returncode == 4 and "no such macro" in done.stderr
  assert worker.state("r") == "ended 2"


def test_one_run_at_a_time_and_stop_lets_it_save(worker):
  saves = "trap 'echo saved; exit 0' TERM; sleep 60 & wait"
  assert worker.run("start", "r", "bash", "-c", saves).returncode == 0
  done = worker.run("start", "other", "true")
  assert done.returncode == 3 and "r is running" in done.stderr
  assert worker.run("stop", "r").stdout.strip().endswith("r stopped")
  assert worker.state("r") == "ended 0" and worker.log("r").endswith("saved\n")
  assert worker.run("start", "other", "true").returncode == 0


def test_what_ignores_sigterm_is_killed_with_its_children(worker):
  stubborn = "trap '' TERM; sleep 61.25 & wait; sleep 61.25"
  assert worker.run("start", "r", "bash", "-c", stubborn).returncode == 0
  assert worker.run("stop", "--all").stdout.strip().endswith("r killed")
  assert worker.state("r") == "ended 137"
  assert subprocess.run(["pgrep", "-f", "sleep 61.25"], capture_output=True).stdout == b""
  assert "was not running" in worker.run("stop", "r").stdout


@pytest.mark.skipif(shutil.which("fuser") is None, reason="fuser (psmisc) is not installed")
def test_stop_all_frees_the_chips(worker):
  (worker.home / "chip0").touch()
  (worker.home / "lock").touch()
  with (worker.home / "chip0").open() as chip:
    holder = subprocess.Popen(["sleep", "60"], stdin=chip)
  bystander = subprocess.Popen(["sleep", "60"])
  try:
    assert f"killed {holder.pid}, which held" in worker.run("stop", "--all").stdout
    assert holder.wait(5) == -9 and bystander.poll() is None
    assert not (worker.home / "lock").exists()
  finally:
    holder.kill()
    bystander.kill()
    bystander.wait()
