"""Several processes that run one program, each with its own devices: a slice of a pod, a cluster.

Every process runs the same command. They find each other (`join`), read their own rows, compute
together, and save together; process 0 writes everything else. Whatever a decision depends on is the
same number on all of them, so they never have to agree on a next step.

  dead hosts    a process that ends by an error tells the others why; one that is gone without a
                word is noticed by its pulse, a key in JAX's coordination service. The others print
                which one it was, and end within the host timeout
  preemption    SIGTERM at one process stops all of them, at the same step (JAX's preemption sync)

JAX's own coordination service is the second line: it ends processes that cannot be told, such as
all others when process 0 is killed, whose memory it lives in.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prompt_tuning import cluster
from prompt_tuning.errors import UserError

TIMEOUT_SECONDS = 60
JOIN_SECONDS = 300
# Exit code of a process that ends because another one did.
LOST_A_HOST = 3
# EX_TEMPFAIL: told to stop, saved, and not done. With 0 a launcher would take the run for finished.
STOPPED = 75
_PULSES_A_TIMEOUT = 10
# A loaded machine may be late by one pulse.
_SURELY_LATE = 3


@dataclasses.dataclass(frozen=True)
class Site:
  """Attributes:
    index, count: this process, of how many.
    how: what they were found by.
  """

  index: int = 0
  count: int = 1
  how: str = "one process"


_pulse: "_Pulse | None" = None


def join(flags: cluster.Flags, *, join_seconds: int = JOIN_SECONDS) -> Site:
  """Joins the other processes, where there are any. Before any device is used.

  Raises:
    UserError: they cannot be found, or do not come.
  """
  global _pulse
  found = cluster.find(flags, os.environ)
  if found is None:
    return Site()
  import jax
  timeout = flags.timeout or TIMEOUT_SECONDS
  try:
    jax.distributed.initialize(
      found.coordinator, found.count, found.index, local_device_ids=found.devices,
      initialization_timeout=join_seconds, shutdown_timeout_seconds=join_seconds,
      # Longer than ours, so that ours says what happened.
      heartbeat_timeout_seconds=2 * timeout + 10)
  except Exception as error:  # gRPC's, the metadata server's, a port that is taken.
    raise UserError("The hosts of this run cannot be joined",
                    found=f"by {found.how}: {_first_line(error)}",
                    wanted=f"every process of the run to come within {join_seconds} s",
                    fix="see that the same command was started on every host and that they reach "
                    "the coordinator's port; --hosts 1 runs on this one alone") from error
  site = Site(jax.process_index(), jax.process_count(), found.how)
  if site.count > 1:
    _pulse = _Pulse(site, timeout)
  return site


def count() -> int:
  """Processes of this run."""
  return 1 if _pulse is None else _pulse.site.count


def is_first() -> bool:
  """Whether this process writes what only one may write."""
  return _pulse is None or _pulse.site.index == 0


def barrier(name: str) -> None:
  """Waits for all processes."""
  if count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def stop_is_agreed(step: int) -> bool:
  """Whether a process was told to stop and all of them are at the step where they do."""
  from jax.experimental import multihost_utils
  return count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def fetch(tree: Any) -> Any:
  """Arrays that lie on several hosts, whole on this one; every process must call it."""
  if count() == 1:
    return tree
  import jax
  from jax.experimental import multihost_utils

  def one(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
      return leaf
    if leaf.is_fully_replicated:
      return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(one, tree)


def put(tree: Any, shardings: Any) -> Any:
  """`jax.device_put`, of values that every process has the whole of."""
  import jax
  if count() == 1:
    return jax.device_put(tree, shardings)

  def one(leaf: Any, sharding: Any) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(one, tree, shardings)


def row_share(sharding: Any, shards: int) -> tuple[int, int]:
  """Which equal share of a batch's rows this process's devices compute: (index, of how many).

  Args:
    sharding: of a batch.
    shards: pieces that it splits the rows into.
  """
  if count() == 1:
    return 0, 1
  import jax
  spans = {index[0].indices(shards)[:2]
           for device, index in sharding.devices_indices_map((shards,)).items()
           if device.process_index == jax.process_index()}
  rows = sorted(row for start, stop in spans for row in range(start, stop))
  if rows != list(range(rows[0], rows[-1] + 1)) or shards % len(rows) or rows[0] % len(rows):
    raise UserError("The layout scatters a host's rows", found=f"rows {rows} of {shards} pieces",
                    wanted="neighbouring rows on each host", fix="use another LAYOUT")
  return rows[0] // len(rows), shards // len(rows)


def check_shared(folder: str) -> None:
  """Checks that all processes see one and the same folder.

  Raises:
    UserError: they do not.
  """
  if count() == 1:
    return
  import numpy as np
  from jax.experimental import multihost_utils
  token = int(multihost_utils.broadcast_one_to_all(
    np.frombuffer(os.urandom(3) + b"\0", np.int32))[0])
  mark = pathlib.Path(folder) / f".shared-{token:x}"
  if is_first():
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
  barrier("marked")
  seen = mark.exists()
  everywhere = np.asarray(multihost_utils.process_allgather(np.asarray(seen)))
  if is_first():
    mark.unlink()
  if not everywhere.all():
    raise UserError("MODEL_DIR is not the same folder on every host",
                    found=f"{folder}: hosts {np.flatnonzero(~everywhere).tolist()} do not see what "
                    "host 0 writes there", wanted="a folder that all hosts share",
                    fix="a network file system or a mounted bucket (docs/hosts.md)")


@contextlib.contextmanager
def told() -> Iterator[None]:
  """Around a run: an error that ends it here is told to the others, which end too."""
  try:
    yield
  except BaseException as error:
    if _pulse is not None:
      if not isinstance(error, UserError | KeyboardInterrupt):
        # It may be the echo of another process's end; that one's name says more.
        _pulse.blame(error)
      _pulse.leave(str(error) if isinstance(error, UserError) else _first_line(error))
    raise


def end(code: int) -> int:
  """The exit code; with others still there, an error ends the process here and now.

  JAX would wait at exit for processes that will not come. All stop together where they are told to.
  """
  if _pulse is not None and code not in (0, STOPPED):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


class _Pulse:
  """A thread that shows the others that this process lives, and watches them."""

  def __init__(self, site: Site, timeout: float):
    from jax._src import distributed  # What the public module does not show: the key-value store.
    self.site, self._timeout = site, timeout
    self._period = timeout / _PULSES_A_TIMEOUT
    self._store: Any = distributed.global_state.client
    self._seen: dict[int, tuple[str, float]] = {}
    self._beats = 0
    self._stopped = threading.Event()
    threading.Thread(target=self._work, name="hosts", daemon=True).start()

  def leave(self, why: str) -> None:
    """Tells the others, and gives them the time to read it."""
    self._stopped.set()
    with contextlib.suppress(Exception):
      self._set(f"left {why}")
      # The store is gone with process 0.
      time.sleep(2.5 * self._period if self.site.index == 0 else 0.0)

  def blame(self, error: BaseException) -> None:
    """Ends this process if another one turns out to be gone; waits for some pulses."""
    until = time.monotonic() + (_SURELY_LATE + 1) * self._period
    while time.monotonic() < until:
      time.sleep(self._period / 2)
      with contextlib.suppress(Exception):
        self._look(_SURELY_LATE * self._period)

  def _work(self) -> None:
    while not self._stopped.wait(self._period):
      try:
        self._beats += 1
        self._set(str(self._beats))
        self._look(self._timeout)
      except Exception as error:
        # At the regular end the store goes away first; otherwise JAX's own service ends the
        # process.
        if not self._stopped.wait(self._timeout):
          self._end(f"host 0 cannot be reached: {_first_line(error)}")
        return

  def _set(self, value: str) -> None:
    self._store.key_value_set(f"prompt_tuning/pulse/{self.site.index}", value, True)

  def _look(self, patience: float) -> None:
    now = time.monotonic()
    found = self._store.key_value_dir_get("prompt_tuning/pulse/")
    values = {int(key.rpartition("/")[2]): value for key, value in found}
    for index in range(self.site.count):
      value = values.get(index, "")
      if index != self.site.index and value.startswith("left "):
        self._end(f"host {index} ended: {value[5:]}")
      if self._seen.get(index, ("?", 0.0))[0] != value:
        self._seen[index] = value, now
      elif index != self.site.index and now - self._seen[index][1] > patience:
        self._end(f"host {index} has shown no sign of life for {patience:.0f} s")

  def _end(self, what: str) -> None:
    error = UserError(
      f"Host {self.site.index} of {self.site.count} stops: another one is gone", found=what,
      wanted="all of them", fix="see the log of that host; the same command on all hosts resumes "
      "from the last checkpoint")
    print(f"\n{error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # The main thread may wait in a collective for good.
    os._exit(LOST_A_HOST)


def on_first(function: Callable[..., None]) -> Callable[..., None]:
  """The function on process 0; nothing on the others."""
  @functools.wraps(function)
  def wrapped(*args: Any, **kwargs: Any) -> None:
    if is_first():
      function(*args, **kwargs)
  return wrapped


def _first_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
