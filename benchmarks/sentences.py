"""Sentences for `prompt-tuning recover`: of the held-out corpus, and of unseen domains.

  python benchmarks/sentences.py DATA_DIR OUT_DIR

Writes `textbooks.txt` and `novels.txt` (the corpus's validation parts), `reviews.txt` (SST-2's
development rows), `news.txt` (descriptions of AG News's test rows) and `restaurants.txt` (E2E's
test references): sentences of 6 to 20 words, in an order drawn with a fixed seed.
"""

import argparse
import csv
import gzip
import pathlib
import random
import re
import sys
from collections.abc import Iterable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import outside_data  # noqa: E402  (beside this file)

FEWEST, MOST, KEPT = 6, 20, 500


def sentences(texts: Iterable[str]) -> list[str]:
  """Sentences of the wanted length, once each, shuffled."""
  found = [s.strip() for text in texts for s in re.split(r"(?<=[.!?]) (?=[A-Z\"])", text)]
  kept = [s for s in dict.fromkeys(found) if FEWEST <= len(s.split()) <= MOST]
  return random.Random(0).sample(kept, len(kept))[:KEPT]


def corpus(path: pathlib.Path) -> list[str]:
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return [line.strip() for line in file]


def domains(data: pathlib.Path) -> dict[str, Iterable[str]]:
  with gzip.open(data / "textcls" / "AGNews" / "test.csv.gz", "rt", encoding="utf-8",
                 newline="") as file:
    news = [row["Description"] for row in csv.DictReader(file)]
  return {"textbooks": corpus(data / "corpus" / "openstax_ccby_valid.txt.gz"),
          "novels": corpus(data / "corpus" / "english_novels_pd_valid.txt.gz"),
          "reviews": [row["sentence"] for row in outside_data.sst2(data)["test"]],
          "news": news,
          "restaurants": [row["text"] for row in outside_data.e2e(data)["references"]]}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("data", type=pathlib.Path)
  parser.add_argument("out", type=pathlib.Path)
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)
  for name, texts in domains(options.data).items():
    lines = sentences(texts)
    (options.out / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name:12} {len(lines):5} sentences")


if __name__ == "__main__":
  main()
