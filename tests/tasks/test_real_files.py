"""The published files themselves, where they lie beside the repository: rows, labels and quirks.

The counts are those that the data sets' own papers and pages state, and of `shared/data/README.md`.
"""

import collections
import json
import pathlib

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import lines, table
from prompt_tuning.tasks.spec import UNLABELLED

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def data_dir(monkeypatch, shared_data):
  monkeypatch.setenv("DATA_DIR", str(DATA))


def read(name, split):
  unusable = []
  examples = list(table.spec(name).examples(split, unusable))
  assert unusable == []
  return examples


LABELS = (
  ("glue_cola", "train", {"acceptable": 6023, "unacceptable": 2528}),
  ("glue_cola", "validation", {"acceptable": 721, "unacceptable": 322}),
  ("glue_sst2", "validation", {"positive": 444, "negative": 428}),
  ("glue_sst2", "test", {UNLABELLED: 1821}),
  ("glue_mrpc", "train", {"equivalent": 2753, "not_equivalent": 1323}),
  ("glue_mrpc", "test", {"equivalent": 1147, "not_equivalent": 578}),
  ("glue_qnli", "validation", {"entailment": 2702, "not_entailment": 2761}),
  ("glue_rte", "train", {"entailment": 1249, "not_entailment": 1241}),
  ("glue_rte", "validation", {"entailment": 146, "not_entailment": 131}),
  ("super_glue_cb", "train", {"contradiction": 119, "entailment": 115, "neutral": 16}),
  ("super_glue_cb", "test", {UNLABELLED: 250}),
  ("super_glue_copa", "train", {"choice1": 195, "choice2": 205}),
  ("super_glue_copa", "validation", {"choice1": 55, "choice2": 45}),
  ("super_glue_copa", "test", {UNLABELLED: 500}),
  ("super_glue_rte", "train", {"entailment": 1249, "not_entailment": 1241}),
  ("super_glue_wic", "train", {"True": 2714, "False": 2714}),
  ("super_glue_wic", "validation", {"True": 319, "False": 319}),
  ("ag_news", "test", dict.fromkeys(("World", "Sports", "Business", "Sci/Tech"), 1900)),
)


@pytest.mark.parametrize("name, split, counts", LABELS)
def test_labels(name, split, counts):
  assert collections.Counter(e["targets"] for e in read(name, split)) == counts


def test_glue_and_super_glue_have_the_same_pairs_of_rte():
  def pairs(name, first, second):
    # The two releases differ in quotation marks and spaces.
    return [tuple("".join(filter(str.isalnum, row[column])) for column in (first, second, "label"))
            for row in table.spec(name).source.rows("validation")]

  assert pairs("glue_rte", "sentence1", "sentence2") == pairs(
    "super_glue_rte", "premise", "hypothesis")


@pytest.mark.parametrize("folder", ("CB", "COPA", "RTE", "WiC"))
def test_few_rows(folder):
  name = f"fewglue_{folder.lower()}"
  labels = set(table.spec(name).labels)
  for split in ("train", "validation"):
    examples = read(name, split)
    assert len(examples) == 32 and {e["targets"] for e in examples} <= labels


def test_mrpc_starts_with_a_mark_and_has_stray_quotes():
  path = DATA / "glue/MRPC/msr_paraphrase_train.txt"
  raw = path.read_bytes()
  assert raw.startswith(b"\xef\xbb\xbf") and raw.count(b"\r\n") == 4077
  odd = [row for row in raw.decode("utf-8-sig").split("\r\n") if row.count('"') % 2]
  assert odd
  inputs = {example["inputs"] for example in read("glue_mrpc", "train")}
  for row in odd:
    *_, first, second = row.split("\t")
    assert f"mrpc sentence1: {first} sentence2: {second}" in inputs
  assert not any("\r" in text or "\ufeff" in text for text in inputs)


def test_mr_is_latin_1():
  raw = (DATA / "textcls/MR/rt-polarity.neg").read_bytes()
  with pytest.raises(UnicodeDecodeError):
    raw.decode("utf-8")
  examples = sum((read("mr", split) for split in ("train", "validation", "test")), [])
  assert collections.Counter(e["targets"] for e in examples) == {"positive": 5331, "negative": 5331}
  line = next(line for line in raw.split(b"\n") if any(byte > 127 for byte in line))
  assert f"mr sentence: {line.decode('latin-1').strip()}" in {e["inputs"] for e in examples}
  share = sum(e["targets"] == "positive" for e in examples[:1000]) / 1000
  assert 0.4 < share < 0.6  # the classes are mixed before the cut


def test_wic_has_an_idx_twice():
  ids = collections.Counter(row["idx"] for row in table.spec("super_glue_wic").source.rows("train"))
  assert sorted(ids.values())[-2:] == [1, 2]


def test_references_of_e2e_are_grouped():
  train, dev = read("e2e", "train"), read("e2e", "validation")
  assert len(train) == 42061 and len({e["inputs"] for e in train}) == 4862
  assert len(dev) == 547 and sum(len(e["references"]) for e in dev) == 4672
  test = read("e2e", "test")
  assert len(test) == 630 and sum(len(e["references"]) for e in test) == 4693


def test_references_of_dart():
  dev, test = read("dart", "validation"), read("dart", "test")
  assert (len(dev), sum(len(e["references"]) for e in dev)) == (1896, 4712)
  # The file has 5,191 references; one of them has no text.
  assert (len(test), sum(len(e["references"]) for e in test)) == (2344, 5190)
  assert all(e["targets"] == e["references"][0] for e in dev + test)


def test_answers_are_in_their_contexts():
  """No row is unusable: each answer was compared with its place in the context."""
  rows = list(table.spec("squadshifts_new_wiki").source.rows("validation"))
  assert (len(rows), sum(len(row["answers"]["text"]) for row in rows)) == (7938, 22794)
  assert not any("unusable" in row for row in rows)
  examples = read("xquad_en", "validation")
  assert len(examples) == 1190
  for example in examples:
    context = example["inputs"].partition(" context: ")[2]
    assert all(answer.strip() in context for answer in example["references"])


def test_the_sample_of_mrqa(tmp_path, monkeypatch):
  folder = tmp_path / "qa/mrqa/dev"
  folder.mkdir(parents=True)
  (folder / "NewsQA.jsonl").symlink_to(DATA / "qa/mrqa_NewsQA_sample.jsonl")
  monkeypatch.setenv("DATA_DIR", str(tmp_path))
  examples = read("mrqa_newsqa", "validation")
  assert len(examples) == 17
  assert examples[0]["inputs"].startswith("question: What will be nominated ? context: ( CNN ) - ")
  assert examples[0]["targets"] == "three different videos"


@pytest.mark.parametrize("name, split, rows, file", [
  ("xsum", "test", 1000, "summarization/xsum/test_1000.jsonl.gz"),
  ("dialogsum", "validation", 500, "summarization/dialogsum/dialogsum.dev.jsonl")])
def test_summaries(name, split, rows, file):
  examples = read(name, split)
  first = json.loads(next(line for _, line in lines.lines(DATA / file)))
  assert len(examples) == rows
  assert examples[0]["inputs"] == "summarize: " + first[
    "document" if name == "xsum" else "dialogue"]
  assert examples[0]["targets"] == first["summary"]


def test_highlights_span_lines():
  examples = read("cnn_dailymail", "test")
  assert len(examples) == 200 and all("\n" in e["targets"] for e in examples[:5])


def test_a_split_that_is_not_there():
  with pytest.raises(UserError, match="the data of split 'train' is not in DATA_DIR\n(.*\n)*"
                                      ".*glue/QNLI/train.tsv"):
    read("glue_qnli", "train")
