"""SuperGLUE (Wang et al. 2019, arXiv 1905.00537), cast as T5 does, and FewGLUE's 32-row sets of it.

WSC differs most (Raffel et al. 2020, appendix B): the model is to say in words what a pronoun
refers to. It is trained on the rows whose candidate is right, and judged by whether it names the
candidate (the metric `wsc`). ReCoRD has a training example for each of the right entities.
"""

import dataclasses
import re
from collections.abc import Mapping

from prompt_tuning.tasks.datasets import super_glue_files
from prompt_tuning.tasks.datasets.labelled import Fields
from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import JsonLines, Reader
from prompt_tuning.tasks.spec import UNLABELLED, Example, Row, TaskSpec, Unusable

DOWNLOAD = "download SuperGLUE's combined.zip (super.gluebenchmark.com/tasks) and unpack it into " \
  "DATA_DIR/superglue"
FEW_DOWNLOAD = "get FewGLUE (github.com/timoschick/fewglue) or FewGLUE_32dev " \
  "(github.com/THUDM/P-tuning) into DATA_DIR/superglue"


@dataclasses.dataclass(frozen=True)
class MultiRC(Fields):
  """Rows are single answers; those of one question are a group. HTML marks of paragraphs go."""

  def __call__(self, row: Row) -> Example:
    example = super().__call__(row)
    inputs = re.sub("</?b>", "", example["inputs"].replace("<br>", " "))
    question = f"{row['idx']['paragraph']}-{row['idx']['question']}"
    return {**example, "inputs": inputs, "group": question}


def record(row: Row) -> Example:
  """ReCoRD: which of the passage's entities stands for @placeholder; any of `answers` is right."""
  # The bullet points of the summary become sentences of the passage.
  passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"])
  passage = passage.replace("\n@highlight\n", ". ")
  answers = list(row["answers"])
  return {
    "inputs": f"record query: {row['query']} entities: {', '.join(row['entities'])} "
              f"passage: {passage}",
    "targets": answers[0] if answers else UNLABELLED, "references": answers or [UNLABELLED],
    "group": f"{row['idx']['passage']}-{row['idx']['query']}"}


# Two rows whose marked word is not a word of its own: text -> the same with X for the pronoun.
_WSC_EXCEPTIONS = (("Good for him,", "Good for X ,"), ("want to use it ,", "want to use X ,"))
_WSC_EXCEPTION_STARTS = ("The boy continued to whip the pony", "When they had eventually calmed")
_LINES = JsonLines()


def wsc(row: Row) -> Example:
  """WSC: `wsc: text with the *pronoun* marked` -> the candidate, and whether it is right."""
  if str(row["text"]).startswith(_WSC_EXCEPTION_STARTS):
    text = row["text"].rstrip()
    for pronoun, blank in _WSC_EXCEPTIONS:
      text = text.replace(pronoun, blank)
  else:
    words = row["text"].split(" ")
    index = row["span2_index"]
    if not 0 < index < len(words) or words[index] != row["span2_text"]:
      found = words[index] if 0 <= index < len(words) else "nothing"
      raise Unusable(f"column 'span2_index': word {index} is {found!r}, not the pronoun "
                     f"{row['span2_text']!r}")
    text = " ".join([*words[:index], "X", *words[index + 1:]])
  text = re.sub(" X ", lambda _: f" *{row['span2_text']}* ", text)
  label = row.get("label", -1)
  return {"inputs": f"wsc: {text}", "targets": row["span1_text"],
          "label": UNLABELLED if label == -1 else str(bool(label))}


def names_the_referent(row: Row) -> bool:
  """Whether the candidate of a row of WSC is right: only those are trained on."""
  return row.get("label", -1) not in (0, -1, False)


def _row(name: str, folder: str, to_text, *, labels: tuple[str, ...] | None,
         metrics: tuple[str, ...], sizes: tuple[int, ...], description: str,
         read: Reader = _LINES, tfds: str | None = None, **settings) -> tuple[TaskSpec, ...]:
  """The task, and where FewGLUE has it the same with 32 rows."""
  files: Mapping[str, tuple[str, ...]] = (
    {"test": (f"superglue/{folder}/{folder}.jsonl",)} if len(sizes) == 1 else
    {split: (f"superglue/{folder}/{file}.jsonl",) for split, file in
     (("train", "train"), ("validation", "val"), ("test", "test"))})
  source = Published(files=files, read=read, download=DOWNLOAD,
                     tfds=f"super_glue/{tfds or name}:1.0.2",
                     huggingface=f"aps/super_glue {tfds or name}",
                     adapt=super_glue_files.rekeyed if name == "axb" else super_glue_files.same)
  task = TaskSpec(name=f"super_glue_{name}", source=source, to_text=to_text, labels=labels,
                  metrics=metrics, description=description,
                  sizes=dict(zip(files, sizes, strict=True)), **settings)
  if len(sizes) == 1:
    return (task,)
  few = dataclasses.replace(
    task, name=f"fewglue_{name}", description=f"FewGLUE: 32 rows of {task.name}; test: its dev set",
    sizes={"train": 32, "validation": 32, "test": sizes[1]},
    source=Published(
      files={"train": (f"superglue/FewGLUE_32dev/{folder}/train.jsonl",
                       f"superglue/FewGLUE/{folder}/train.jsonl"),
             "validation": (f"superglue/FewGLUE_32dev/{folder}/dev32.jsonl",),
             "test": (f"superglue/{folder}/val.jsonl",)},
      read=read, download=FEW_DOWNLOAD))
  return task, few


_YES_NO = ("False", "True")
_CB = ("entailment", "contradiction", "neutral")
_COPA = ("choice1", "choice2")
_RTE = ("entailment", "not_entailment")
_PAIR = ("hypothesis", "premise")

_ALL = (
  _row("boolq", "BoolQ", Fields("boolq", ("passage", "question"), _YES_NO), prefix="boolq ",
       labels=_YES_NO, metrics=("accuracy",), sizes=(9427, 3270, 3245),
       description="yes-no questions on a passage"),
  _row("cb", "CB", Fields("cb", _PAIR, _CB), prefix="cb ", labels=_CB,
       metrics=("macro_f1", "accuracy"), sizes=(250, 56, 250),
       description="is the speaker committed to a clause"),
  _row("copa", "COPA", Fields("copa", ("choice1", "choice2", "premise", "question"), _COPA),
       prefix="copa ", labels=_COPA, metrics=("accuracy",), sizes=(400, 100, 500),
       description="the likelier cause or effect of two"),
  _row("multirc", "MultiRC", MultiRC("multirc", ("question", "answer", "paragraph"), _YES_NO),
       prefix="multirc ", labels=_YES_NO, metrics=("multirc",), sizes=(27243, 4848, 9693),
       read=super_glue_files.multirc, description="is an answer right; questions have several"),
  _row("record", "ReCoRD", record, prefix="record ", labels=None, metrics=("record",), expand=True,
       sizes=(100730, 10000, 10000), read=super_glue_files.record,
       description="which entity of the news fills a gap"),
  _row("rte", "RTE", Fields("rte", _PAIR, _RTE), prefix="rte ", labels=_RTE,
       metrics=("accuracy",), sizes=(2490, 277, 3000),
       description="does a hypothesis follow from a premise"),
  _row("wic", "WiC", Fields("wic", ("sentence1", "sentence2", "word"), _YES_NO), prefix="wic ",
       labels=_YES_NO, metrics=("accuracy",), sizes=(5428, 638, 1400),
       description="does a word mean the same in two sentences"),
  _row("wsc", "WSC", wsc, prefix="wsc: ", labels=None, metrics=("wsc",),
       in_training=names_the_referent, sizes=(554, 104, 146), read=super_glue_files.wsc,
       tfds="wsc.fixed", description="what a pronoun refers to, in words; trained on right rows"),
  _row("axb", "AX-b", Fields("rte", _PAIR, _RTE), prefix="rte ", labels=_RTE,
       metrics=("matthews",), sizes=(1104,), read=super_glue_files.axb,
       description="SuperGLUE's broad diagnostic set, cast as RTE; evaluation only"),
  _row("axg", "AX-g", Fields("rte", _PAIR, _RTE), prefix="rte ", labels=_RTE,
       metrics=("accuracy",), sizes=(356,),
       description="SuperGLUE's Winogender diagnostic set, cast as RTE; evaluation only"),
)
ROWS = (*(tasks[0] for tasks in _ALL), *(task for tasks in _ALL for task in tasks[1:]))
