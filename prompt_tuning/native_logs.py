"""Keeps the start-up notes of native libraries off a user's terminal.

TensorFlow and XLA write to file descriptor 2 while they are imported, before their own log levels
are in force. Those lines are held back and dropped if they are such notes; anything else that was
written meanwhile is shown.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# `I0000 00:00:1700000000.000000 1234 port.cc:153] ...`: notes and warnings of any source file, and
# the errors of looking for a GPU where there is none.
_NOTE = re.compile(
  rb"WARNING: All log messages before absl::InitializeLog"
  rb"|[IW]\d{4} [\d:.]+ +\d+ \S+:\d+\]"
  rb"|E\d{4} [\d:.]+ +\d+ (cuda_platform|cuda_dnn|cuda_fft|cuda_blas|cuda_executor)\.cc:\d+\]"
  rb"|\d{4}-\d\d-\d\d [\d:.]+: [IW] \S+:\d+\]")


def quiet_environment() -> None:
  """Sets the log levels that native libraries read once; what the user has set stays."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
  """Around imports: holds file descriptor 2 back, then shows what is not a start-up note."""
  sys.stderr.flush()
  try:
    saved = os.dup(2)
  except OSError:  # There is no standard error at all.
    yield
    return
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(saved, 2)
      os.close(saved)
      held.seek(0)
      for line in held:
        if not _NOTE.match(line):
          os.write(2, line)
