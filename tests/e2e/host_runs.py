"""Runs of several real processes on this machine: imported once, forked for every process.

Started by test_hosts.py as a process of its own, which never touches a device: a line of JSON on
standard input is a run, a line on standard output its result.

  {"name": ..., "processes": N, "devices": of each, "macros": {...}, "kill": [host, step, signal]}
  -> {"codes": [...], "seconds": [after the kill, each], "logs": [...]}
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import jax
import matplotlib.figure  # noqa: F401  Imported here, it is there in every child.
from toy_runs import PROMPT, SMALL, TOY, Folder

from prompt_tuning import hosts, train_loop
from prompt_tuning.main import main

LIMIT_SECONDS = 900
# One layer a stack compiles in less time.
MODEL = SMALL.replace("coder_layers = 2", "coder_layers = 1")


def free_port():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def child(arguments, devices, log, kill, cache):
  """What a forked process does; never returns."""
  code = 1
  try:
    os.environ["PROMPT_TUNING_CACHE"] = cache
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", f"{cache}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if kill is not None:
      step, number = kill
      advance, seen = train_loop.Progress.advance, []

      def advance_and_die(self):
        seen.append(None)
        if len(seen) == step:
          Path(f"{log}.killed").write_text(str(time.time()))
          os.kill(os.getpid(), number)
        advance(self)

      train_loop.Progress.advance = advance_and_die
    faulthandler.enable()  # A process that is ended for hanging says where it hung.
    code = main(arguments)
    if code in (0, hosts.STOPPED) and jax.distributed.is_initialized():
      jax.distributed.shutdown()
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(folder, run):
  count, kill = run["processes"], run.get("kill")
  arguments = folder.arguments(run["name"], **run.get("macros", {}))
  address, children = f"127.0.0.1:{free_port()}", {}
  for host in range(count):
    own = [*arguments, "--hosts", str(count), "--host", str(host), "--coordinator", address,
           "--host_timeout", str(run.get("timeout", 120))] if count > 1 else arguments
    for word, value in run.get("own_flags", {}).get(str(host), {}).items():
      own.append(f"{word}={value}")
    log = str(folder.path / f"{run['name']}.{host}.log")
    Path(log).unlink(missing_ok=True)
    process = os.fork()
    if not process:
      child(own, run.get("devices", 1), log, kill[1:] if kill and kill[0] == host else None,
            str(folder.path / "cache"))
    children[process] = host, log
  return children


def finish(children):
  codes, ended, began = {}, {}, time.time()
  while len(codes) < len(children) and time.time() - began < LIMIT_SECONDS:
    for process, (host, _) in children.items():
      if host not in codes:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
          codes[host], ended[host] = os.waitstatus_to_exitcode(status), time.time()
    time.sleep(0.02)
  for process, (host, _) in children.items():
    if host not in codes:
      os.kill(process, signal.SIGABRT)
      os.waitpid(process, 0)
      codes[host], ended[host] = "hung", time.time()
  killed = [Path(f"{log}.killed") for _, log in children.values()]
  at = next((float(mark.read_text()) for mark in killed if mark.exists()), None)
  for mark in killed:
    mark.unlink(missing_ok=True)
  order = sorted(codes)
  return {"codes": [codes[host] for host in order],
          "seconds": [] if at is None else [ended[host] - at for host in order],
          "logs": [Path(log).read_text() for _, log in sorted(children.values())]}


def script():
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  folder = Folder(Path(sys.argv[1]), text=MODEL + TOY + PROMPT)
  for line in sys.stdin:
    print(json.dumps(finish(start(folder, json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
  script()
