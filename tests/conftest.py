"""Four simulated CPU devices, strict ranks, no network, a clean gin, a cache kept between runs.

Everything here that is an environment variable is set before anything imports jax or tensorflow.
"""

import os
import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and run it a few times: XLA spends little on optimising machine code.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4",
   QUICK_COMPILATION]).strip()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["PROMPT_TUNING_CACHE"] = str(ROOT / ".pytest_cache" / "prompt_tuning")

import jax  # noqa: E402
import pytest  # noqa: E402

from prompt_tuning import config  # noqa: E402

# "raise" finds a bias that broadcasts by accident; every such place in the library says it aloud.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _clean_gin():
  config.clear()
  yield
  config.clear()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
  """Any connection that leaves this machine fails, by name: TCP and UDP, names and addresses."""
  connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

  def is_local(host):
    return host in (None, "", "localhost", "::1") or str(host).startswith("127.")

  def guarded_connect(self, address):
    if self.family != socket.AF_UNIX and not is_local(address[0]):
      raise RuntimeError(f"a test tried to reach the network: {address}")
    return connect(self, address)

  def guarded_getaddrinfo(host, *args, **kwargs):
    if not is_local(host):
      raise RuntimeError(f"a test tried to look up {host!r}")
    return getaddrinfo(host, *args, **kwargs)

  monkeypatch.setattr(socket.socket, "connect", guarded_connect)
  monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


@pytest.fixture(scope="session")
def shared_data() -> Path:
  """The folder of real benchmark data beside the repository; it is no part of it."""
  folder = ROOT.parent / "shared" / "data"
  if not folder.is_dir():
    pytest.skip("no folder shared/data beside the repository: it holds data that is not shipped")
  return folder
