"""AG News as continuations, for the study of controlled generation (docs/control.md).

  python benchmarks/outside_data.py DATA_DIR runs/outside
  python benchmarks/control_data.py runs/outside runs/control

An input is the first four words of a news item, the target the next sixteen. `all`, `sports` and
`other` are the training rows of every topic, of the attribute, and of the three other topics; each
has `_train` and `_valid`. `starts.txt` holds the four words of test rows that are not sports, which
no prompt is trained on.
"""

import argparse
import csv
import pathlib

ATTRIBUTE = "sports"
INPUT_WORDS, TARGET_WORDS = 4, 16
STARTS = 100


def read(path: pathlib.Path) -> list[tuple[str, str, str]]:
  """(first words, next words, topic) of the rows that are long enough."""
  with open(path, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  cut = [(row["text"].split(), row["label"]) for row in rows]
  return [(" ".join(words[:INPUT_WORDS]),
           " ".join(words[INPUT_WORDS:INPUT_WORDS + TARGET_WORDS]), label)
          for words, label in cut if len(words) >= INPUT_WORDS + TARGET_WORDS]


def write(source: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the files of all three sets, and the starts."""
  out.mkdir(parents=True, exist_ok=True)
  sets = {"all": lambda label: True, ATTRIBUTE: lambda label: label == ATTRIBUTE,
          "other": lambda label: label != ATTRIBUTE}
  for split in ("train", "valid"):
    rows = read(source / f"agnews_{split}.tsv")
    for name, keep in sets.items():
      lines = ["start\trest\ttopic", *("\t".join(row) for row in rows if keep(row[2]))]
      (out / f"{name}_{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
      print(f"{name:8} {split:6} {len(lines) - 1:6} rows")
  test = [row[0] for row in read(source / "agnews_test.tsv") if row[2] != ATTRIBUTE]
  (out / "starts.txt").write_text("\n".join(test[:STARTS]) + "\n", encoding="utf-8")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("source", type=pathlib.Path, help="what outside_data.py wrote")
  parser.add_argument("out", type=pathlib.Path)
  options = parser.parse_args()
  write(options.source, options.out)


if __name__ == "__main__":
  main()
