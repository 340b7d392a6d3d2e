"""How the processes of a run are found: flags, else what the launcher has put in the environment.

  flags         --hosts N --host I --coordinator ADDRESS:PORT
  environment   JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  Slurm         srun; one task a host, or one a GPU
  Open MPI      mpirun; version 5 does not say where process 0 is, so --coordinator does
  TPU           the workers of a slice, by Google's metadata or GKE's variables

JAX itself knows Slurm, Open MPI 4 and TPUs; this module decides whether there are several
processes at all, and fills what JAX leaves open.
"""

import argparse
import dataclasses
import glob
import importlib.util
from collections.abc import Mapping, Sequence

from prompt_tuning.errors import UserError

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Flags:
  """Attributes:
    count, index, coordinator: --hosts, --host, --coordinator; None: from the environment.
    timeout: --host_timeout, seconds.
  """

  count: int | None = None
  index: int | None = None
  coordinator: str | None = None
  timeout: int | None = None

  @classmethod
  def of(cls, options: argparse.Namespace) -> "Flags":
    return cls(options.hosts, options.host, options.coordinator, options.host_timeout)


@dataclasses.dataclass(frozen=True)
class Found:
  """What `jax.distributed.initialize` is called with; what is None it finds itself.

  Attributes:
    how: for messages.
    devices: local ones that this process may use; None: JAX's choice.
  """

  how: str
  coordinator: str | None = None
  count: int | None = None
  index: int | None = None
  devices: Sequence[int] | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--hosts", type=int, metavar="N",
                      help="processes of this run, with --host and --coordinator (else Slurm, Open "
                      "MPI or the TPU says so); 1: this process alone")
  parser.add_argument("--host", type=int, metavar="I", help="which one this is: 0 to N-1")
  parser.add_argument("--coordinator", metavar="ADDRESS:PORT", help="of process 0, a free port")
  parser.add_argument("--host_timeout", type=int, metavar="SECONDS",
                      help="after which a silent host counts as dead, and all others stop (60)")


def find(flags: Flags, environment: Mapping[str, str]) -> Found | None:
  """Where the other processes are; None: there are none.

  Raises:
    UserError: what is known of them is not enough, or contradicts itself.
  """
  if flags.timeout is not None and flags.timeout < 1:
    raise UserError("--host_timeout is not a time", found=flags.timeout, wanted="1 or more seconds",
                    fix="--host_timeout 60")
  if flags.count == 1:
    return None
  found = _given(flags, environment) or _slurm(flags, environment) or _open_mpi(flags, environment)
  if found is None and _is_tpu(environment):
    found = Found("the TPU's metadata", flags.coordinator)
  if found is None and flags != Flags(timeout=flags.timeout):
    raise UserError("The hosts of this run are not fully described", found=_show(flags),
                    wanted="--hosts N --host I --coordinator ADDRESS:PORT, or a launcher that says "
                    "so (srun, mpirun, a TPU)", fix="give all three, on every host its own --host")
  return found


def _given(flags: Flags, environment: Mapping[str, str]) -> Found | None:
  coordinator = flags.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
  count = _number(flags.count, environment, "JAX_NUM_PROCESSES")
  index = _number(flags.index, environment, "JAX_PROCESS_ID")
  if coordinator is None or count is None or index is None:
    return None
  host, colon, port = coordinator.rpartition(":")
  if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
    raise UserError("The coordinator's address cannot be read", found=repr(coordinator),
                    wanted="ADDRESS:PORT, of process 0", fix="--coordinator 10.0.0.2:8476")
  if count < 1 or not 0 <= index < count:
    raise UserError("There is no such host", found=f"host {index} of {count}",
                    wanted="0 to N-1, each of them once", fix="number the hosts from 0")
  return None if count == 1 else Found("flags or JAX_* variables", coordinator, count, index)


def _slurm(flags: Flags, environment: Mapping[str, str]) -> Found | None:
  if not all(name in environment for name in _SLURM) or int(environment["SLURM_NTASKS"]) < 2:
    return None
  devices = None
  gpus = environment.get("SLURM_GPUS_ON_NODE", "")
  if environment.get("SLURM_STEP_NUM_NODES") == environment["SLURM_NTASKS"] and gpus.isdecimal():
    # JAX would give a task one GPU, as if there were a task a GPU.
    devices = range(int(gpus))
  return Found("Slurm", flags.coordinator, devices=devices)


def _open_mpi(flags: Flags, environment: Mapping[str, str]) -> Found | None:
  count = int(environment.get("OMPI_COMM_WORLD_SIZE", "1"))
  if count < 2:
    return None
  index = int(environment["OMPI_COMM_WORLD_RANK"])
  if flags.coordinator is None and "OMPI_MCA_orte_hnp_uri" not in environment:
    raise UserError("This version of Open MPI does not say where process 0 is",
                    found=f"process {index} of {count}, and no address",
                    wanted="--coordinator ADDRESS:PORT, of the host of rank 0",
                    fix="add it to the command that mpirun starts")
  return Found("Open MPI", flags.coordinator, count, index)


def _is_tpu(environment: Mapping[str, str]) -> bool:
  """Whether a slice's workers can be asked for: chips are here, and libtpu may use them."""
  if environment.get("JAX_PLATFORMS", "").split(",")[0] not in ("", "tpu"):
    return False
  workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
  if workers is not None and "MEGASCALE_COORDINATOR_ADDRESS" not in environment:
    return "," in workers
  return "TPU_SKIP_MDS_QUERY" not in environment and _has_chips() and (
    importlib.util.find_spec("libtpu") is not None)


def _has_chips() -> bool:
  return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _number(flag: int | None, environment: Mapping[str, str], name: str) -> int | None:
  if flag is not None or name not in environment:
    return flag
  if not environment[name].isdecimal():
    raise UserError(f"{name} is not a number", found=repr(environment[name]), wanted="0, 1, ...",
                    fix=f"set {name}, or leave it out")
  return int(environment[name])


def _show(flags: Flags) -> str:
  return ", ".join(f"--{name} {value}" for name, value in (
    ("hosts", flags.count), ("host", flags.index), ("coordinator", flags.coordinator))
    if value is not None)
