"""Peak host memory and time of loading a checkpoint, by format and number of devices.

  python -m benchmarks.load_checkpoint --folder /some/disk

Writes a T5 1.1 base (247.6 M random float32 parameters, S = 0.99 GB) in each format, and loads each
through `loading.restore` in a process of its own: on one device, and with every leaf split over
eight. What is reported, from the kernel's high-water mark of the process (VmHWM, reset just before
the load):

  one device   (peak - before) / S. On the CPU this includes the device buffers themselves, which
               lie in host memory, so 1.0 is the least there can be in float32.
  8 devices    (peak - before - bytes of the device buffers) / S: the host's memory beside the
               devices', which simulated devices also keep in host memory. "one leaf" is the largest
               leaf, the part of the limit that does not shrink.

The limits are the project's: 1.2 S on one device, 0.3 S and one leaf on eight.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

LIMIT_ONE, LIMIT_MANY = 1.2, 0.3
FORMATS = ("ours", "t5x", "t5x_orbax", "hf")
GB = 1e9


def base():
  """T5 1.1 base."""
  from prompt_tuning.interfaces import T5Config
  return T5Config(vocab_size=32128, emb_dim=768, num_heads=12, head_dim=64, mlp_dim=2048,
                  num_encoder_layers=12, num_decoder_layers=12)


class Random:
  """A reader whose leaves are made when they are read."""

  format, path = "random", "random"

  def __init__(self):
    from prompt_tuning.checkpoints import loading
    self.config = base()
    self.leaves = dict(loading.expected_leaves(self.config))
    self.ignored, self.metadata = {}, {}

  def read(self, name, index=None):
    import numpy as np
    leaf = self.leaves[name]
    rng = np.random.default_rng(sorted(self.leaves).index(name))
    array = rng.standard_normal(leaf.shape, np.float32)
    return array if index is None else array[index]


def write(folder: pathlib.Path, form: str) -> None:
  """Writes the synthetic checkpoint, unless it is there."""
  from prompt_tuning.checkpoints import formats
  from prompt_tuning.checkpoints.stacking import in_layout
  if not folder.exists():
    chosen = formats.writable(form)
    began = time.perf_counter()
    source = Random()
    stacked = True if chosen.stacked is None else chosen.stacked
    chosen.write(str(folder), in_layout(source, stacked), config=source.config, metadata={})
    print(f"wrote {form} in {time.perf_counter() - began:.1f} s", file=sys.stderr)


def status(field: str) -> int:
  """A value of /proc/self/status in bytes."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field + ":"):
      return int(line.split()[1]) * 1024
  raise LookupError(field)


def measure(folder: str, form: str, dtype: str) -> dict:
  """Loads in this process; peak memory and seconds."""
  import jax
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from prompt_tuning import trees
  from prompt_tuning.checkpoints import formats, loading
  devices = jax.devices()
  mesh = Mesh(np.asarray(devices), ("model",))

  def target(leaf):
    # The last axis that can be split evenly, as kernels are over heads and MLP columns.
    axes = [i for i, n in enumerate(leaf.shape) if n % len(devices) == 0]
    spec = [None] * len(leaf.shape)
    if axes and len(devices) > 1:
      spec[axes[-1]] = "model"
    return jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype) if dtype != "bfloat16" else
                                jax.numpy.bfloat16, sharding=NamedSharding(
                                  mesh, PartitionSpec(*spec)))

  leaves = loading.expected_leaves(base())
  expected = trees.unflatten({name: target(leaf) for name, leaf in leaves.items()})
  reader = formats.formats()[form].open(folder)
  jax.block_until_ready(jax.device_put(np.zeros(8, np.float32), devices[0]))
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = status("VmRSS")
  began = time.perf_counter()
  params = loading.restore(reader, expected)
  seconds = time.perf_counter() - began
  peak = status("VmHWM")
  buffers = sum(shard.data.nbytes for x in jax.tree.leaves(params)
                for shard in x.addressable_shards)
  size = sum(leaf.nbytes for leaf in reader.leaves.values())
  return {"form": form, "devices": len(devices), "dtype": dtype, "checkpoint": size,
          "largest_leaf": max(leaf.nbytes for leaf in leaves.values()), "before": before,
          "peak": peak, "buffers": buffers, "seconds": seconds}


def report(found: dict) -> bool:
  """Prints one row; whether it is within the limit."""
  size = found["checkpoint"]
  used = found["peak"] - found["before"]
  if found["devices"] == 1:
    allowed = LIMIT_ONE * size
  else:
    used -= found["buffers"]
    allowed = LIMIT_MANY * size + found["largest_leaf"]
  print(f"{found['form']:10} {found['devices']} devices  {found['dtype']:8}  S {size / GB:.2f} GB  "
        f"one leaf {found['largest_leaf'] / GB:.3f}  used {used / GB:.3f} GB = {used / size:.2f} S"
        f"  limit {allowed / GB:.3f}  {found['seconds']:.1f} s  "
        f"{'ok' if used <= allowed else 'OVER'}")
  return used <= allowed


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", required=True, help="where the checkpoints are written and kept")
  parser.add_argument("--formats", nargs="+", default=FORMATS)
  parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"))
  parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.measure:
    print(json.dumps(measure(*options.measure)))
    return 0
  within = True
  for form in options.formats:
    path = pathlib.Path(options.folder).absolute() / form
    write(path, form)
    for devices in (1, 8):
      for dtype in options.dtypes:
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
          [sys.executable, "-m", "benchmarks.load_checkpoint", "--folder", options.folder,
           "--measure", str(path), form, dtype], check=True, stdout=subprocess.PIPE, text=True,
          env=dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags))
        within &= report(json.loads(done.stdout.splitlines()[-1]))
  return 0 if within else 1


if __name__ == "__main__":
  sys.exit(main())
