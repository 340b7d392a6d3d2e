"""Parameters as T5X names them, which of them are trained, and their logical axes.

Below `target/` of T5X's train state the backbone has T5X's own names, and every method's parameters
stand where the code of Lester et al. 2021 has its prompt:

  ours                        T5X
  backbone/encoder/layers_0   encoder/layers_0
  prompt/embedding [P, D]     encoder/prompt/prompt/prompt
  prompt/NAME                 encoder/prompt/prompt/NAME
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from flax.linen.partitioning import AxisMetadata

from prompt_tuning import trees
from prompt_tuning.checkpoints import loading
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.t5 import T5

PROMPT = "encoder/prompt/prompt"
_TABLE = ("embedding", "prompt")


def to_t5x(params: Mapping[str, Any]) -> dict[str, Any]:
  """`{"backbone": ..., "prompt": ...}` -> T5X's tree."""
  flat = trees.flatten(params)
  return trees.unflatten({t5x_name(path): leaf for path, leaf in flat.items()})


def from_t5x(params: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `to_t5x`."""
  return trees.unflatten({our_name(path): leaf for path, leaf in trees.flatten(params).items()})


def t5x_name(path: str) -> str:
  """`prompt/embedding` -> `encoder/prompt/prompt/prompt`."""
  owner, _, rest = path.partition("/")
  if owner == "backbone":
    return rest
  return f"{PROMPT}/{_TABLE[1] if rest == _TABLE[0] else rest}"


def our_name(name: str) -> str:
  """The inverse of `t5x_name`."""
  if not is_prompt(name):
    return f"backbone/{name}"
  rest = name.removeprefix(PROMPT + "/")
  return f"prompt/{_TABLE[0] if rest == _TABLE[1] else rest}"


def is_prompt(name: str) -> bool:
  return name.startswith(PROMPT + "/")


def axes(specs: Mapping[str, Any]) -> dict[str, Any]:
  """T5X's `params_axes` collection, from our tree of `PartitionSpec`s of logical names.

  Prompts are replicated, so their axes have no name: no rule has to know them.
  """
  named = {}
  for path, spec in trees.flatten(specs).items():
    name = t5x_name(path)
    named[f"{name}_axes"] = AxisMetadata(names=tuple(
      None if is_prompt(name) else axis for axis in spec))
  return trees.unflatten(named)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """Exactly the leaves that are trained; T5X's masks are made of it.

  Called as a filter of `flax.traverse_util.ModelParamTraversal`, it says whether a leaf is trained,
  and refuses one that the model does not have.

  Attributes:
    backbone: BACKBONE.
    prompt: PROMPT, or None.
    trainable: TRAINABLE, path patterns of backbone leaves besides.
  """

  backbone: T5Config
  prompt: Any = None
  trainable: tuple[str, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "trainable", trees.patterns_of(self.trainable))
    check_layout(self.backbone)

  @functools.cached_property
  def leaves(self) -> dict[str, Any]:
    """Every leaf of the model by T5X's name, as a shape."""
    found: dict[str, Any] = dict(loading.expected_leaves(self.backbone))
    # Stacked: traced in the time of one layer; a prompt is the same beside either layout.
    stacked = T5(dataclasses.replace(self.backbone, scan_layers=True))
    prompt = abstract_params(PromptedT5(stacked, self.prompt)).get("prompt", {})
    return found | {t5x_name(f"prompt/{path}"): leaf
                    for path, leaf in trees.flatten(prompt).items()}

  @functools.cached_property
  def names(self) -> frozenset[str]:
    """The trained ones."""
    params = trees.unflatten({our_name(name): leaf for name, leaf in self.leaves.items()})
    split = trees.plan_split(params, self.trainable)
    for path, layers in split.trained.items():
      if layers is not None:
        raise UserError("A TRAINABLE pattern slices a parameter that has no layer axis",
                        found=path, wanted="names such as encoder/layers_0/.*",
                        fix="leave the [start:stop] out")
    return frozenset(t5x_name(path) for path in split.trained)

  def __call__(self, path: str, value: Any = None) -> bool:
    del value
    name = path.strip("/")
    if name not in self.leaves:
      raise UserError("T5X has a parameter that this mask does not know", found=name,
                      wanted=f"the {len(self.leaves)} parameters of BACKBONE and PROMPT",
                      fix=f"use one BACKBONE and PROMPT for MODEL and OPTIMIZER; "
                      f"{nearest(name, list(self.leaves))}")
    return name in self.names

  def check(self, params: Mapping[str, Any]) -> None:
    """Raises a UserError unless T5X's tree has every trained leaf, and no unknown one."""
    found = set(trees.flatten(params))
    for name in found:
      self(name)
    if missing := sorted(self.names - found):
      raise UserError("T5X does not have every parameter that is to be trained",
                      found=f"missing {missing[:4]} ({len(missing)})",
                      wanted=f"the {len(self.names)} trained parameters",
                      fix="use one BACKBONE and PROMPT for MODEL and OPTIMIZER")


def check_layout(config: T5Config) -> None:
  """Refuses stacked layers: T5X's T5s are unstacked."""
  if config.scan_layers:
    raise UserError("T5X's T5s have one leaf a layer", found="SCAN_LAYERS = True",
                    wanted="SCAN_LAYERS = False", fix="--gin.SCAN_LAYERS=False")
