"""Settings of controlled generation: what steers, how strongly, and where its models come from.

Strength 0 is the plain model: nothing is read, nothing is compiled that would steer.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning import steering
from prompt_tuning.attribute_model import AttributeModel
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.generation import Decoding

EXPERT, ANTI_EXPERT = "the expert", "the anti-expert"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
  """Base of the controls.

  Attributes:
    strength: STRENGTH; 0 is the plain model.
  """

  strength: float = 1.0

  def __post_init__(self):
    if isinstance(self.strength, bool) or not isinstance(self.strength, int | float) or (
        not np.isfinite(self.strength)):
      raise UserError("STRENGTH is not a number", found=repr(self.strength),
                      wanted="a number; 0 is the plain model", fix="--gin.STRENGTH=1.0")

  def prompts(self) -> list[tuple[str, str]]:
    """(name, source) of the prompts that it reads besides the model's own (`prompt_bank.py`)."""
    return []

  def check(self, decoding: Decoding, width: int) -> None:
    """Checks what needs no weights.

    Args:
      width: D of the backbone.
    """

  def steering(self) -> Any:
    """A `steering.Steering`, or None at strength 0."""
    return self._steering() if self.strength else None

  def _steering(self) -> Any:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts(Control):
  """An attribute's prompt, or the difference of two: `steering.Experts`.

  Attributes:
    expert, anti_expert: EXPERT, ANTI_EXPERT: prompts' files or MODEL_DIRs; without an anti-expert
      the model's own prompt stands for it, so that strength 1 is the expert alone.
  """

  expert: str
  anti_expert: str | None = None

  def prompts(self) -> list[tuple[str, str]]:
    if not self.strength:
      return []
    found = [(EXPERT, self.expert)]
    return found if self.anti_expert is None else [*found, (ANTI_EXPERT, self.anti_expert)]

  def _steering(self) -> steering.Experts:
    return steering.Experts(jnp.float32(self.strength), copies=1 + len(self.prompts()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ByAttribute(Control):
  """Attributes:
    attribute_model: ATTRIBUTE_MODEL, a file that `prompt-tuning attribute` wrote.
    attribute: ATTRIBUTE, which of its labels is wanted.
  """

  attribute_model: str
  attribute: str

  def check(self, decoding: Decoding, width: int) -> None:
    if decoding.strategy == "beam":
      raise UserError(f"{type(self).__name__} does not go with beams", found="DECODING = 'beam'",
                      wanted="greedy or sample", fix="--gin.DECODING=\"'sample'\"")
    if not self.strength:
      return  # nothing is read
    model = AttributeModel.read(self.attribute_model)
    if self.attribute not in model.labels:
      raise UserError("The attribute model does not know this ATTRIBUTE", found=self.attribute,
                      wanted="one of " + ", ".join(model.labels),
                      fix=nearest(self.attribute, model.labels))
    if len(model.kernel) != width:
      raise UserError("The attribute model is of another backbone",
                      found=f"D = {len(model.kernel)}", wanted=f"D = {width}",
                      fix="make it with `prompt-tuning attribute` and this model's gin files")

  def _head(self) -> dict[str, Any]:
    model = AttributeModel.read(self.attribute_model)
    return {"head": steering.AttributeHead(jnp.asarray(model.kernel), jnp.asarray(model.bias)),
            "attribute": jnp.int32(model.labels.index(self.attribute)),
            "strength": jnp.float32(self.strength)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discriminator(_ByAttribute):
  """`steering.Discriminator`.

  Attributes:
    candidates: CANDIDATES, tokens a step that the attribute model judges.
  """

  candidates: int = 20

  def check(self, decoding: Decoding, width: int) -> None:
    if not isinstance(self.candidates, int) or self.candidates < 1:
      raise UserError("CANDIDATES is not a count", found=repr(self.candidates),
                      wanted="1 or more", fix="--gin.CANDIDATES=20")
    super().check(decoding, width)

  def _steering(self) -> steering.Discriminator:
    return steering.Discriminator(**self._head(), candidates=self.candidates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradients(_ByAttribute):
  """PPLM: `steering.Gradients`.

  Attributes:
    kl: KL_SCALE.  fusion: FUSION, from 0 to 1.  steps: GRADIENT_STEPS a token.
  """

  kl: float = 0.01
  fusion: float = 0.9
  steps: int = 3

  def check(self, decoding: Decoding, width: int) -> None:
    if not 0.0 <= self.fusion <= 1.0 or self.kl < 0.0 or not isinstance(self.steps, int) or (
        self.steps < 1):
      raise UserError("A setting of PPLM is out of its range",
                      found=f"FUSION = {self.fusion}, KL_SCALE = {self.kl}, GRADIENT_STEPS = "
                      f"{self.steps}", wanted="0 <= FUSION <= 1, KL_SCALE >= 0, "
                      "GRADIENT_STEPS >= 1", fix="see controls/pplm.gin")
    super().check(decoding, width)

  def _steering(self) -> steering.Gradients:
    return steering.Gradients(**self._head(), kl=jnp.float32(self.kl),
                              fusion=jnp.float32(self.fusion), steps=self.steps)
