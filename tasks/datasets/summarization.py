"""XSum, CNN/DailyMail, DialogSum, cast as T5 casts CNN/DailyMail: `summarize: text` -> summary."""

import dataclasses

from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import JsonLines, Reader, Table
from prompt_tuning.tasks.spec import Example, Row, TaskSpec, Unusable

METRICS = ("rouge",)


@dataclasses.dataclass(frozen=True)
class Summarize:
  """`summarize: text` -> the summary.

  Attributes:
    text, summary: columns. Where a row has `<summary>1`, `<summary>2` ... (DialogSum's test set has
      three), all are references.
  """

  text: str
  summary: str

  def __call__(self, row: Row) -> Example:
    numbered = (f"{self.summary}{number}" for number in range(1, 10))
    references = [row[name] for name in numbered if name in row] or [row[self.summary]]
    if not row[self.text].strip() or not references[0].strip():
      raise Unusable(f"column {self.text!r} or {self.summary!r} is empty")
    return {"inputs": f"summarize: {row[self.text]}", "targets": references[0],
            "references": references}


def _spec(name: str, to_text: Summarize, read: Reader, files: dict[str, tuple[str, ...]],
          sizes: tuple[int, ...], download: str, description: str, **elsewhere: str) -> TaskSpec:
  source = Published(
    files={split: tuple(f"summarization/{name}/{file}" for file in names)
           for split, names in files.items()},
    read=read, download=f"{download} into DATA_DIR/summarization/{name}", **elsewhere)
  return TaskSpec(name=name, source=source, to_text=to_text, labels=None, metrics=METRICS,
                  prefix="summarize: ", sizes=dict(zip(files, sizes, strict=True)),
                  description=description)


_LINES = JsonLines(has_labels=False)

ROWS = (
  _spec("xsum", Summarize("document", "summary"), _LINES,
        {"train": ("train.jsonl",), "validation": ("validation.jsonl",),
         "test": ("test.jsonl", "test_1000.jsonl")},
        (204045, 11332, 11334), "get XSum as JSON lines (document, summary, id)",
        "BBC news to one sentence", tfds="xsum:1.1.0", huggingface="EdinburghNLP/xsum"),
  _spec("cnn_dailymail", Summarize("article", "highlights"),
        Table(columns={"article": ("article", "text"), "highlights": ("highlights", "y")},
              quoted=True),
        {"train": ("train.csv",), "validation": ("validation.csv",),
         "test": ("test.csv", "sample.csv")},
        (287113, 13368, 11490), "get CNN/DailyMail as CSV (id, article, highlights)",
        "news to its highlights", tfds="cnn_dailymail:3.1.0",
        huggingface="abisee/cnn_dailymail 3.0.0"),
  _spec("dialogsum", Summarize("dialogue", "summary"), _LINES,
        {"train": ("dialogsum.train.jsonl",), "validation": ("dialogsum.dev.jsonl",),
         "test": ("dialogsum.test.jsonl",)},
        (12460, 500, 500), "get DialogSum_Data (github.com/cylnlp/dialogsum)",
        "spoken dialogues to a summary"),
)
