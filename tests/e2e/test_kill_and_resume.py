"""Some kills of `kill_and_resume.py`, in every run of the tests: it says how to run more."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).with_name("kill_and_resume.py")


def test_killed_runs_that_resume_end_in_the_bits_of_the_uninterrupted_one():
  done = subprocess.run([sys.executable, SCRIPT, "--kills", "3", "--seed", "1", "--steps", "6"],
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  lines = [line for line in done.stdout.splitlines() if line.startswith("kill ")]
  assert len(lines) == 3 and all(line.endswith(": identical") for line in lines)
  assert any("INSIDE a save" in line for line in lines)
  assert re.search(r"^3 of 3 kills \([123] inside a save\)", done.stdout, re.MULTILINE)
