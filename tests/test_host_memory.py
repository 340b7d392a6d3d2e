"""Memory that is kept: fewer page faults where the C library is glibc, and no harm elsewhere."""

import ctypes
import platform
import subprocess
import sys

import pytest

from prompt_tuning import host_memory

# Writes 64 MB twice; the faults of the second time.
FAULTS = """
import ctypes, resource, sys
from prompt_tuning import host_memory
if sys.argv[1] == "keep":
  assert host_memory.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [
  ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = libc.malloc(64 << 20)
  libc.memset(block, 1, 64 << 20)
  libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
host_memory.return_unused_memory()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again():
  faults = {}
  for choice in ("keep", "no"):
    done = subprocess.run([sys.executable, "-c", FAULTS, choice], check=True, capture_output=True)
    faults[choice] = int(done.stdout)
  assert faults["keep"] < 10 < faults["no"]


def test_another_c_library_is_left_alone(monkeypatch):
  monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
  assert not host_memory.keep_freed_memory()
  host_memory.return_unused_memory()
