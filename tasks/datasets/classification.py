"""AG News (Zhang et al. 2015) and MR (Pang and Lee 2005), cast as T5 casts single sentences.

AG News numbers its classes from 1, and comes with or without a header. MR is two files in latin-1,
one a class, without splits: its rows are put into a fixed random order and cut 80, 10, 10 in 100.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from prompt_tuning.tasks.datasets.labelled import Fields
from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import Row, Sentences, Table
from prompt_tuning.tasks.slices import Cut, Reordered
from prompt_tuning.tasks.spec import TaskSpec

_NEWS = ("World", "Sports", "Business", "Sci/Tech")
_SENTIMENT = ("negative", "positive")


@dataclasses.dataclass(frozen=True)
class FromOne:
  """A table whose classes are numbered from 1."""

  table: Table

  def __call__(self, path: pathlib.Path) -> Iterator[Row]:
    for row in self.table(path):
      label = row.get("label", "")
      yield {**row, "label": str(int(label) - 1)} if str(label).isdigit() else row


_AG_NEWS = Published(
  files={"train": ("textcls/AGNews/train.csv", "textcls/AGNews/train_subset.csv"),
         "test": ("textcls/AGNews/test.csv",)},
  read=FromOne(Table(names=("label", "title", "description"), quoted=True, columns={
    "label": ("Class Index", "label"), "title": ("Title", "title"),
    "description": ("Description", "description")})),
  download="get AG News as CSV (class, title, description) into DATA_DIR/textcls/AGNews",
  tfds="ag_news_subset:1.0.0")
_MR = Published(
  files={"all": ("textcls/MR/rt-polarity.pos+textcls/MR/rt-polarity.neg",)},
  read=Sentences(labels={".pos": "positive", ".neg": "negative"}, encoding="latin-1"),
  download="get rt-polaritydata (cs.cornell.edu/people/pabo/movie-review-data) into "
           "DATA_DIR/textcls/MR")

ROWS = (
  TaskSpec(name="ag_news", to_text=Fields("ag_news", ("title", "description"), _NEWS),
           source=Cut(_AG_NEWS, {"train": "train[:95%]", "validation": "train[95%:]",
                                 "test": "test"}),
           labels=_NEWS, metrics=("accuracy", "macro_f1"), prefix="ag_news ",
           sizes={"train": 114000, "validation": 6000, "test": 7600},
           description="topic of the news; validation is the end of the training set"),
  TaskSpec(name="mr", to_text=Fields("mr", ("sentence",), _SENTIMENT),
           source=Cut(Reordered(_MR), {"train": "all[:80%]", "validation": "all[80%:90%]",
                                       "test": "all[90%:]"}),
           labels=_SENTIMENT, metrics=("accuracy",), prefix="mr ",
           sizes={"train": 8530, "validation": 1066, "test": 1066},
           description="sentiment of film reviews; there is no official split"),
)
