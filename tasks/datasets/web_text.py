"""C4 (Raffel et al. 2020) for pre-training and LM adaptation; for other text: `pretraining.py`.

C4 is 365 million pages: cut it (`TASK_SPLITS`) to what a run reads, since rows are tokenised ahead.
"""

from prompt_tuning.tasks.objectives import PrefixLM, SpanCorruption
from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import JsonLines
from prompt_tuning.tasks.spec import Example, Row, TaskSpec

_C4 = Published(
  files={"train": ("c4/en/c4-train.*.json",), "validation": ("c4/en/c4-validation.*.json",)},
  read=JsonLines(has_labels=False), tfds="c4/en:3.1.0", huggingface="allenai/c4 en",
  download="get files of en/ (huggingface.co/datasets/allenai/c4) into DATA_DIR/c4/en")


def text_targets(row: Row) -> Example:
  """The page, from which the objective makes inputs and targets."""
  return {"targets": row["text"]}


def _spec(name: str, objective: object, description: str) -> TaskSpec:
  return TaskSpec(name=name, source=_C4, to_text=text_targets, labels=None, metrics=(),
                  objective=objective, description=description,
                  sizes={"train": 364868892, "validation": 364608})


ROWS = (
  _spec("c4_span_corruption", SpanCorruption(), "C4: T5's pre-training"),
  _spec("c4_lm_adaptation", PrefixLM(), "C4: LM adaptation, as in Lester et al. 2021"),
)
