"""Which processes a run consists of, by flags and by what launchers leave in the environment."""

import pytest

from prompt_tuning import cluster
from prompt_tuning.cluster import Flags, Found, find
from prompt_tuning.errors import UserError

SLURM = {"SLURM_JOB_ID": "71", "SLURM_STEP_NODELIST": "node[01-02]", "SLURM_NTASKS": "2",
         "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}


@pytest.fixture(autouse=True)
def no_chips(monkeypatch):
  monkeypatch.setattr(cluster, "_has_chips", lambda: False)


@pytest.mark.parametrize("flags, environment, found", [
  (Flags(), {}, None),
  (Flags(timeout=5), {}, None),
  (Flags(2, 1, "a:1"), {}, Found("flags or JAX_* variables", "a:1", 2, 1)),
  (Flags(index=0), {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "3",
                    "JAX_PROCESS_ID": "2"}, Found("flags or JAX_* variables", "b:2", 3, 0)),
  (Flags(1, 0, "a:1"), {}, None),
  (Flags(), SLURM, Found("Slurm")),
  (Flags(), SLURM | {"SLURM_NTASKS": "1"}, None),
  (Flags(count=1), SLURM, None),
  # A batch script is no task of a step.
  (Flags(), {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),
  # A task a host has all its GPUs; a task a GPU leaves it to JAX.
  (Flags(), SLURM | {"SLURM_GPUS_ON_NODE": "8"}, Found("Slurm", devices=range(8))),
  (Flags(), SLURM | {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS": "16"}, Found("Slurm")),
  (Flags(), MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:9"},
   Found("Open MPI", None, 4, 3)),
  (Flags(coordinator="a:1"), MPI, Found("Open MPI", "a:1", 4, 3)),
  (Flags(), {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
  (Flags(), {"TPU_WORKER_HOSTNAMES": "a,b"}, Found("the TPU's metadata")),
  (Flags(), {"TPU_WORKER_HOSTNAMES": "a"}, None),
  (Flags(), {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None)])
def test_find(flags, environment, found):
  assert find(flags, environment) == found


def test_a_tpu_vm_asks_its_metadata_unless_told_not_to(monkeypatch):
  monkeypatch.setattr(cluster, "_has_chips", lambda: True)
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: object())
  assert find(Flags(), {}) == Found("the TPU's metadata")
  assert find(Flags(), {"TPU_SKIP_MDS_QUERY": "1"}) is None
  assert find(Flags(count=1), {}) is None
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
  assert find(Flags(), {}) is None


@pytest.mark.parametrize("flags, environment, what, wanted", [
  (Flags(count=2), {}, "not fully described", "--hosts N --host I --coordinator ADDRESS:PORT"),
  (Flags(2, 0), {}, "not fully described", "srun"),
  (Flags(2, 2, "a:1"), {}, "no such host", "0 to N-1"),
  (Flags(2, 0, "a"), {}, "address cannot be read", "ADDRESS:PORT"),
  (Flags(2, 0, "a:99999"), {}, "address cannot be read", "ADDRESS:PORT"),
  (Flags(timeout=0), {}, "--host_timeout", "1 or more"),
  (Flags(coordinator="a:1"), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES", "0, 1"),
  (Flags(), MPI, "Open MPI does not say", "--coordinator")])
def test_mistakes(flags, environment, what, wanted):
  with pytest.raises(UserError, match=what) as caught:
    find(flags, environment)
  assert wanted in caught.value.wanted
