"""How large a model is and how much of it is trained, from shapes alone: no weights, no task.

  frozen     backbone parameters that are not trained, in FROZEN_DTYPE, and a prompt's constants
  trained    the prompt, and what TRAINABLE matches, in float32
  optimizer  the optimizer's state for what is trained
  served     what one more task needs beside the shared backbone: the prompt's served form and the
             trained part of the backbone
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from prompt_tuning import trees
from prompt_tuning.optimizers import Optimizer
from prompt_tuning.prompted import abstract_params
from prompt_tuning.run_config import ModelConfig

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoConfig:
  """Attributes:
    model: backbone and prompt.
    trainable: TRAINABLE, patterns of backbone parameters that are trained.
    optimizer: OPTIMIZER, for the size of its state.
  """

  model: ModelConfig
  trainable: tuple[str, ...]
  optimizer: Optimizer


def measure(config: InfoConfig) -> dict[str, Any]:
  """Counts and bytes as JSON: `backbone_parameters`, `trained_parameters`, ..., `modules`.

  Raises:
    UserError: a TRAINABLE pattern that matches nothing.
  """
  params, split = _shapes(config)
  trainable, frozen = jax.eval_shape(split.split, params)
  state: Any = jax.eval_shape(config.optimizer.build(trainable).init, trainable) if (
    split.trained) else ()
  prompt = params.get("prompt", {})
  served = [] if not prompt else jax.tree.leaves(
    jax.eval_shape(config.model.prompt.fold, prompt))
  served += jax.tree.leaves(trainable.get("backbone", {}))
  modules = [{"module": name, "parameters": trees.count(tree), "bytes": trees.num_bytes(tree),
              "trained": trees.count(_below(trainable, name))}
             for name, tree in _modules(params)]
  total = trees.count(params)
  return {
    "backbone_parameters": trees.count(params["backbone"]),
    "prompt_parameters": trees.count(prompt),
    "total_parameters": total,
    "trained_parameters": trees.count(trainable),
    "trained_share": trees.count(trainable) / total,
    "served_parameters": sum(leaf.size for leaf in served),
    "frozen_bytes": trees.num_bytes(frozen),
    "trained_bytes": trees.num_bytes(trainable),
    "optimizer_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    "served_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in served),
    "virtual_tokens": config.model.module().num_virtual_tokens,
    "modules": modules,
  }


def paths(config: InfoConfig) -> list[tuple[str, str, str]]:
  """(path, shape, `trained`, `frozen` or the layers that are trained) of every parameter."""
  params, split = _shapes(config)
  rows = []
  for path, leaf in trees.flatten(params).items():
    layers = split.trained.get(path)
    how = "frozen" if path not in split.trained else (
      "trained" if layers is None else f"layers {layers[0]} to {layers[1] - 1} trained")
    rows.append((path, str(list(leaf.shape)), how))
  return rows


def show(config: InfoConfig, *, as_json: bool, with_paths: bool) -> None:
  """Prints the tables, or one JSON object."""
  found = measure(config)
  listed = paths(config) if with_paths else []
  if as_json:
    if with_paths:
      found["paths"] = [{"path": p, "shape": s, "how": how} for p, s, how in listed]
    print(json.dumps(found, indent=2))
    return
  console = Console()
  table = Table(title="parameters")
  table.add_column("module")
  for name in ("parameters", "bytes", "trained"):
    table.add_column(name, justify="right")
  for row in found["modules"]:
    table.add_row(row["module"], f"{row['parameters']:,}", show_bytes(row["bytes"]),
                  f"{row['trained']:,}")
  table.add_section()
  table.add_row("all", f"{found['total_parameters']:,}",
                show_bytes(found["frozen_bytes"] + found["trained_bytes"]),
                f"{found['trained_parameters']:,}")
  console.print(table)
  print(f"trained: {found['trained_parameters']:,} of {found['total_parameters']:,} parameters "
        f"({found['trained_share']:.4%}), {found['virtual_tokens']} virtual tokens")
  print("memory:  " + ", ".join(f"{name} {show_bytes(found[name + '_bytes'])}" for name in (
    "frozen", "trained", "optimizer", "served")))
  print(f"served:  {found['served_parameters']:,} parameters a task, beside the shared backbone")
  for path, shape, how in listed:
    print(f"{path}  {shape}  {how}")


def show_methods(found: Mapping[str, Mapping[str, Any] | str], *, as_json: bool) -> None:
  """Prints what each method trains and serves.

  Args:
    found: method -> what `measure` says of it, or why it cannot be built.
  """
  if as_json:
    kept = ("trained_parameters", "served_parameters", "served_bytes", "optimizer_bytes",
            "virtual_tokens")
    print(json.dumps({name: row if isinstance(row, str) else {key: row[key] for key in kept}
                      for name, row in found.items()}, indent=2))
    return
  sizes = [row for row in found.values() if not isinstance(row, str)]
  total = sizes[0]["backbone_parameters"] if sizes else 0
  table = Table(title=f"methods on a backbone of {total:,} parameters")
  table.add_column("method")
  for name in ("trained", "share", "served", "bytes served"):
    table.add_column(name, justify="right")
  for name, row in found.items():
    if isinstance(row, str):
      table.add_row(name, row)
    else:
      table.add_row(name, f"{row['trained_parameters']:,}",
                    f"{row['trained_parameters'] / total:.4%}", f"{row['served_parameters']:,}",
                    show_bytes(row["served_bytes"]))
  Console().print(table)


def show_bytes(count: int) -> str:
  """`1,234,567` -> `1.2 MB`."""
  size, unit = float(count), 0
  while size >= 1000 and unit < len(_UNITS) - 1:
    size, unit = size / 1000, unit + 1
  return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def _shapes(config: InfoConfig) -> tuple[dict[str, Any], trees.Split]:
  """The parameter tree in the dtypes of a run, and what is trained."""
  params = abstract_params(config.model.module())
  # `plan_split` refuses to train nothing; a plain model may still be looked at.
  split = trees.plan_split(params, config.trainable) if (
    config.trainable or "prompt" in params) else trees.Split({})

  params = {**trees.map_with_path(
    lambda _, leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), params),
    "backbone": config.model.backbone_shapes(split)}
  return params, split


def _modules(params: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  top = [(f"backbone/{name}", tree) for name, tree in params["backbone"].items()]
  return top + ([("prompt", params["prompt"])] if "prompt" in params else [])


def _below(tree: dict[str, Any], name: str) -> dict[str, Any]:
  for part in name.split("/"):
    tree = tree.get(part, {})
  return tree
