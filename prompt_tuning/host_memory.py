"""Memory that stays with the process from one step to the next, on Linux.

XLA's CPU client takes the buffers of a step from malloc and frees them at its end. glibc maps
blocks of that size anew each time: a step of T5 1.1 small (1 GB) begins with 240,000 page faults,
a fifth of its time (docs/performance.md). Told to keep what is freed, it hands the same pages out
again. Commands call this before they start a thread: a library has no business to decide it.
"""

import ctypes

# Of glibc's malloc.h. One arena: those of other threads cannot grow to the size of a step.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Whether the C library is one that can be told so."""
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # Not glibc, or not a C library of this kind.
    return False
  return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])


def return_unused_memory() -> None:
  """Gives back what is free at this moment: what compiling or the first step has left behind."""
  try:
    ctypes.CDLL(None).malloc_trim(0)
  except (AttributeError, OSError, TypeError):
    return
