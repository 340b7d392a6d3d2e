"""Damaged files for hypothesis, and what every reader has to do with them."""

import contextlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from prompt_tuning.errors import UserError

# Enough for any of the tests' files; a length that is believed would ask for far more.
MEMORY = 64 * 2**20
FUZZ = settings(max_examples=60, deadline=5000,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
  """`content` truncated, with bits changed, with bytes replaced or put in, or other bytes."""
  place = st.integers(0, len(content) - 1)
  # Headers come first (or last, in archives), and there is most to go wrong in them.
  near_ends = st.one_of(st.integers(0, min(300, len(content) - 1)),
                        st.integers(max(0, len(content) - 300), len(content) - 1), place)

  def flipped(bits: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for where, bit in bits:
      changed[where] ^= 1 << bit
    return bytes(changed)

  return st.one_of(
    place.map(lambda size: content[:size]),
    st.lists(st.tuples(near_ends, st.integers(0, 7)), min_size=1, max_size=8).map(flipped),
    st.tuples(near_ends, st.binary(min_size=1, max_size=16)).map(
      lambda x: content[:x[0]] + x[1] + content[x[0] + len(x[1]):]),
    st.tuples(near_ends, st.binary(min_size=1, max_size=16)).map(
      lambda x: content[:x[0]] + x[1] + content[x[0]:]),
    st.binary(max_size=200))


def survives(read: Callable[[], Any]) -> Any:
  """What `read` gives, or its UserError; anything else fails, and so does a memory blow-up."""
  tracemalloc.start()
  try:
    try:
      found = read()
    except UserError as error:
      assert all((error.what, error.found, error.wanted, error.fix))
      found = error
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < MEMORY, f"{peak:,} bytes were allocated"
  return found


def read_every_leaf(reader: Any) -> int:
  """What `INITIAL_CHECKPOINT_PATH` does, without a device: shapes first, then every leaf; how many
  numbers there are."""
  total = 0
  for name, leaf in reader.leaves.items():
    array = reader.read(name)
    assert array.shape == leaf.shape and array.dtype == leaf.dtype
    total += array.size
  return total


class Payload:
  """Unpickled, it makes a folder: the proof that code was run."""

  def __init__(self, folder: os.PathLike):
    self.folder = str(folder)

  def __reduce__(self):
    return os.mkdir, (self.folder,)


@contextlib.contextmanager
def no_code_run(tmp_path) -> Iterator[Payload]:
  """Gives a payload, and fails where it was run."""
  proof = tmp_path / "code_was_run"
  yield Payload(proof)
  assert not proof.exists()
