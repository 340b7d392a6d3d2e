"""Which evaluation of a run is its best one: by which metrics, and in which direction.

Lester et al. 2021 stop early on the development metric. Of two metrics it is the mean here, as GLUE
and SuperGLUE count such a task. Without BEST_METRICS it is the accuracy where there are labels, of
equal ones (of the majority class, say) the one with the smaller label loss; else the loss.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.evaluate import Evaluator

# Less is better: losses, the share of answers that are no label, edits to the reference.
FALLING = ("label_loss", "loss", "not_a_label", "ter")


@dataclasses.dataclass(frozen=True)
class Selection:
  """Attributes:
    metrics: whose mean chooses: all FALLING, or others, of which more is better.
    by_rank: whether the evaluation ranks labels; then their loss decides among equals.
  """

  metrics: tuple[str, ...]
  by_rank: bool

  @classmethod
  def of(cls, given: Sequence[str] | None, evaluator: Evaluator) -> "Selection":
    """Of BEST_METRICS; None: what suits the task.

    Raises:
      UserError: the evaluation has no such metric, or falling ones stand beside others.
    """
    by_rank = evaluator.method == "rank"
    if given is None:
      return cls(("accuracy",) if by_rank else ("loss",), by_rank)
    known = evaluator.metric_names()
    for name in given:
      if name not in known:
        raise UserError("The evaluation has no such metric as BEST_METRICS names", found=repr(name),
                        wanted="one of " + ", ".join(known), fix=nearest(name, known))
    if len({name in FALLING for name in given}) > 1:
      raise UserError("BEST_METRICS mixes what should fall with what should rise",
                      found=", ".join(given), wanted="metrics of one direction",
                      fix="leave out " + ", ".join(name for name in given if name in FALLING))
    return cls(tuple(given), by_rank)

  @property
  def name(self) -> str:
    """Of `value`, in tables and figures."""
    return " + ".join(self.metrics)

  def value(self, metrics: Mapping[str, float]) -> float:
    return statistics.fmean(metrics[name] for name in self.metrics)

  def score(self, metrics: Mapping[str, float]) -> list[float]:
    """What evaluations are compared by, in this order; more is better."""
    value = self.value(metrics)
    score = [-value if self.metrics[0] in FALLING else value]
    return [*score, -metrics["label_loss"]] if self.by_rank else score
