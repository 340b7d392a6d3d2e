"""Mixtures of tasks: those of the table, and one that gin can fill.

Rates as T5 mixes (Raffel et al. 2020, section 3.5.2): `proportional` to the training examples with
a cap and a temperature, `equal`, or numbers of one's own. Only what the training stream draws
depends on them; evaluation takes every task by itself.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks.spec import MixtureSpec, Proportional

RATES = ("proportional", "equal")
# T5's cap on what a task counts for in its multi-task mixture.
T5_CAP = 2**19
# T5 trains on neither WNLI, whose development set contradicts its training set, nor diagnostics.
GLUE = ("glue_cola", "glue_sst2", "glue_mrpc", "glue_qqp", "glue_stsb", "glue_mnli", "glue_qnli",
        "glue_rte")
SUPER_GLUE = tuple(f"super_glue_{name}" for name in (
  "boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"))


def proportional(name: str, tasks: Sequence[str], description: str = "") -> MixtureSpec:
  """A mixture in proportion to its tasks' training examples, with T5's cap."""
  return MixtureSpec(name=name, rates={task: Proportional(cap=T5_CAP) for task in tasks},
                     description=description)


# MRQA 2019's test sets from other sources than its training sets; there is nothing to train on.
MRQA_OUT_OF_DOMAIN = tuple(f"mrqa_{name}" for name in (
  "bioasq", "drop", "duorc", "race", "re", "textbookqa"))

ROWS = (
  proportional("glue", GLUE, "eight tasks of GLUE, without WNLI as T5 trains them"),
  proportional("super_glue", SUPER_GLUE, "the eight tasks of SuperGLUE"),
  MixtureSpec(name="mrqa_out_of_domain", rates=dict.fromkeys(MRQA_OUT_OF_DOMAIN, 1.0),
              description="MRQA's six test sets of other domains; evaluation only"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskMixture:
  """Tasks of the table, mixed (TASK_SOURCE of runs/mixture.gin).

  Attributes:
    tasks: their names.
    rates: `proportional`, `equal`, or task -> rate.
    cap, temperature: of `proportional`.
    name: of the mixture.
  """

  tasks: Sequence[str]
  rates: str | Mapping[str, float] = "proportional"
  cap: int | None = T5_CAP
  temperature: float = 1.0
  name: str = "mixture"

  def __post_init__(self):
    if isinstance(self.tasks, str) or not self.tasks or len(set(self.tasks)) < len(self.tasks):
      raise UserError("MIXTURE_TASKS names no tasks, or one twice", found=repr(self.tasks),
                      wanted="a list such as ['glue_rte', 'glue_mrpc']", fix="correct the list")
    if isinstance(self.rates, str):
      if self.rates not in RATES:
        raise UserError("MIXTURE_RATES is unknown", found=repr(self.rates),
                        wanted=" or ".join(RATES) + ", or {task: rate}",
                        fix=nearest(self.rates, RATES))
    elif set(self.rates) != set(self.tasks):
      raise UserError("MIXTURE_RATES and MIXTURE_TASKS name different tasks",
                      found=", ".join(sorted(set(self.rates) ^ set(self.tasks))),
                      wanted="a rate for each of the tasks", fix="correct either of them")

  def spec(self) -> MixtureSpec:
    """The mixture, for `registry.resolve`."""
    if not isinstance(self.rates, str):
      return MixtureSpec(name=self.name, rates={task: self.rates[task] for task in self.tasks})
    rate = Proportional(cap=self.cap, temperature=self.temperature)
    return MixtureSpec(name=self.name, rates={
      task: rate if self.rates == "proportional" else 1.0 for task in self.tasks})
