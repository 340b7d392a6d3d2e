"""One program compiled for one topology: a row of a plan, kept by the program's hash."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tempfile
import time
from typing import Any

import jax

from prompt_tuning.layouts import layout_of
from prompt_tuning.partitioning import num_slices
from prompt_tuning.plan import gpu_targets, hlo
from prompt_tuning.plan.program import PlanConfig, build
from prompt_tuning.plan.topologies import Topology

GIB = 2**30
# Of what the cache keeps.
_FORMAT = 2
_USED = re.compile(r"Used ([\d.]+)([GMK]) of [\d.]+[GMK] hbm|\b([\d.]+)([GMK]) exceeds available")


@dataclasses.dataclass(frozen=True)
class Row:
  """What a compilation tells, per device. Memory is in GiB (2^30), the rest in powers of ten.

  Attributes:
    topology, program, layout, remat, frozen_dtype, batch_size, microbatches, dropout: what.
    devices: of the topology.
    fits: the compiler took it (TPU), or its peak is below the memory (GPU).
    hbm_gib, peak_gib, argument_gib, temp_gib: memory of a device, and of the program on it. Of a
      program that was refused the peak is what it would have used, as the compiler says.
    trained_gib: what is trained and its optimizer state, over all devices.
    lower_bound_gib: all frozen weights, each stored on one device alone.
    matmul_tflops: operations (10^12) of products, recomputation included; None of a program that
      was refused.
    theory_tflops: what the program needs, an equal share of it a device.
    collective_gb: moved a program, of all kinds.  collective_gb_by_kind: apart.
    gigacycles: modelled by the TPU compiler, without collectives; for ratios alone.
    compile_seconds: of processor time, when it was compiled.
    program_hash: of the lowered program; with `versions` and the topology the key of the cache.
    error: of the compiler, its first line.
  """

  topology: str
  program: str
  layout: str
  remat: str
  frozen_dtype: str
  batch_size: int
  microbatches: int
  dropout: float
  devices: int
  fits: bool
  hbm_gib: float
  peak_gib: float | None
  argument_gib: float | None
  temp_gib: float | None
  lower_bound_gib: float
  trained_gib: float
  matmul_tflops: float | None
  theory_tflops: float
  collective_gb: float | None
  collective_gb_by_kind: dict[str, float]
  gigacycles: float | None
  compile_seconds: float
  program_hash: str
  versions: dict[str, str]
  error: str | None = None

  def as_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def compile_row(config: PlanConfig, kind: str, topology: Topology,
                cache: pathlib.Path | None = None) -> Row:
  """Compiles one program for one topology, or finds it in the cache.

  Raises:
    UserError: the layout does not fit; or the compiler is not installed.
  """
  devices = topology.devices()
  program = build(config, kind, devices)
  lowered = program.lower()
  versions = _versions(topology.platform)
  digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()
  key = json.dumps([_FORMAT, digest, versions, topology.compiler_name, topology.slices])
  path = None if cache is None else cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
  layout = layout_of(config.model.layout).resolve(len(devices), num_slices(devices))
  about = {"topology": topology.name, "program": kind, "layout": str(layout),
           "remat": config.model.backbone.remat, "frozen_dtype": config.model.frozen_dtype,
           "batch_size": config.batch_size, "microbatches": config.loss.num_microbatches,
           "dropout": config.model.backbone.dropout_rate, "devices": len(devices),
           "hbm_gib": topology.kind.hbm_gib,
           "lower_bound_gib": program.frozen_bytes / len(devices) / GIB,
           "trained_gib": program.trained_bytes / GIB,
           "theory_tflops": program.theory / len(devices) / 1e12,
           "program_hash": digest[:16], "versions": versions}
  if path is not None and path.is_file():
    found = json.loads(path.read_text())
  else:
    found = _compile(lowered, program.unknown_trips, topology.platform)
    if path is not None:
      path.parent.mkdir(parents=True, exist_ok=True)
      partial = path.with_suffix(f".{os.getpid()}")
      partial.write_text(json.dumps(found))
      os.replace(partial, path)
  if found["fits"] and topology.platform == "cuda":
    # This compiler refuses nothing.
    found["fits"] = found["peak_gib"] <= topology.kind.hbm_gib
  return Row(**about, **found)


def _compile(lowered: Any, unknown_trips: int | None, platform: str) -> dict[str, Any]:
  began = time.process_time()
  found: dict[str, Any] = {
    "fits": False, "peak_gib": None, "argument_gib": None, "temp_gib": None,
    "matmul_tflops": None, "collective_gb": None, "collective_gb_by_kind": {}, "gigacycles": None,
    "error": None}
  with tempfile.TemporaryDirectory(prefix="plan_") as dump:
    options = gpu_targets.COMPILER_OPTIONS if platform == "cuda" else {
      "xla_dump_to": dump, "xla_dump_hlo_as_text": True}
    try:
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      text = str(error)
      if "RESOURCE_EXHAUSTED" not in text:
        raise
      used = _USED.search(text)
      if used:
        number, unit = (used[1], used[2]) if used[1] else (used[3], used[4])
        found["peak_gib"] = float(number) / {"G": 1, "M": 2**10, "K": 2**20}[unit]
      return found | {"error": text.splitlines()[0][:300],
                      "compile_seconds": time.process_time() - began}
    # jaxlib 0.10.2 cannot print programs for v5p and v6e with asynchronous collectives; the TPU
    # compiler's own dump has the same text.
    dumped = list(pathlib.Path(dump).glob("*.after_codegen.txt"))
    text = dumped[0].read_text() if dumped else compiled.as_text()
  memory = compiled.memory_analysis()
  counts = hlo.count(text, unknown_trips)
  by_kind = counts.collective_bytes()
  return found | {
    "fits": True, "peak_gib": memory.peak_memory_in_bytes / GIB,
    "argument_gib": memory.argument_size_in_bytes / GIB,
    "temp_gib": memory.temp_size_in_bytes / GIB,
    "matmul_tflops": counts.flop / 1e12,
    "collective_gb": sum(by_kind.values()) / 1e9,
    "collective_gb_by_kind": {kind: size / 1e9 for kind, size in sorted(by_kind.items())},
    "gigacycles": counts.cycles / 1e9 if counts.cycles else None,
    "compile_seconds": time.process_time() - began}


def _versions(platform: str) -> dict[str, str]:
  found = {"jax": jax.__version__}
  if platform == "tpu":
    import libtpu
    found["libtpu"] = libtpu.__version__
  return found
