"""A thread that makes the next batches while the device works on this one."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_STOP_POLL_SECONDS = 0.1


class Prefetcher(Iterator[T], Generic[T]):
  """Iterates over `at(start), at(start + 1), ...`, up to `ahead` of them made in advance.

  An error of `at` is raised by `next`, in its place in the order. Use it as a context manager, or
  call `close`: the thread ends with the call that it is in.

  Args:
    at: the item of a step.
    start: the first step.  stop: the step after the last one; None: no end.
    ahead: how many finished items may wait.
  """

  def __init__(self, at: Callable[[int], T], *, start: int = 0, stop: int | None = None,
               ahead: int = 4):
    self._at, self._next_step, self._stop = at, start, stop
    self._queue: queue.Queue = queue.Queue(maxsize=max(1, ahead))
    self._closed = threading.Event()
    self._finished = False
    self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
    self._thread.start()

  def __next__(self) -> T:
    if self._finished or self._closed.is_set():
      raise StopIteration
    item, error = self._queue.get()
    if error is not None:
      self._finished = True
      raise error
    return item

  def close(self) -> None:
    """Stops the thread and forgets what waits; may be called again."""
    self._closed.set()
    self._thread.join()

  def __enter__(self) -> "Prefetcher[T]":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _work(self) -> None:
    while not self._closed.is_set():
      if self._next_step == self._stop:
        self._put((None, StopIteration()))
        return
      try:
        item = self._at(self._next_step)
      # Whatever goes wrong belongs to the consumer, which would wait forever otherwise.
      except BaseException as error:
        self._put((None, error))
        return
      self._put((item, None))
      self._next_step += 1

  def _put(self, entry: tuple) -> None:
    while not self._closed.is_set():
      try:
        self._queue.put(entry, timeout=_STOP_POLL_SECONDS)
        return
      except queue.Full:
        continue
