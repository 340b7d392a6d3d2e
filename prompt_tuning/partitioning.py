"""The mesh, and one table from logical axes to mesh axes.

One mesh axis so far, `data`: the batch is split over all devices, everything else is replicated.
Prompts always are.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning.errors import UserError

# Logical axis -> mesh axis; None is replicated.
AXIS_RULES: dict[str, str | None] = {
  "batch": "data", "vocab": None, "embed": None, "joined_kv": None, "heads": None, "mlp": None,
  "layers": None, "relpos_buckets": None, "prompt": None, "prompt_embed": None,
  "prompt_bank": None,
}


def make_mesh(devices: list | None = None) -> Mesh:
  """All devices on the axis `data`."""
  return Mesh(np.asarray(devices if devices is not None else jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Splits one axis, the rows, of every array of a batch."""
  return NamedSharding(mesh, PartitionSpec(*(None,) * axis, AXIS_RULES["batch"]))


def check_batch_size(batch_size: int, num_microbatches: int, mesh: Mesh) -> None:
  """Raises a UserError where the rows cannot be split evenly."""
  devices = mesh.shape["data"]
  unit = devices * num_microbatches
  if batch_size % unit:
    raise UserError(
      "BATCH_SIZE cannot be split evenly",
      found=f"BATCH_SIZE = {batch_size}, {devices} devices, {num_microbatches} microbatches",
      wanted=f"a multiple of {unit}", fix=f"--gin.BATCH_SIZE={-(-batch_size // unit) * unit}")
