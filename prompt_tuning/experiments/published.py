"""Published numbers, for overlays: percent in the papers, shares here.

Lester, Al-Rfou and Constant 2021 (arXiv 2104.08691), T5 1.1 LM-adapted, XXL unless said:
table 1 (trained on SQuAD, F1 on the MRQA sets), table 3 (SuperGLUE, five prompts).
"""

from collections.abc import Sequence

XXL = 11_135_332_352
# Task -> (model tuning, prompt tuning), F1, table 1.
SHIFT = {"squad": (94.9, 94.8), "textbookqa": (54.3, 66.8), "bioasq": (77.9, 79.1),
         "race": (59.8, 60.7), "re": (88.4, 88.8), "duorc": (68.9, 67.7), "drop": (68.9, 67.1)}
SUPER_GLUE_TASKS = {"boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"}
# SuperGLUE's mean, table 3.
SUPER_GLUE = {"prompt tuning, mean of five": 90.5, "prompt tuning, best of five": 91.0,
              "prompt tuning, ensemble of five": 91.3}


def domain_shift(targets: Sequence[str]) -> dict[str, list[float]]:
  """Method -> F1 on each target (NaN where there is no number), as a share."""
  missing = (float("nan"), float("nan"))
  found = [SHIFT.get(target.removeprefix("mrqa_").lower(), missing) for target in targets]
  if all(pair is missing for pair in found):
    return {}
  return {method: [pair[i] / 100 for pair in found]
          for i, method in enumerate(("model tuning", "prompt tuning"))}


def scores(task: str) -> dict[str, list[tuple[int, float]]]:
  """Method -> (parameters, score as a share) of a panel of SuperGLUE's curve over sizes."""
  if task != "mean of the tasks":
    return {}
  return {method: [(XXL, value / 100)] for method, value in SUPER_GLUE.items()}
