"""Machines by the names that clouds sell them under, and what the compilers call them.

  v5e-8, v5litepod-8, v6e-4     chips                  v4-8, v5p-8     cores: two a chip
  v2-8, v3-8, tpu7x-8           cores, each a device   h100-8, a100-80g-4   GPUs of one host
  v5e-16x2                      two slices of v5e-16, joined by a data-centre network

A v4 or v5p chip is one device of two cores ("megacore"), so that v4-8 is four devices. What fits is
decided by the TPU compiler itself, which refuses a program that would not; the memory here is only
printed beside it. GPUs' compiler refuses nothing: there the peak is compared with the memory that
the driver reports.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from prompt_tuning.errors import UserError, nearest

# Chips -> their grid. Flat grids stand for v2, v3, v5e and v6e, the others for v4, v5p and tpu7x.
_FLAT = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8),
         128: (8, 16), 256: (16, 16), 512: (16, 32), 1024: (32, 32)}
_CUBES = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4),
          128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """A kind of accelerator.

  Attributes:
    compiler: its name for the kind.
    hbm_gib: of a device; of TPUs what the compiler leaves to a program.
    grids: number of chips -> grid; None: any number on one host.
    per_chip: what a name counts, by chip.
    devices_per_chip: as the compiler sees them.
    options: of the compiler's topology.
    link_bytes_per_cycle: what a device sends to its neighbours beside one cycle of computation,
      from published link speeds and clocks; it weighs collectives against products in `--auto`.
  """

  compiler: str
  hbm_gib: float
  grids: Mapping[int, tuple[int, ...]] | None
  per_chip: int = 1
  devices_per_chip: int = 1
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  link_bytes_per_cycle: float = 100.0


_MEGACORE = {"chip_config_name": "megacore"}
KINDS: dict[str, Kind] = {
  "v2": Kind(compiler="v2", hbm_gib=7.48, grids=_FLAT, per_chip=2, devices_per_chip=2),
  "v3": Kind(compiler="v3", hbm_gib=15.48, grids=_FLAT, per_chip=2, devices_per_chip=2),
  "v4": Kind(compiler="v4", hbm_gib=30.75, grids=_CUBES, per_chip=2, options=_MEGACORE,
             link_bytes_per_cycle=286.0),
  "v5e": Kind(compiler="v5e", hbm_gib=15.75, grids=_FLAT, link_bytes_per_cycle=133.0),
  "v5p": Kind(compiler="v5p", hbm_gib=95.73, grids=_CUBES, per_chip=2,
              link_bytes_per_cycle=343.0),
  "v6e": Kind(compiler="v6e", hbm_gib=31.24, grids=_FLAT, link_bytes_per_cycle=256.0),
  "tpu7x": Kind(compiler="tpu7x", hbm_gib=94.74, grids=_CUBES, per_chip=2, devices_per_chip=2,
                link_bytes_per_cycle=300.0),
  "a100-40g": Kind(compiler="a100-40g", hbm_gib=39.59, grids=None),
  "a100-80g": Kind(compiler="a100-80g", hbm_gib=79.26, grids=None),
  "h100": Kind(compiler="h100", hbm_gib=79.11, grids=None),
  "h200": Kind(compiler="h200", hbm_gib=140.4, grids=None),
}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "a100": "a100-80g", "v7x": "tpu7x",
            "ironwood": "tpu7x", "trillium": "v6e"}
_NAME = re.compile(r"([a-z][\w-]*?)-(\d+)(?:x(\d+))?")
# Chips of one host, of grids that fit it; larger ones are made of hosts of 2x2 chips.
_ONE_HOST = {(1, 1), (1, 2), (2, 2), (2, 4)}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine.

  Attributes:
    name: as given.
    grid: of the chips of one slice; of GPUs `(number,)`.
    slices: how many of those a data-centre network joins.
  """

  name: str
  kind: Kind
  grid: tuple[int, ...]
  slices: int

  @property
  def platform(self) -> str:
    return "cuda" if self.kind.grids is None else "tpu"

  @property
  def num_devices(self) -> int:
    return math.prod(self.grid) * self.kind.devices_per_chip * self.slices

  @property
  def compiler_name(self) -> str:
    return f"{self.kind.compiler}:{'x'.join(map(str, self.grid))}"

  def devices(self) -> list[Any]:
    """The compiler's devices; no such machine is needed.

    Raises:
      UserError: the compiler is not installed.
    """
    if self.platform == "cuda":
      from prompt_tuning.plan import gpu_targets
      return gpu_targets.devices(self.kind.compiler, self.grid[0], self.slices)
    try:
      import libtpu  # noqa: F401
    except ImportError as error:
      raise UserError("TPU programs need the TPU compiler", found="libtpu is not installed",
                      wanted="the extra `tpu`; no TPU is needed",
                      fix="pip install 'prompt-tuning[tpu]'") from error
    from jax.experimental import topologies
    options = dict(self.kind.options)
    if self.grid in _ONE_HOST:
      options["chips_per_host_bounds"] = (*self.grid, 1)
    if self.slices > 1:
      options["num_slices"] = self.slices
    return list(topologies.get_topology_desc(self.compiler_name, platform="tpu",
                                             **options).devices)


def find(name: str) -> Topology:
  """A machine by its name.

  Raises:
    UserError: there is no such kind, or none of that size.
  """
  found = _NAME.fullmatch(name.lower())
  kind_name = _ALIASES.get(found[1], found[1]) if found else name
  if found is None or kind_name not in KINDS:
    raise UserError("There is no such topology", found=name,
                    wanted="kind and size, as v5e-8, v4-8, v5p-8, v6e-4, tpu7x-8, h100-8, "
                    "a100-80g-4; or v5e-16x2 for two slices",
                    fix=nearest(kind_name, [*KINDS, *_ALIASES]))
  kind, size, slices = KINDS[kind_name], int(found[2]), int(found[3] or 1)
  if kind.grids is None:
    if size < 1:
      raise UserError("A topology has at least one device", found=name, wanted="1 or more",
                      fix=f"{kind_name}-8")
    return Topology(name, kind, (size,), slices)
  chips, rest = divmod(size, kind.per_chip)
  if rest or chips not in kind.grids:
    sizes = [chips * kind.per_chip for chips in kind.grids if chips > 2 or kind.per_chip == 1]
    raise UserError(f"{kind_name} is not made in this size", found=name,
                    wanted=f"{kind_name}-N, N of " + ", ".join(map(str, sizes)),
                    fix=f"{kind_name}-{min(sizes, key=lambda x: abs(x - size))}")
  return Topology(name, kind, kind.grids[chips], slices)
