"""`--auto`: layouts by recomputation by storage, compiled in parallel, and the fastest that fits.

Of a layout, recomputation is tried from none upwards and ends at the first that fits with a margin:
more of it can only be slower. What cannot fit by its weights alone is not compiled. Programs are
ranked by modelled cycles plus the cycles in which the links would carry their collectives, none of
it hidden behind computation: a relative cost, no time.
"""

import concurrent.futures
import dataclasses
import math
import multiprocessing
import os
import pathlib
from collections.abc import Iterable, Sequence

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.layouts import Layout, workable
from prompt_tuning.plan.program import PlanConfig
from prompt_tuning.plan.row import GIB, Row, compile_row
from prompt_tuning.plan.topologies import Topology

REMATS = ("none", "save_projections", "full")
# A compilation of T5-XXL's step takes less.
_GIB_A_PROCESS = 4.0


@dataclasses.dataclass(frozen=True)
class Search:
  """Attributes:
    rows: what was compiled.
    skipped: (layout, why) of what was not.
    best: the row to use; None where nothing fits.
  """

  rows: list[Row]
  skipped: list[tuple[str, str]]
  best: Row | None


def search(config: PlanConfig, kind: str, topology: Topology, *, cache: pathlib.Path | None,
           dtypes: Sequence[str], margin: float, memory_gib: float) -> Search:
  """Tries what may fit.

  Args:
    dtypes: FROZEN_DTYPEs to try.
    margin: share of a device's memory that must stay free.
    memory_gib: of this machine, for the compilers together.

  Raises:
    UserError: no layout of so many devices divides the model and the batch.
  """
  pieces = config.loss.num_microbatches if kind == "train" else 1
  layouts = list(_layouts(config, topology, pieces))
  if not layouts:
    raise UserError("No layout divides the model and the batch",
                    found=f"{topology.num_devices} devices, BATCH_SIZE = {config.batch_size}",
                    wanted="a batch that some of the devices can share",
                    fix=f"--gin.BATCH_SIZE={topology.num_devices}")
  skipped, jobs = [], []
  limit = (1 - margin) * topology.kind.hbm_gib
  for dtype in dtypes:
    size = trees.num_bytes(config.replace(frozen_dtype=dtype).model.backbone_shapes()) / GIB
    for layout in layouts:
      weights = size / (layout.fsdp * layout.model)
      if weights > limit:
        skipped.append((f"{layout} {dtype}", f"{weights:.1f} GiB of weights a device"))
      else:
        jobs.append((config.replace(layout=layout, frozen_dtype=dtype), kind, topology, cache,
                     limit))
  workers = max(1, min(len(jobs), os.cpu_count() or 1, int(memory_gib / _GIB_A_PROCESS)))
  rows: list[Row] = []
  if workers == 1:
    for job in jobs:
      rows += _of_layout(*job)
  else:
    # New processes: a compiler's memory goes back only with its process.
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
      for found in pool.map(_of_layout, *zip(*jobs, strict=True)):
        rows += found
  return Search(rows, skipped, best(rows, topology, limit))


def best(rows: Iterable[Row], topology: Topology, limit_gib: float) -> Row | None:
  """The cheapest row that fits within a limit; the one with less memory of equals."""
  fitting = [row for row in rows if row.fits and (row.peak_gib or math.inf) <= limit_gib]
  return min(fitting, key=lambda row: (cost(row, topology), row.peak_gib), default=None)


def cost(row: Row, topology: Topology) -> float:
  """Relative, in modelled gigacycles; of GPUs, whose compiler models none, in TFLOP."""
  if row.gigacycles is None:
    return row.matmul_tflops or math.inf
  return row.gigacycles + (row.collective_gb or 0.0) / topology.kind.link_bytes_per_cycle


def _layouts(config: PlanConfig, topology: Topology, pieces: int) -> Iterable[Layout]:
  for layout in workable(topology.num_devices, config.model.backbone, config.batch_size, pieces,
                         topology.slices):
    yield layout
    if layout.model > 1:
      yield dataclasses.replace(layout, sequence=True)


def _of_layout(config: PlanConfig, kind: str, topology: Topology, cache: pathlib.Path | None,
               limit: float) -> list[Row]:
  """Rows of one layout, up to the first recomputation that fits."""
  # Flax numbers modules within a process, and takes two of one number for the same: a method that
  # came from another process must not keep its own.
  prompt = config.model.prompt
  if prompt is not None:
    config = dataclasses.replace(
      config, model=dataclasses.replace(config.model, prompt=prompt.copy(parent=None)))
  rows: list[Row] = []
  for remat in REMATS if kind == "train" else (config.model.backbone.remat,):
    rows.append(compile_row(config.replace(remat=remat), kind, topology, cache))
    if rows[-1].fits and (rows[-1].peak_gib or math.inf) <= limit:
      break
  return rows
