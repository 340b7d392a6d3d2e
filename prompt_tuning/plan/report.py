"""Rows of a plan as text for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from prompt_tuning.plan.row import Row
from prompt_tuning.plan.search import Search, cost
from prompt_tuning.plan.topologies import Topology


def show_row(row: Row) -> None:
  """One program."""
  print(f"{row.program} of {row.batch_size} rows on {row.topology} ({row.devices} devices), layout "
        f"{row.layout}, remat {row.remat}, frozen weights {row.frozen_dtype}"
        + (f", {row.microbatches} microbatches" if row.microbatches > 1 else ""))
  if not row.fits:
    more = "" if row.peak_gib is None else (
      f": {row.peak_gib:.2f} GiB a device, {row.peak_gib - row.hbm_gib:.2f} too many")
    print(f"DOES NOT FIT in {row.hbm_gib:.2f} GiB{more}")
    if row.error:
      print(f"  the compiler: {row.error}")
  if row.fits and row.peak_gib is not None:
    print(f"fits: {row.peak_gib:.2f} of {row.hbm_gib:.2f} GiB a device, "
          f"{row.hbm_gib - row.peak_gib:.2f} GiB are left")
  if row.argument_gib is None or row.peak_gib is None:
    return
  print(f"memory:   arguments {row.argument_gib:.3f} GiB, temporaries {row.temp_gib:.3f} GiB; all "
        f"frozen weights once over the devices {row.lower_bound_gib:.3f} GiB, the peak over that "
        f"{_over_weights(row)}")
  print(f"products: {row.matmul_tflops:.3f} TFLOP a device, {_share(row)} times what the program "
        f"needs ({row.theory_tflops:.3f})")
  kinds = ", ".join(f"{kind} {size:.2f}" for kind, size in row.collective_gb_by_kind.items())
  print(f"collectives: {row.collective_gb:.2f} GB a device" + (f" ({kinds})" if kinds else ""))
  if row.gigacycles is not None:
    print(f"modelled: {row.gigacycles:.3f} gigacycles without collectives (for ratios only)")
  print(f"compiled in {row.compile_seconds:.0f} processor seconds; program {row.program_hash}")


def show_search(found: Search, topology: Topology) -> None:
  """All rows of `--auto`, the best first."""
  table = Table(title=f"{topology.name}: {topology.num_devices} devices")
  table.add_column("layout")
  table.add_column("remat")
  table.add_column("weights")
  for name in ("peak GiB", "products", "collectives GB", "relative cost"):
    table.add_column(name, justify="right")
  least = min((cost(row, topology) for row in found.rows if row.fits), default=1.0)
  for row in sorted(found.rows, key=lambda row: (not row.fits, cost(row, topology))):
    peak = "refused" if row.peak_gib is None else f"{row.peak_gib:.2f}"
    table.add_row(row.layout, row.remat, row.frozen_dtype, peak if row.fits else f"({peak})",
                  *(("-", "-", "-") if row.matmul_tflops is None else (
                    _share(row), f"{row.collective_gb:.2f}",
                    f"{cost(row, topology) / least:.2f}")))
  Console().print(table)
  for what, why in found.skipped:
    print(f"not compiled: {what}: {why}")
  if found.best is None:
    print("Nothing fits. More devices, a smaller batch, or FROZEN_DTYPE = 'int8' need less memory.")
  else:
    print(f"use --gin.LAYOUT=\"'{found.best.layout}'\" --gin.REMAT=\"'{found.best.remat}'\" "
          f"--gin.FROZEN_DTYPE=\"'{found.best.frozen_dtype}'\"")


def markdown(rows: Sequence[Row]) -> str:
  """A table for docs."""
  names = ("machine", "program", "layout", "remat", "weights", "batch", "peak GiB", "of",
           "peak / weights", "TFLOP", "/ theory", "collectives GB", "gigacycles")
  lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
  for row in rows:
    cells = [row.topology, row.program + (f", dropout {row.dropout}" if row.dropout else "")
             + (f", {row.microbatches} pieces" if row.microbatches > 1 else ""),
             row.layout, row.remat, row.frozen_dtype, str(row.batch_size)]
    if row.peak_gib is None or not row.fits:
      peak = "-" if row.peak_gib is None else f"{row.peak_gib:.2f}"
      cells += [f"{peak} (refused)", f"{row.hbm_gib:.2f}", "-", "-", "-", "-", "-"]
    else:
      cycles = "-" if row.gigacycles is None else f"{row.gigacycles:.3f}"
      cells += [f"**{row.peak_gib:.2f}**", f"{row.hbm_gib:.2f}",
                _over_weights(row)]
      cells += [f"{row.matmul_tflops:.2f}", _share(row), f"{row.collective_gb:.1f}", cycles]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _over_weights(row: Row) -> str:
  """"-" where all weights are trained."""
  if row.peak_gib is None or not row.lower_bound_gib:
    return "-"
  return f"{row.peak_gib / row.lower_bound_gib:.2f}"


def _share(row: Row) -> str:
  return "-" if row.matmul_tflops is None else f"{row.matmul_tflops / row.theory_tflops:.3f}"
