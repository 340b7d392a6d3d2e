"""GPUs for a compiler that meets none: what CUDA reports of each kind, as the compiler reads it.

The numbers are device attributes that NVIDIA publishes. Only the plugin's compiler is needed
(`jax-cuda12-plugin`, `jax-cuda12-pjrt`), no CUDA, no driver. Without a device there is nothing to
tune kernels on, so of what it compiles the memory is meant, not the speed.
"""

import dataclasses
from typing import Any

from prompt_tuning.errors import UserError


@dataclasses.dataclass(frozen=True)
class Target:
  """Attributes: as CUDA names them; sizes in bytes."""

  name: str
  compute_major: int
  cores: int
  float_units_a_core: int
  shared_memory_a_core: int
  shared_memory_a_block: int
  memory: int
  memory_bandwidth: int
  l2_cache: int
  clock_ghz: float


TARGETS = {
  "h100": Target("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 84942979072, 3352320000000,
                 52428800, 1.98),
  "h200": Target("NVIDIA H200", 9, 132, 128, 233472, 232448, 150754820096, 4800000000000,
                 52428800, 1.98),
  "a100-80g": Target("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 85100068864,
                     2039040000000, 41943040, 1.41),
  "a100-40g": Target("NVIDIA A100-SXM4-40GB", 8, 108, 64, 167936, 166912, 42505273344,
                     1555200000000, 41943040, 1.41),
}
# Kernels would be chosen by timing them.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


def devices(kind: str, number: int, hosts: int) -> list[Any]:
  """Devices of so many hosts of `number` GPUs.

  Raises:
    UserError: the compiler is not installed.
  """
  from jax.experimental import topologies
  try:
    return list(topologies.get_topology_desc(
      "", platform="cuda", target_config=_text(TARGETS[kind]),
      topology=f"1x{hosts}x{number}").devices)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    raise UserError("GPU programs need the GPU compiler",
                    found=str(error).splitlines()[0][:200], wanted="the extra `cuda12`; no GPU is "
                    "needed", fix="pip install 'prompt-tuning[cuda12]', or, of it, jax-cuda12-pjrt "
                    "and jax-cuda12-plugin with --no-deps") from error


def _text(target: Target) -> str:
  """XLA's GpuTargetConfigProto, as text."""
  fields = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49152, "shared_memory_per_core": target.shared_memory_a_core,
    "shared_memory_per_block_optin": target.shared_memory_a_block, "core_count": target.cores,
    "fpus_per_core": target.float_units_a_core, "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535, "block_dim_limit_z": 65535, "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64, "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536, "memory_bandwidth": target.memory_bandwidth,
    "l2_cache_size": target.l2_cache, "clock_rate_ghz": target.clock_ghz,
    "device_memory_size": target.memory}
  lines = [f"  {name}: {value}" for name, value in fields.items()]
  return "\n".join([
    "gpu_device_info {", *lines,
    f"  cuda_compute_capability {{ major: {target.compute_major} }}", "}",
    'platform_name: "CUDA"', "dnn_version_info { major: 9 minor: 8 patch: 0 }",
    f'device_description_str: "{target.name}"'])
