"""kill -9 at random moments, then the same command: does the run end as if nothing had happened?

  python tests/e2e/kill_and_resume.py --kills 20 --seed 0

Every second moment is drawn uniformly over the time that the whole run takes. The others are aimed
inside a save: at one of its operations on files, drawn uniformly (create, rename, delete: before
it, or up to 5 ms after, while array data is written). A run that was killed is killed again with
chance a third, while it resumes. What it then ends with is compared with an uninterrupted run:
all files, prompt, checkpoints and pictures bit for bit.

Each command is the real one, in a process group of its own, forked from a parent that has imported
everything and started nothing: imports take longer than the toy run, and hold no moment of
interest. In the child an audit hook counts the operations below MODEL_DIR into memory that it
shares with the parent, so it is known where it was when it died.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
from prompt_tuning.native_logs import quiet_environment, quiet_imports  # noqa: E402

quiet_environment()
with quiet_imports():
  import jax
  import tensorboardX.event_file_writer  # noqa: F401  (what a run imports when it first logs)
  import toy_tasks  # noqa: F401
  from run_differences import differences
  from toy_runs import Folder

  from prompt_tuning import plots  # noqa: F401
  from prompt_tuning.checkpoints import backbone as backbone_files
  from prompt_tuning.checkpoints.trained import TrainedCheckpoints
  from prompt_tuning.main import main
  from prompt_tuning.progress import Progress
  from prompt_tuning.run_dir import RunDir
  from prompt_tuning.train import train  # noqa: F401

WHOLE = "whole"
LONGEST_DELAY = 0.005
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")


@dataclasses.dataclass(frozen=True)
class Moment:
  """Attributes:
    operation: number of the one on files that it is counted from; -1: the start.
    seconds: after that began; 0: before it is done.
    by_parent: another process kills, as a person or a scheduler does.
  """

  operation: int
  seconds: float
  by_parent: bool

  def __str__(self):
    name = "the start" if self.operation < 0 else f"operation {self.operation}"
    return f"{name} + {1000 * self.seconds:.1f} ms"


class Watch:
  """What a child does to MODEL_DIR, in memory that its parent still reads after its death.

  Attributes:
    counts: int64 `[3]`: operations on files; saves that it is inside of; steps of training.
    times: float64 `[most]`: when an operation began, in seconds from the start.
    inside: uint8 `[most]`: 1 for an operation of a save.
  """

  def __init__(self):
    most = 1 << 16
    self._last = slice(24, 224)
    self._memory = mmap.mmap(-1, self._last.stop + 9 * most)
    self.counts = np.frombuffer(self._memory, np.int64, 3)
    self.times = np.frombuffer(self._memory, np.float64, most, self._last.stop)
    self.inside = np.frombuffer(self._memory, np.uint8, most, self._last.stop + 8 * most)
    self._started = 0.0

  def clear(self) -> None:
    self._memory[:] = bytes(len(self._memory))
    self._started = time.monotonic()

  @property
  def operations(self) -> int:
    return int(self.counts[0])

  @property
  def is_in_save(self) -> bool:
    return bool(self.counts[1])

  @property
  def steps(self) -> int:
    return int(self.counts[2])

  @property
  def last(self) -> str:
    """The latest operation."""
    return self._memory[self._last].rstrip(b"\0").decode() or "nothing"

  def begin(self, model_dir: Path, at: Moment | None) -> None:
    """Watches this process, and kills it at the moment, unless its parent does."""
    for owner, name in ((TrainedCheckpoints, "save"), (RunDir, "write_prompt"),
                        (backbone_files, "save")):
      setattr(owner, name, self._counted(getattr(owner, name), 1, -1))
    Progress.advance = self._counted(Progress.advance, 2, 0)
    base = f"{model_dir}/"

    def hook(event: str, args: tuple) -> None:
      if event in _CHANGES or (event == "open" and isinstance(args[2], int)
                               and args[2] & (os.O_WRONLY | os.O_RDWR)):
        path = f"{args[0]}/"
        # Who deletes a folder names its files relative to a descriptor.
        if path.startswith(base) or (event in ("os.remove", "os.rmdir") and args[1] != -1):
          self._operation(f"{event} {path.removeprefix(base).rstrip('/') or '.'}", at)

    sys.addaudithook(hook)

  def _counted(self, function, which: int, afterwards: int):
    def counted(*args, **kwargs):
      self.counts[which] += 1
      result = function(*args, **kwargs)
      self.counts[which] += afterwards
      return result
    return counted

  def _operation(self, name: str, at: Moment | None) -> None:
    number = self.operations
    self.inside[number], self.times[number] = self.is_in_save, time.monotonic() - self._started
    self._memory[self._last] = name.encode()[:200].ljust(200, b"\0")
    self.counts[0] += 1
    if at is not None and number == at.operation and not at.by_parent:
      if not at.seconds:
        os.kill(os.getpid(), signal.SIGKILL)
      threading.Timer(at.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


class Runs:
  """A folder of runs of one command.

  Args:
    steps: of each; every second one is evaluated and saved.
    trainable: backbone parameters trained besides the prompt.
  """

  def __init__(self, path: Path, steps: int, trainable: str):
    self.folder = Folder(path)
    self.watch = Watch()
    self._macros = {"TRAIN_STEPS": steps, "EVAL_PERIOD": 2, "DROPOUT_RATE": 0.1}
    if trainable:
      self._macros["TRAINABLE"] = (trainable,)

  def path(self, name: str) -> Path:
    return self.folder.path / name

  def run(self, name: str, at: Moment | None = None) -> int:
    """Runs the command until it ends or is killed; its exit code, -9 if it was killed."""
    self.watch.clear()
    os.environ["PROMPT_TUNING_CACHE"] = str(self.folder.path / f"{name}_cache")
    child = forked(lambda: self._command(name, at))
    if at is not None and at.by_parent:
      ended = (0, 0)
      while self.watch.operations <= at.operation and not ended[0]:
        time.sleep(0.002)
        ended = os.waitpid(child, os.WNOHANG)
      if ended[0]:
        return os.waitstatus_to_exitcode(ended[1])
      time.sleep(at.seconds)
      os.killpg(child, signal.SIGKILL)  # The group is there until it is waited for.
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

  def saved(self, name: str) -> int | None:
    """The newest checkpoint that a resume could restore."""
    steps = [int(path.name) for path in (self.path(name) / "checkpoints/last").glob("*")
             if path.name.isdecimal()]
    return max(steps, default=None)

  def log(self, name: str) -> Path:
    return self.folder.path / f"{name}.log"

  def _command(self, name: str, at: Moment | None) -> int:
    with self.log(name).open("a") as log:
      os.dup2(log.fileno(), 1)
      os.dup2(log.fileno(), 2)
    self.watch.begin(self.path(name), at)
    return main(self.folder.arguments(name, **self._macros))


def forked(function) -> int:
  """Starts a child that exits with the function's number; its id, which is its group's too."""
  sys.stdout.flush()
  child = os.fork()
  if child:
    with contextlib.suppress(PermissionError, ProcessLookupError):
      os.setpgid(child, child)
    return child
  code = 1
  try:
    os.setpgid(0, 0)
    code = function()
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclasses.dataclass(frozen=True)
class Kill:
  """Attributes:
    text: moment, step, what was going on.
    in_save: it came inside a save.
    saved: step of the newest checkpoint then, or None.
  """

  text: str
  in_save: bool
  saved: int | None


class Plan:
  """Draws the moments, every second one inside a save.

  Args:
    seconds: that an uninterrupted run takes.
    watch: what it did. A time is counted from the operation before it, because how fast a machine
      is changes.
  """

  def __init__(self, seed: int, seconds: float, watch: Watch):
    self._draw = random.Random(seed)
    self._seconds, self._times = seconds, watch.times[:watch.operations].copy()
    self._in_saves = np.flatnonzero(watch.inside).tolist()

  def moment(self, number: int) -> Moment:
    if number % 2:
      at = self._draw.uniform(0.0, self._seconds)
      before = int(np.searchsorted(self._times, at)) - 1
      return Moment(before, at - (self._times[before] if before >= 0 else 0.0), by_parent=True)
    delay = self._draw.choice((0.0, self._draw.uniform(0.0, LONGEST_DELAY)))
    return Moment(self._draw.choice(self._in_saves), delay, by_parent=False)

  def again(self) -> bool:
    return self._draw.random() < 1 / 3


def kill_all(runs: Runs, kills: int, seed: int) -> list[str]:
  """Kills and resumes, and prints a line a kill; what was found wrong."""
  began = time.time()
  for name in (WHOLE, "again"):  # The first one compiles, so it takes longer than the others will.
    started = time.time()
    code = runs.run(name)
    seconds = time.time() - started
    if found := end_differs(runs, name, code):
      return [f"uninterrupted: {line}" for line in found]
  print(f"uninterrupted: {seconds:.1f} s, {runs.watch.operations} operations on files, "
        f"{np.count_nonzero(runs.watch.inside)} of them in saves", flush=True)
  plan, done, wrong, same = Plan(seed, seconds, runs.watch), [], [], 0
  for number in itertools.count():
    if len(done) >= kills or len(wrong) > kills:
      break
    name = f"run_{number:02d}"
    killed, found = kill_one(runs, name, plan, len(done), kills)
    for kill in killed:
      done.append(kill)
      print(f"kill {len(done):2d} in {name} {kill.text}; resumed "
            f"{'at the start' if kill.saved is None else f'at step {kill.saved}'}: "
            f"{'; '.join(found) or 'identical'}", flush=True)
    same += 0 if found else len(killed)
    wrong += [f"{name}: {line}" for line in found]
  print(f"{same} of {len(done)} kills ({sum(kill.in_save for kill in done)} inside a save), in "
        f"{number} runs, end in the bits of the uninterrupted run; {time.time() - began:.0f} s")
  return wrong


def kill_one(runs: Runs, name: str, plan: Plan, done: int,
             most: int) -> tuple[list[Kill], list[str]]:
  """Kills one run, once or more, until it ends; the kills, and what differs in the end."""
  killed: list[Kill] = []
  while True:
    saved = runs.saved(name)
    kills_left = done + len(killed) < most and (not killed or plan.again())
    at = plan.moment(done + len(killed)) if kills_left else None
    code = runs.run(name, at)
    if code != -signal.SIGKILL:
      found = end_differs(runs, name, code)
      resumed = None if code else json.loads(
        (runs.path(name) / "summary.json").read_text())["resumed_at"]
      if not code and resumed != saved:
        found.append(f"it resumed at {resumed}, not at {saved}")
      return killed, found
    where = "INSIDE a save" if runs.watch.is_in_save else "in no save"
    killed.append(Kill(f"at {at}, step {(saved or 0) + runs.watch.steps}, {where} "
                       f"(last: {runs.watch.last})", runs.watch.is_in_save, runs.saved(name)))


def end_differs(runs: Runs, name: str, code: int) -> list[str]:
  """How a run that ended differs from the uninterrupted one, read by a child: it starts threads."""
  if code:
    return [f"it exits with {code}: see {runs.log(name)}"]
  report = runs.folder.path / "report.txt"

  def write() -> int:
    report.write_text("\n".join(differences(runs.path(WHOLE), runs.path(name))))
    return 0

  if os.waitpid(forked(write), 0)[1]:
    return ["it cannot be read"]
  return report.read_text().splitlines()


def script() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--steps", type=int, default=12, help="of each run")
  parser.add_argument("--trainable", default="", metavar="PATTERN",
                      help="backbone parameters that are trained besides the prompt")
  parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the runs there")
  options = parser.parse_args()
  place = options.keep or Path(tempfile.mkdtemp(prefix="kill_and_resume"))
  place.mkdir(parents=True, exist_ok=True)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(place / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  wrong = kill_all(Runs(place, options.steps, options.trainable), options.kills, options.seed)
  for line in wrong:
    print(line, file=sys.stderr)
  if options.keep is None and not wrong:
    shutil.rmtree(place)
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(script())
