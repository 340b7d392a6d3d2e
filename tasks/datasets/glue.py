"""GLUE (Wang et al. 2019, arXiv 1804.07461), cast as T5 does (Raffel et al. 2020, appendix D).

Files: the layout of GLUE's own zip archives under `glue/`; MRPC also as Microsoft ships it. Test
sets have no labels: their targets are `<unk>`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from prompt_tuning.tasks.datasets.labelled import Fields
from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import Reader, Table
from prompt_tuning.tasks.readers import Row as RawRow
from prompt_tuning.tasks.spec import UNLABELLED, Example, Row, TaskSpec, Unusable

DOWNLOAD = "download GLUE's archives (gluebenchmark.com/tasks) and unpack them into DATA_DIR/glue"


@dataclasses.dataclass(frozen=True)
class Similarity:
  """STS-B: a number between 0 and 5 becomes the nearest of 0.0, 0.2, ... 5.0, as text."""

  def __call__(self, row: Row) -> Example:
    inputs = f"stsb sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
    if row["label"] in (-1, "-1"):
      return {"inputs": inputs, "targets": UNLABELLED}
    try:
      value = np.float32(row["label"])  # as TFDS has it: halves are rounded in float32
    except ValueError:
      value = np.float32(-1)
    if not 0 <= value <= 5:
      raise Unusable(f"column 'score': {row['label']!r} is no number from 0 to 5")
    return {"inputs": inputs, "targets": f"{np.round(value * np.float32(5)) / 5:.1f}"}


@dataclasses.dataclass(frozen=True)
class Paraphrases:
  """MRPC in GLUE's files or Microsoft's, of whose training rows GLUE holds out `dev_ids.tsv`.

  Attributes:
    development: read the held-out rows of Microsoft's training file, instead of the others.
  """

  development: bool = False

  def __call__(self, path: pathlib.Path) -> Iterator[RawRow]:
    if "msr_paraphrase_train" in path.name:
      return self._microsoft(path)
    if path.name.startswith("dev_ids"):
      return iter(())
    return _PAIRS(path)

  def _microsoft(self, path: pathlib.Path) -> Iterator[RawRow]:
    ids_file = next((file for file in (path.with_name("dev_ids.tsv"),
                                       path.with_name("dev_ids.tsv.gz")) if file.is_file()), None)
    held_out = {(row["id1"], row["id2"]) for row in _IDS(ids_file)} if ids_file else set()
    for row in _PAIRS(path):
      if "unusable" in row or ((row["id1"], row["id2"]) in held_out) == self.development:
        yield row


_PAIRS = Table(columns={"sentence1": ("#1 String",), "sentence2": ("#2 String",),
                        "id1": ("#1 ID",), "id2": ("#2 ID",), "label": ("Quality",)})
_IDS = Table(names=("id1", "id2"), columns={"id1": ("id1",), "id2": ("id2",)})


def _row(name: str, folder: str, to_text, read: Reader | Mapping[str, Reader], *,
         labels: tuple[str, ...] | None, metrics: tuple[str, ...],
         files: Mapping[str, tuple[str, ...]], sizes: tuple[int, ...],
         their_splits: Mapping[str, str] | None = None, description: str = "") -> TaskSpec:
  source = Published(
    files={split: tuple("+".join(f"glue/{folder}/{part}" for part in name.split("+"))
                        for name in names) for split, names in files.items()},
    read=read, download=DOWNLOAD, tfds=f"glue/{name}:2.0.0", huggingface=f"nyu-mll/glue {name}",
    their_splits=their_splits or {})
  return TaskSpec(name=f"glue_{name}", source=source, to_text=to_text, labels=labels,
                  metrics=metrics, prefix=f"{getattr(to_text, 'prefix', name)} ",
                  sizes=dict(zip(files, sizes, strict=True)), description=description)


_FILES = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
_MNLI_SPLITS = {"validation": "validation_matched", "test": "test_matched"}
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_MRPC = ("not_equivalent", "equivalent")
_QQP = ("not_duplicate", "duplicate")


def _pair(first: str, second: str, **renamed: tuple[str, ...]) -> Table:
  return Table(columns={first: (first,), second: (second,), "label": ("label",), **renamed})


ROWS = (
  _row("cola", "CoLA", Fields("cola", ("sentence",), ("unacceptable", "acceptable")),
       Table(names=("source", "label", "mark", "sentence"),
             columns={"sentence": ("sentence",), "label": ("label",)}),
       labels=("unacceptable", "acceptable"), metrics=("matthews", "accuracy"),
       files=_FILES | {"train": ("train.tsv+val.tsv", "train.tsv")}, sizes=(8551, 1043, 1063),
       description="is a sentence acceptable English"),
  _row("sst2", "SST-2", Fields("sst2", ("sentence",), ("negative", "positive")),
       Table(columns={"sentence": ("sentence",), "label": ("label",)}),
       labels=("negative", "positive"), metrics=("accuracy",), files=_FILES,
       sizes=(67349, 872, 1821), description="sentiment of a phrase of a film review"),
  _row("mrpc", "MRPC", Fields("mrpc", ("sentence1", "sentence2"), _MRPC),
       {"train": Paraphrases(), "validation": Paraphrases(development=True),
        "test": Paraphrases()},
       labels=_MRPC, metrics=("f1_binary:equivalent", "accuracy"),
       files={"train": ("train.tsv", "msr_paraphrase_train.txt"),
              "validation": ("dev.tsv", "dev_ids.tsv+msr_paraphrase_train.txt"),
              "test": ("test.tsv", "msr_paraphrase_test.txt")},
       sizes=(3668, 408, 1725), description="are two sentences of the news paraphrases"),
  _row("qqp", "QQP", Fields("qqp", ("question1", "question2"), _QQP),
       _pair("question1", "question2", label=("is_duplicate",)), labels=_QQP,
       metrics=("f1_binary:duplicate", "accuracy"), files=_FILES, sizes=(363846, 40430, 390965),
       description="do two questions ask the same"),
  _row("stsb", "STS-B", Similarity(), _pair("sentence1", "sentence2", label=("score",)),
       labels=None, metrics=("pearson", "spearman"), files=_FILES, sizes=(5749, 1500, 1379),
       description="how similar two sentences are, 0.0 to 5.0"),
  _row("mnli", "MNLI", Fields("mnli", ("hypothesis", "premise"), _NLI),
       Table(columns={"premise": ("sentence1",), "hypothesis": ("sentence2",),
                      "label": ("gold_label",)}),
       labels=_NLI, metrics=("accuracy",),
       files={"train": ("train.tsv",), "validation": ("dev_matched.tsv",),
              "validation_mismatched": ("dev_mismatched.tsv",), "test": ("test_matched.tsv",),
              "test_mismatched": ("test_mismatched.tsv",)},
       their_splits=_MNLI_SPLITS, sizes=(392702, 9815, 9832, 9796, 9847),
       description="does one sentence follow from another; ten kinds of text"),
  _row("qnli", "QNLI", Fields("qnli", ("question", "sentence"), _ENTAILMENT),
       _pair("question", "sentence"), labels=_ENTAILMENT, metrics=("accuracy",), files=_FILES,
       sizes=(104743, 5463, 5463), description="does a sentence answer a question"),
  _row("rte", "RTE", Fields("rte", ("sentence1", "sentence2"), _ENTAILMENT),
       _pair("sentence1", "sentence2"), labels=_ENTAILMENT, metrics=("accuracy",), files=_FILES,
       sizes=(2490, 277, 3000), description="does one sentence follow from another"),
  _row("wnli", "WNLI", Fields("wnli", ("sentence1", "sentence2"), _ENTAILMENT[::-1]),
       _pair("sentence1", "sentence2"), labels=_ENTAILMENT[::-1], metrics=("accuracy",),
       files=_FILES, sizes=(635, 71, 146), description="does a resolved pronoun follow"),
  _row("ax", "diagnostic", Fields("mnli", ("hypothesis", "premise"), _NLI),
       Table(columns={"premise": ("sentence1", "Premise"), "label": ("Label",),
                      "hypothesis": ("sentence2", "Hypothesis")}),
       labels=_NLI, metrics=("matthews",),
       files={"test": ("diagnostic.tsv", "diagnostic-full.tsv")}, sizes=(1104,),
       description="GLUE's diagnostic set, cast as MNLI; evaluation only"),
)
