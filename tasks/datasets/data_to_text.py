"""E2E (Novikova et al. 2017), E2E cleaned (Dusek et al. 2019), WebNLG 2017, DART v1.1.1.

A row is a meaning with all its `references`: training has an example for each, evaluation one a
meaning, which the metrics judge against all. Triples are written `subject : relation : object`,
joined by ` | `, as Li and Liang (2021, arXiv 2101.00190) do, and are otherwise as published.
"""

import dataclasses
import pathlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.lines import opened
from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import Row as RawRow
from prompt_tuning.tasks.readers import Table, json_file
from prompt_tuning.tasks.slices import Grouped
from prompt_tuning.tasks.spec import Example, Row, TaskSpec, Unusable

# The challenge's own BLEU is without case (`overlap_metrics.bleu_uncased`).
METRICS = ("bleu", "bleu_uncased", "nist", "meteor", "rouge", "chrf", "ter")
# WebNLG 2017 trains on ten categories; the other five are in its test set alone.
SEEN = frozenset(("Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument",
                  "SportsTeam", "University", "WrittenWork"))


@dataclasses.dataclass(frozen=True)
class Verbalise:
  """`prefix what: meaning` -> the first reference; all in `references`."""

  prefix: str
  what: str

  def __call__(self, row: Row) -> Example:
    references = list(row["references"])
    if not references:
      raise Unusable("there is no reference text")
    meaning = row["mr"] if self.what == "mr" else " | ".join(map(" : ".join, row["triples"]))
    return {"inputs": f"{self.prefix} {self.what}: {meaning}", "targets": references[0],
            "references": references}


def dart_file(path: pathlib.Path) -> Iterator[RawRow]:
  """DART's JSON, or its test set's XML, which is WebNLG's."""
  if ".xml" in path.suffixes:
    yield from WebNLG()(path)
    return
  for number, entry in enumerate(json_file(path), start=1):
    texts = [annotation["text"].strip() for annotation in entry["annotations"]]
    yield {"triples": [tuple(triple) for triple in entry["tripleset"]],
           "references": [text for text in texts if text], "where": f"{path}, entry {number}"}


@dataclasses.dataclass(frozen=True)
class WebNLG:
  """WebNLG's XML: a row an entry.

  Attributes:
    seen: only the categories that training has (True), only the others (False), or all (None).
  """

  seen: bool | None = None

  def __call__(self, path: pathlib.Path) -> Iterator[RawRow]:
    try:
      with opened(path) as file:
        entries = list(ElementTree.parse(file).iter("entry"))
    except ElementTree.ParseError as error:
      line, column = error.position
      raise UserError(f"{path}, line {line}, column {column}: broken XML", found=str(error),
                      wanted="<benchmark><entries><entry>...",
                      fix="fetch the file again") from error
    for entry in entries:
      if self.seen is not None and (entry.get("category") in SEEN) != self.seen:
        continue
      triples = entry.findall("modifiedtripleset/mtriple")
      parts = [tuple(part.strip() for part in (triple.text or "").split(" | "))
               for triple in triples]
      wrong = next((part for part in parts if len(part) != 3), None)
      yield {"category": entry.get("category"), "triples": parts,
             "references": [lex.text.strip() for lex in entry.findall("lex")
                            if lex.text and lex.text.strip()],
             "where": f"{path}, entry {entry.get('eid')}",
             **({"unusable": f"column 'mtriple': {' | '.join(wrong)!r} is no triple"}
                if wrong else {})}


def _spec(name: str, source, to_text, sizes: tuple[int, ...], description: str) -> TaskSpec:
  return TaskSpec(name=name, source=source, to_text=to_text, labels=None, metrics=METRICS,
                  expand=True, prefix=f"{name.split('_')[0]} ", description=description,
                  sizes=dict(zip(source.splits, sizes, strict=True)))


_E2E = "table2text/e2e/"
_CLEANED = "table2text/e2e_cleaned/"
_WEBNLG = "table2text/webnlg/"
_WEBNLG_TEST = (f"{_WEBNLG}test/testdata_with_lex.xml", f"{_WEBNLG}testdata_with_lex.xml")
_DART = "table2text/dart/dart-v1.1.1-full-"
_READ_E2E = Table(columns={"mr": ("mr", "MR"), "ref": ("ref",)}, quoted=True)

ROWS = (
  _spec("e2e", Grouped(Published(
    files={"train": (f"{_E2E}trainset.csv",), "validation": (f"{_E2E}devset.csv",),
           "test": (f"{_E2E}testset_w_refs.csv",)},
    read=_READ_E2E,
    download="get e2e-dataset.zip (github.com/tuetschek/e2e-dataset) into DATA_DIR/table2text/e2e"),
    "mr", "ref"), Verbalise("e2e", "mr"), (4862, 547, 630), "restaurants described in a sentence"),
  _spec("e2e_cleaned", Grouped(Published(
    files={"train": (f"{_CLEANED}train-fixed.no-ol.csv", f"{_CLEANED}train-fixed.csv"),
           "validation": (f"{_CLEANED}devel-fixed.no-ol.csv", f"{_CLEANED}devel-fixed.csv"),
           "test": (f"{_CLEANED}test-fixed.csv",)},
    read=_READ_E2E,
    download="get cleaned-data (github.com/tuetschek/e2e-cleaning) into DATA_DIR/" + _CLEANED),
    "mr", "ref"), Verbalise("e2e", "mr"), (8362, 1132, 1358), "E2E with its meanings corrected"),
  _spec("webnlg", Published(
    files={"train": (f"{_WEBNLG}train/*/*.xml", f"{_WEBNLG}train.xml"),
           "validation": (f"{_WEBNLG}dev/*/*.xml", f"{_WEBNLG}dev.xml"),
           "test": _WEBNLG_TEST, "test_seen": _WEBNLG_TEST, "test_unseen": _WEBNLG_TEST},
    read={"train": WebNLG(), "validation": WebNLG(), "test": WebNLG(), "test_seen": WebNLG(True),
          "test_unseen": WebNLG(False)},
    download="get webnlg_challenge_2017 (gitlab.com/shimorina/webnlg-dataset) into DATA_DIR/"
             + _WEBNLG),
    Verbalise("webnlg", "triples"), (6940, 872, 1862, 971, 891), "facts of DBpedia in sentences"),
  _spec("dart", Published(
    files={split: tuple(f"{_DART}{theirs}{ending}" for ending in (
      ".json", ".xml", ".no-webnlg.json", ".no-webnlg.xml"))
      for split, theirs in (("train", "train"), ("validation", "dev"), ("test", "test"))},
    read=dart_file,
    download="get data/v1.1.1 (github.com/Yale-LILY/dart) into DATA_DIR/table2text/dart"),
    Verbalise("dart", "triples"), (30526, 2768, 5097), "facts of tables in sentences"),
)
