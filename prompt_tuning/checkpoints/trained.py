"""Checkpoints of a run: trained leaves, optimizer state, step, and the loop's own counters.

Orbax writes them below `MODEL_DIR/checkpoints/{last,best}/<step>`; a step's folder appears whole
or not at all; of several hosts each writes what only it has. The frozen backbone is not in them; a
prompt's constants are, among the trained leaves, so that a prompt is whole.
`last` is saved before `best`, so what comes after the newest `last` is no part of the run.
"""

import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from prompt_tuning import hosts, trees
from prompt_tuning.disk import first_line, report_full
from prompt_tuning.errors import UserError
from prompt_tuning.train_state import TrainState


class TrainedCheckpoints:
  """The last and the best state of one run.

  Attributes:
    constants: `{"prompt": ...}`, the frozen leaves that belong to the prompt: saved and restored
      with every state, though in none.
  """

  def __init__(self, model_dir: pathlib.Path):
    self.constants: Mapping[str, Any] = {}
    self._folder = (model_dir / "checkpoints").absolute()
    hosts.on_first(_clear)(self._folder)
    hosts.barrier("cleared")
    self._managers = {name: self._manager(name) for name in ("last", "best")}

  def latest_step(self, *, best: bool = False) -> int | None:
    return self._managers["best" if best else "last"].latest_step()

  def save(self, state: TrainState, counters: dict[str, Any], *, best: bool = False) -> None:
    """Writes one step and then drops the one before.

    Raises:
      UserError: the disk is full; what was saved before is kept.
    """
    manager = self._managers["best" if best else "last"]
    step = int(state.step)
    if step in manager.all_steps():
      return
    again = f"run the same command again: it resumes from step {self.latest_step() or 0}"
    with report_full("a checkpoint", self._folder, again):
      manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(_as_tree(state, self.constants)),
        counters=ocp.args.JsonSave(counters)))
      manager.wait_until_finished()

  def restore(self, abstract: TrainState, *,
              best_step: int | None = None) -> tuple[TrainState, dict]:
    """Reads the last step, or the best, into the shapes, dtypes and shardings of `abstract`.

    `constants` become those of the checkpoint.

    Raises:
      UserError: the checkpoint is missing or damaged, or holds other parameters.
    """
    manager = self._managers["last" if best_step is None else "best"]
    step = manager.latest_step() if best_step is None else best_step
    try:
      restored = manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_as_tree(abstract, self.constants)),
        counters=ocp.args.JsonRestore()))
    except Exception as error:  # Orbax and tensorstore raise many kinds for a damaged folder.
      raise UserError("The run's checkpoint cannot be restored",
                      found=f"{self._folder}, step {step}: {first_line(error)}",
                      wanted="the state that this configuration trains",
                      fix="use a new MODEL_DIR; prompt.npy and the other files of this one are "
                      "as the run left them") from error
    tree = restored["state"]
    leaves = trees.flatten(tree["trainable"])
    self.constants = trees.unflatten({path: leaves.pop(path)
                                      for path in trees.flatten(self.constants)})
    return TrainState(tree["step"], trees.unflatten(leaves),
                      _like(abstract.opt_state, tree["opt_state"])), dict(restored["counters"])

  def close(self) -> None:
    for manager in self._managers.values():
      manager.close()

  def _manager(self, name: str) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True,
                                           enable_async_checkpointing=False)
    return ocp.CheckpointManager(self._folder / name, options=options)


def _clear(folder: pathlib.Path) -> None:
  """Removes what a kill left: unfinished folders, and steps that were being replaced."""
  newest: float = math.inf
  for name in ("last", "best"):
    # `<step>`, and `<step>.orbax-checkpoint-tmp` while it is written.
    found = [path for path in (folder / name).glob("*") if path.name.split(".")[0].isdecimal()]
    newest = max((int(path.name) for path in found
                  if path.name.isdecimal() and int(path.name) <= newest), default=-1)
    for path in found:
      if path.name != str(newest):
        shutil.rmtree(path)


def _as_tree(state: TrainState, constants: Mapping[str, Any]) -> dict[str, Any]:
  # The optimizer's named tuples are stored as their leaves in order: optax may rename a field, and
  # empty nodes have no place in a checkpoint.
  leaves = jax.tree.leaves(state.opt_state)
  return {"step": state.step, "trainable": trees.join(state.trainable, constants),
          "opt_state": {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}}


def _like(structure: Any, leaves: dict[str, Any]) -> Any:
  return jax.tree.unflatten(jax.tree.structure(structure), [leaves[k] for k in sorted(leaves)])
