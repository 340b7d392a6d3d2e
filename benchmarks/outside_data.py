"""The published data sets of docs/results.md as TSV files, cut once and for all.

  python benchmarks/outside_data.py DATA_DIR OUT_DIR

DATA_DIR holds the files as they are published, each as it is or with `.gz` behind its name:

  glue/SST-2/train.tsv, dev.tsv; glue/RTE/train.tsv, dev.tsv
  textcls/AGNews/train_subset.csv (or train.csv), test.csv   columns Class Index, Title, Description
  table2text/e2e/e2e-dataset.zip                             the E2E challenge's

Every data set gets `<name>_train.tsv`, `<name>_valid.tsv` and `<name>_test.tsv`. Choices (the best
step, rates) are made on `valid`, which comes from the published training rows; `test` holds
published rows that nothing else sees. Draws are by a fixed seed.
"""

import argparse
import csv
import gzip
import io
import json
import pathlib
import random
import zipfile
from collections.abc import Mapping
from typing import TextIO

Rows = list[dict[str, str]]

SENTIMENTS = {"0": "terrible", "1": "wonderful"}
# Words that tell the classes apart about as well as any do before training: label_words.py.
CHOSEN_WORDS = {"0": "enemy", "1": "praise"}
TOPICS = {"1": "world", "2": "sports", "3": "business", "4": "science"}
MOST_TEST_ROWS = 2000


def sst2(data: pathlib.Path) -> dict[str, Rows]:
  """1,000 of the training rows validate; GLUE's development rows test."""
  def read(name: str) -> Rows:
    with _open(data / "glue" / "SST-2" / name) as file:
      return [{"sentence": row["sentence"].strip(), "chosen": CHOSEN_WORDS[row["label"]],
               "label": SENTIMENTS[row["label"]]}
              for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]

  train = _shuffled(read("train.tsv"))
  return {"train": train[1000:], "valid": train[:1000], "test": read("dev.tsv")}


def agnews(data: pathlib.Path) -> dict[str, Rows]:
  """500 of the training rows validate (the subset has 6,001, the published file 120,000); 2,000 of
  the official 7,600 test rows test."""
  def read(*names: str) -> Rows:
    with _open(*(data / "textcls" / "AGNews" / name for name in names)) as file:
      return _shuffled([{"text": _one_line(f"{row['Title']} {row['Description']}"),
                         "label": TOPICS[row["Class Index"]]} for row in csv.DictReader(file)])

  train = read("train_subset.csv", "train.csv")
  return {"train": train[500:], "valid": train[:500], "test": read("test.csv")[:MOST_TEST_ROWS]}


def rte(data: pathlib.Path) -> dict[str, Rows]:
  """300 of the training rows validate; GLUE's development rows test."""
  def read(name: str) -> Rows:
    with _open(data / "glue" / "RTE" / name) as file:
      return [{"premise": row["sentence1"], "hypothesis": row["sentence2"],
               "label": "yes" if row["label"] == "entailment" else "no"}
              for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]

  train = _shuffled(read("train.tsv"))
  return {"train": train[300:], "valid": train[:300], "test": read("dev.tsv")}


def e2e(data: pathlib.Path) -> dict[str, Rows]:
  """400 references of the development set validate; each test input once. The references of the
  test inputs are in `e2e_references.json`; `e2e_train_50.tsv` and `e2e_train_500.tsv` are fewer
  training rows."""
  def read(name: str) -> Rows:
    archive = zipfile.ZipFile(data / "table2text" / "e2e" / "e2e-dataset.zip")
    member = next(n for n in archive.namelist() if n.endswith("/" + name) or n == name)
    text = io.TextIOWrapper(archive.open(member), encoding="utf-8", newline="")
    return [{"meaning": _one_line(row["mr"]), "text": _one_line(row["ref"])}
            for row in csv.DictReader(text)]

  test = {row["meaning"]: row for row in reversed(read("testset_w_refs.csv"))}
  train = read("trainset.csv")
  fewer = {f"train_{rows}": _shuffled(train)[:rows] for rows in (50, 500)}
  return {"train": train, **fewer, "valid": _shuffled(read("devset.csv"))[:400],
          "test": list(reversed(test.values())), "references": read("testset_w_refs.csv")}


DATASETS = {"sst2": sst2, "agnews": agnews, "rte": rte, "e2e": e2e}


def write(data: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the files of all data sets."""
  out.mkdir(parents=True, exist_ok=True)
  for name, read in DATASETS.items():
    splits = read(data)
    references = splits.pop("references", None)
    if references is not None:
      grouped: dict[str, list[str]] = {}
      for row in references:
        grouped.setdefault(row["meaning"], []).append(row["text"])
      (out / f"{name}_references.json").write_text(json.dumps(grouped, ensure_ascii=False))
    for split, rows in splits.items():
      _write(out / f"{name}_{split}.tsv", rows)
      print(f"{name:8} {split:9} {len(rows):6} rows")


def _open(*paths: pathlib.Path) -> TextIO:
  """The first of the files that is there, as it is or compressed."""
  for path in paths:
    if path.is_file():
      return open(path, encoding="utf-8", newline="")
    if (packed := path.with_name(path.name + ".gz")).is_file():
      return gzip.open(packed, "rt", encoding="utf-8", newline="")
  raise SystemExit(f"no {' or '.join(map(str, paths))}, nor with .gz behind it: "
                   "DATA_DIR holds what `--help` lists")


def _write(path: pathlib.Path, rows: list[Mapping[str, str]]) -> None:
  lines = ["\t".join(rows[0])]
  for row in rows:
    lines.append("\t".join(_one_line(value) for value in row.values()))
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _one_line(text: str) -> str:
  return " ".join(text.split())


def _shuffled(rows: Rows) -> Rows:
  return random.Random(0).sample(rows, len(rows))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("data", type=pathlib.Path)
  parser.add_argument("out", type=pathlib.Path)
  options = parser.parse_args()
  write(options.data, options.out)


if __name__ == "__main__":
  main()
