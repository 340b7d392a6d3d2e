"""The single score of GLUE and of SuperGLUE from the metrics of their tasks.

A task with two metrics counts with their mean, MNLI with the mean of its two test sets, and every
task counts the same (Wang et al. 2018, section 4; Wang et al. 2019, section 3.4). The diagnostic
sets (AX, AX-b, AX-g) are not part of it. Metrics keep their unit, so shares give a share.
"""

from collections.abc import Mapping

from prompt_tuning.tasks.classification_metrics import share

# Benchmark -> what counts once -> (task, metric)s whose mean it is.
BENCHMARKS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
  "glue": {
    "cola": (("cola", "matthews"),),
    "sst2": (("sst2", "accuracy"),),
    "mrpc": (("mrpc", "f1"), ("mrpc", "accuracy")),
    "stsb": (("stsb", "pearson"), ("stsb", "spearman")),
    "qqp": (("qqp", "f1"), ("qqp", "accuracy")),
    "mnli": (("mnli", "accuracy"), ("mnli_mismatched", "accuracy")),
    "qnli": (("qnli", "accuracy"),),
    "rte": (("rte", "accuracy"),),
    "wnli": (("wnli", "accuracy"),),
  },
  "super_glue": {
    "boolq": (("boolq", "accuracy"),),
    "cb": (("cb", "macro_f1"), ("cb", "accuracy")),
    "copa": (("copa", "accuracy"),),
    "multirc": (("multirc", "f1a"), ("multirc", "em")),
    "record": (("record", "f1"), ("record", "em")),
    "rte": (("rte", "accuracy"),),
    "wic": (("wic", "accuracy"),),
    "wsc": (("wsc", "accuracy"),),
  },
}


def average(benchmark: str, results: Mapping[str, Mapping[str, float]]
            ) -> tuple[float | None, tuple[str, ...]]:
  """(the score, what is missing for it); the score is None where a task or metric is missing.

  Args:
    benchmark: `glue` or `super_glue`.
    results: task -> metric -> value; tasks with or without the benchmark's name in front.
  """
  known = {name.removeprefix(f"{benchmark}_"): found for name, found in results.items()}
  scores, missing = [], []
  for name, wanted in BENCHMARKS[benchmark].items():
    values = [known.get(task, {}).get(metric) for task, metric in wanted]
    if None in values:
      missing.append(name)
    else:
      scores.append(share(values))
  return (None if missing else share(scores)), tuple(missing)
