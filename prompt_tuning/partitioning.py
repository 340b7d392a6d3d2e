"""The mesh, and one table from logical axes to mesh axes.

Every array of a run has a `NamedSharding`: parameters by the logical names that the modules give
their axes, a batch by its rows, activations where the model calls `constrain`. XLA's partitioner
does the rest. What stands under `prompt/` is replicated: it is kilobytes, and every device's rows
need all of it.

  parameters    [vocab, embed], [embed, joined_kv], [joined_kv, embed], [embed, mlp], ...
  activations   [batch, length, None] between layers, [batch, heads, None, None] in attention,
                [batch, None, mlp] in the MLP, [batch, None, vocab] at the output
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning import trees
from prompt_tuning.layouts import AXES, Layout, layout_of

# Logical axis -> mesh axes; a name that is not listed is replicated.
AXIS_RULES: Mapping[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "copy": ("data",),  # rows that one copy of the weights computes
  "length": ("model",),  # with Layout.sequence alone
  "embed": ("fsdp",),  # of parameters; activations keep D whole
  "vocab": ("model",), "joined_kv": ("model",), "heads": ("model",), "mlp": ("model",),
}


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """A mesh, and where arrays go on it.

  Attributes:
    mesh: axes `data`, `fsdp`, `model`.
    layout: its sizes, resolved.
  """

  mesh: Mesh
  layout: Layout

  @classmethod
  def make(cls, layout: str | Layout = "replicated",
           devices: Sequence[Any] | None = None) -> "Partitioner":
    """Over the given devices, or all there are.

    Raises:
      UserError: the layout does not fit so many devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = num_slices(devices)
    resolved = layout_of(layout).resolve(len(devices), slices)
    return cls(_mesh(resolved, devices, slices), resolved)

  @property
  def row_shards(self) -> int:
    """What the rows of a batch must be a multiple of."""
    return self.layout.data * self.layout.fsdp

  def padded(self, rows: int) -> int:
    """The next number of rows that can be split."""
    return -(-rows // self.row_shards) * self.row_shards

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  def over_batch(self, axis: int = 0) -> NamedSharding:
    """Splits one axis, the rows, of every array of a batch."""
    return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, AXIS_RULES["batch"]))

  def put_batch(self, batch: Any, axis: int = 0) -> Any:
    """Host arrays -> device arrays, split by rows; each host gives the rows of its own devices."""
    sharding = self.over_batch(axis)
    if jax.process_count() == 1:
      return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

  def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """Of one array by the logical names of its axes; axes of size 1 are replicated."""
    return NamedSharding(self.mesh, PartitionSpec(*(
      self._mesh_axes(name) if size > 1 else None
      for name, size in zip(axes, shape, strict=True))))

  def _fitting(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """`sharding`, without the axes whose size the mesh does not divide: groups of scales are few,
    and what `Layout.check` looks at are the kernels."""
    spec = self.sharding(axes, shape).spec
    sizes = [math.prod(self.mesh.shape[name] for name in ((entry,) if isinstance(entry, str)
                                                          else entry or ())) for entry in spec]
    return NamedSharding(self.mesh, PartitionSpec(*(
      entry if n % size == 0 else None for entry, size, n in zip(spec, sizes, shape, strict=True))))

  def params(self, tree: trees.Tree, axes: trees.Tree) -> dict[str, Any]:
    """The shardings of a tree of parameters, or of part of one.

    Args:
      tree: arrays or shapes, paths as in `{"backbone": ..., "prompt": ...}`. A leaf may be a node
        of several arrays (the layers around a trained slice, values and scales).
      axes: `prompted.logical_axes` of the model.
    """
    names = trees.flatten(axes)

    def of(path: str, leaf: Any) -> Any:
      if path.startswith("prompt/"):
        return jax.tree.map(lambda _: self.replicated, leaf)
      own = tuple(names[path])
      # A vector a layer is too small to be worth gathering.
      is_matrix = sum(name != "layers" for name in own) > 1
      return jax.tree.map(lambda x: self._fitting(own, x.shape) if is_matrix
                          else self.replicated, leaf)

    return trees.map_with_path(of, tree)

  def state(self, state: Any, trainable: trees.Tree, axes: trees.Tree) -> Any:
    """The shardings of a train state: moments lie where their parameter does.

    Args:
      state: arrays or shapes; leaves whose path ends as a parameter's, and of its shape, are taken
        for moments of it. The others (counts, factored moments) are small, and replicated.
      trainable: the parameters that it is of.
    """
    shapes = {path: leaf.shape for path, leaf in trees.flatten(trainable).items()}
    known = trees.flatten(self.params(trainable, axes))

    def of(keys: tuple, leaf: Any) -> NamedSharding:
      names = [str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey)]
      # Ahead of the parameter's path may stand a group's name, which has slashes as well.
      path = next((path for path in ("/".join(names[i:]) for i in range(len(names)))
                   if path in shapes), "")
      return known[path] if shapes.get(path) == leaf.shape else self.replicated

    return jax.tree_util.tree_map_with_path(of, state)

  def jit(self, function: Callable, **options: Any) -> Callable:
    """`jax.jit`, with the model's activations laid out on this mesh."""

    def on_mesh(*args: Any) -> Any:
      with self.scope():
        return function(*args)

    on_mesh.__name__ = getattr(function, "__name__", "on_mesh")
    return jax.jit(on_mesh, **options)

  @contextlib.contextmanager
  def scope(self) -> Iterator[None]:
    """What is traced within lays its activations out by `constrain`."""
    token = _ACTIVE.set(self)
    try:
      yield
    finally:
      _ACTIVE.reset(token)

  def _mesh_axes(self, name: str | None) -> tuple[str, ...] | None:
    if name is None or name == "length" and not self.layout.sequence:
      return None
    axes = tuple(axis for axis in AXIS_RULES.get(name, ()) if self.mesh.shape[axis] > 1)
    return axes or None


_ACTIVE: contextvars.ContextVar[Partitioner | None] = contextvars.ContextVar("mesh", default=None)


def constrain(x: Array, *axes: str | None) -> Array:
  """Lays an activation out by the logical names of its axes; outside a `scope` nothing happens."""
  active = _ACTIVE.get()
  if active is None or active.mesh.size == 1:
    return x
  # One decoded token cannot be split by position.
  names = tuple(None if name == "length" and size < active.layout.model else name
                for name, size in zip(axes, x.shape, strict=True))
  return jax.lax.with_sharding_constraint(x, active.sharding(names, x.shape))


def num_slices(devices: Sequence[Any]) -> int:
  """How many groups of devices only a data-centre network joins."""
  return len({getattr(device, "slice_index", 0) or 0 for device in devices})


def _mesh(layout: Layout, devices: list[Any], slices: int) -> Mesh:
  shape = (layout.data, layout.fsdp, layout.model)
  if slices > 1:
    inside = (layout.data // slices, layout.fsdp, layout.model)
    return Mesh(mesh_utils.create_hybrid_device_mesh(
      inside, (slices, 1, 1), devices=devices, allow_split_physical_axes=True), AXES)
  if devices[0].platform == "tpu":
    return Mesh(mesh_utils.create_device_mesh(shape, devices=devices,
                                              allow_split_physical_axes=True), AXES)
  # Devices of one host follow each other, and the last axis, which talks most, stays within it.
  return Mesh(np.asarray(devices).reshape(shape), AXES)
