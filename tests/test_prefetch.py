"""The prefetcher: the order of the steps, a bound on what is made ahead, errors and a clean end."""

import itertools
import threading
import time

import pytest

from prompt_tuning.prefetch import Prefetcher


def test_steps_come_in_order_from_the_start_step():
  with Prefetcher(lambda step: step * step, start=3, stop=8, ahead=2) as items:
    assert list(items) == [9, 16, 25, 36, 49]
    assert list(items) == []


def test_no_more_than_asked_for_is_made_ahead():
  made = []
  third = threading.Event()

  def at(step):
    made.append(step)
    if len(made) >= 3:
      third.set()
    return step

  with Prefetcher(at, ahead=2):
    assert third.wait(timeout=10)
    time.sleep(0.05)
    # Two wait in the queue, the third waits to be put there.
    assert made == [0, 1, 2]


def test_an_error_reaches_the_consumer_in_its_place():
  def at(step):
    if step == 2:
      raise KeyError("row 17 of shard 3")
    return step

  with Prefetcher(at) as items:
    assert list(itertools.islice(items, 2)) == [0, 1]
    with pytest.raises(KeyError, match="row 17 of shard 3"):
      next(items)
    with pytest.raises(StopIteration):
      next(items)


def test_close_ends_the_thread_while_items_wait():
  before = threading.active_count()
  items = Prefetcher(lambda step: step, ahead=1)
  assert next(items) == 0
  items.close()
  items.close()
  assert threading.active_count() == before
  with pytest.raises(StopIteration):
    next(items)
