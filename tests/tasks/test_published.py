"""Published files with the quirks of the real ones, made small; and what bad files are told."""

import gzip
import json
import sys
import types
import zipfile

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import table
from prompt_tuning.tasks.variants import Variant


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("DATA_DIR", str(tmp_path))

  def write(name, data):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, list):
      data = "".join(json.dumps(row) + "\n" for row in data)
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path

  return write


def read(name, split, unusable=None):
  return list(table.spec(name).examples(split, unusable))


def texts(name, split):
  return [(example["inputs"], example["targets"]) for example in read(name, split)]


MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n" \
  "1\t11\t12\tHe said \"no.\tHe \"\"refused.\r\n0\t13\t14\tA\tB\r\n1\t15\t16\tC\tC \r\n"


def test_marks_at_the_start_line_ends_and_quotes_of_mrpc(folder):
  folder("glue/MRPC/msr_paraphrase_train.txt", MRPC)
  assert texts("glue_mrpc", "train") == [
    ("mrpc sentence1: He said \"no. sentence2: He \"\"refused.", "equivalent"),
    ("mrpc sentence1: A sentence2: B", "not_equivalent"),
    ("mrpc sentence1: C sentence2: C ", "equivalent")]
  with pytest.raises(UserError, match="the data of split 'validation' is not in DATA_DIR\n(.*\n)*"
                                      ".*dev_ids.tsv with .*msr_paraphrase_train.txt"):
    read("glue_mrpc", "validation")
  folder("glue/MRPC/dev_ids.tsv", "13\t14\n")
  assert [targets for _, targets in texts("glue_mrpc", "validation")] == ["not_equivalent"]
  assert [targets for _, targets in texts("glue_mrpc", "train")] == ["equivalent"] * 2


def test_cola_has_no_header_and_its_test_set_has_one(folder):
  folder("glue/CoLA/train.tsv", "gj04\t1\t\tOne \"more.\ngj04\t0\t*\tMore one.\n")
  folder("glue/CoLA/val.tsv", "gj04\t1\t\tThe last.\n")
  folder("glue/CoLA/test.tsv", "index\tsentence\n0\tBill fell.\n")
  assert texts("glue_cola", "train") == [
    ("cola sentence: One \"more.", "acceptable"), ("cola sentence: More one.", "unacceptable"),
    ("cola sentence: The last.", "acceptable")]
  assert texts("glue_cola", "test") == [("cola sentence: Bill fell.", "<unk>")]


def test_latin_1_and_a_label_in_the_name(folder):
  rows = [f"caf\xe9 {i} .\n".encode("latin-1") for i in range(10)]
  folder("textcls/MR/rt-polarity.pos", b"".join(rows))
  folder("textcls/MR/rt-polarity.neg.gz", b"".join(rows))
  found = {split: texts("mr", split) for split in ("train", "validation", "test")}
  assert [len(found[split]) for split in found] == [16, 2, 2]
  assert sorted(sum(found.values(), [])) == sorted(
    (f"mr sentence: caf\xe9 {i} .", label) for i in range(10) for label in ("positive", "negative"))
  assert {label for _, label in found["train"][:8]} == {"positive", "negative"}


def test_ag_news_with_and_without_a_header(folder):
  rows = '"3","A, ""b""","c\nd"\n"1","E","f"\n'
  folder("textcls/AGNews/test.csv", rows)
  without = texts("ag_news", "test")
  folder("textcls/AGNews/test.csv", "Class Index,Title,Description\n" + rows)
  assert texts("ag_news", "test") == without == [
    ("ag_news title: A, \"b\" description: c\nd", "Business"),
    ("ag_news title: E description: f", "World")]


def test_super_glue_lines(folder):
  """Test rows lack a label; an idx may occur twice; true and false are labels."""
  row = {"word": "class", "sentence1": "A.", "sentence2": "B.", "idx": 7, "version": 1.1}
  folder("superglue/WiC/train.jsonl.gz", [row | {"label": True}, row | {"label": False}])
  folder("superglue/WiC/test.jsonl", [row])
  inputs = "wic sentence1: A. sentence2: B. word: class"
  assert texts("super_glue_wic", "train") == [(inputs, "True"), (inputs, "False")]
  assert texts("super_glue_wic", "test") == [(inputs, "<unk>")]
  folder("superglue/AX-b/AX-b.jsonl", [{"sentence1": "P", "sentence2": "H", "label": "entailment"}])
  assert texts("super_glue_axb", "test") == [("rte hypothesis: H premise: P", "entailment")]


def test_multirc_and_record_are_nested(folder):
  question = {"question": "Who?", "idx": 1, "answers": [
    {"text": "I", "label": 1, "idx": 0}, {"text": "You", "label": 0, "idx": 1}]}
  folder("superglue/MultiRC/val.jsonl", [
    {"idx": 3, "passage": {"text": "<b>Sent 1: </b>It is I.<br>", "questions": [question]}}])
  examples = read("super_glue_multirc", "validation")
  assert [(e["inputs"], e["targets"], e["group"]) for e in examples] == [
    ("multirc question: Who? answer: I paragraph: Sent 1: It is I. ", "True", "3-1"),
    ("multirc question: Who? answer: You paragraph: Sent 1: It is I. ", "False", "3-1")]
  entities = [{"start": 0, "end": 1}, {"start": 6, "end": 8}, {"start": 12, "end": 13}]
  answers = [{"start": 0, "end": 1, "text": "Al"}, {"start": 12, "end": 13, "text": "Al"}]
  folder("superglue/ReCoRD/val.jsonl", [
    {"idx": 4, "passage": {"text": "Al or Bea . Al", "entities": entities},
     "qas": [{"query": "@placeholder is", "idx": 9, "answers": answers}]}])
  only, = read("super_glue_record", "validation")
  assert only == {"inputs": "record query: @placeholder is entities: Al, Bea passage: "
                            "Al or Bea . Al", "targets": "Al", "references": ["Al"], "group": "4-9"}


def test_spans_of_wsc_are_corrected(folder):
  def row(text, span1, span2, index, label=True):
    return {"text": text, "label": label, "idx": 0, "target": {
      "span1_text": span1, "span1_index": 0, "span2_text": span2, "span2_index": index}}

  folder("superglue/WSC/train.jsonl", [
    row("The dog ran because it ran .", "the dog.", "it", 4),  # case and final stop differ
    row("The dog ran because it ran .", "dog", "it", 4, False)])
  assert texts("super_glue_wsc", "train") == [("wsc: The dog ran because *it* ran .", "The dog")]
  folder("superglue/WSC/val.jsonl", [row("The dog ran because it ran .", "dog", "it", 3)] + [
    row("A b c", "A", "b", 1)] * 200)
  unusable = []
  assert len(read("super_glue_wsc", "validation", unusable)) == 200
  assert len(unusable) == 1 and "val.jsonl, line 1: column 'span2_index': word 3 is 'because'" in (
    unusable[0])


def squad(*questions):
  return json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": [
    {"context": "Al saw Bo.", "qas": [{"id": f"q{i}", "question": q, "answers": [
      {"text": text, "answer_start": start} for text, start in answers]}
      for i, (q, answers) in enumerate(questions)]}]}]})


def test_several_answers_and_answers_that_are_not_there(folder):
  folder("qa/dev-v1.1.json", squad(("Who?", [("Bo", 7), ("Al saw Bo", 0), ("Bo", 7)])))
  only, = read("squad", "validation")
  assert only == {"inputs": "question: Who ? context: Al saw Bo . ", "targets": "Bo",
                  "references": ["Bo", "Al saw Bo", "Bo"]}
  folder("qa/dev-v1.1.json", squad(("Who?", [("Bo", 7)]), ("Who?", [("Bo", 3)]), ("Why?", [])))
  unusable = []
  with pytest.raises(UserError, match="squad: too many rows of validation cannot be used\n.*2 of 3"
                     ) as error:
    read("squad", "validation", unusable)
  assert "dev-v1.1.json, 'T' paragraph 1, question q1: column 'answers': 'Bo' at 3 is not" in str(
    error.value)
  assert "question q2: column 'answers': the question has none" in unusable[1]


def test_mrqa_with_its_header(folder):
  qas = [{"qid": "a", "question": "Who?", "answers": ["Al", "bo"], "detected_answers": [
    {"text": "Al", "char_spans": [[0, 1]]}, {"text": "B o", "char_spans": [[7, 8]]}]}]
  rows = [{"context": "Al saw Bo", "qas": qas}]
  expected = [("question: Who ? context: Al saw Bo", "Al")]
  for header in ([{"header": {"dataset": "NewsQA", "split": "dev"}}], []):
    folder("qa/mrqa/dev/NewsQA.jsonl.gz", header + rows)
    assert texts("mrqa_newsqa", "validation") == expected
  qas[0]["detected_answers"][0]["char_spans"] = [[1, 2]]
  folder("qa/mrqa/dev/NewsQA.jsonl.gz", rows)
  with pytest.raises(UserError, match="line 1, question a: column 'answers': 'Al' at 1 is not in"):
    read("mrqa_newsqa", "validation")


def test_references_are_grouped_in_a_zip_archive(folder, tmp_path):
  (tmp_path / "table2text/e2e").mkdir(parents=True)
  with zipfile.ZipFile(tmp_path / "table2text/e2e/e2e-dataset.zip", "w") as archive:
    archive.writestr("e2e-dataset/trainset.csv",
                     "mr,ref\n\"name[A], food[B]\",\"One, two.\"\nname[C],\"C \"\"x\"\".\"\n"
                     "\"name[A], food[B]\",\"Three\"\"\"\n")
    archive.writestr("e2e-dataset/testset.csv", "MR\nname[C]\n")
  assert texts("e2e", "train") == [
    ("e2e mr: name[A], food[B]", "One, two."), ("e2e mr: name[A], food[B]", "Three\""),
    ("e2e mr: name[C]", "C \"x\".")]
  before = table.spec("e2e").source.fingerprint()
  with zipfile.ZipFile(tmp_path / "table2text/e2e/e2e-dataset.zip", "a") as archive:
    archive.writestr("e2e-dataset/devset.csv", "mr,ref\nname[D],D.\n")
  assert table.spec("e2e").source.fingerprint() != before
  with pytest.raises(UserError, match="testset_w_refs.csv"):
    read("e2e", "test")


XML = "<benchmark><entries>{}</entries></benchmark>"
ENTRY = "<entry category='{}' eid='{}'><originaltripleset><otriple>x | y | z</otriple>" \
  "</originaltripleset><modifiedtripleset><mtriple>A_b | c | \"d\"</mtriple>" \
  "<mtriple>A_b | e | f</mtriple></modifiedtripleset><lex lid='1'>{}</lex><lex> </lex>" \
  "<lex>Two &amp; more.</lex></entry>"


def test_webnlg_and_dart(folder):
  folder("table2text/webnlg/train/1triples/a.xml", XML.format(ENTRY.format("Food", 1, "One.")))
  folder("table2text/webnlg/train/2triples/b.xml", XML.format(ENTRY.format("City", 2, "Uno.")))
  inputs = "webnlg triples: A_b : c : \"d\" | A_b : e : f"
  assert texts("webnlg", "train") == [(inputs, "One."), (inputs, "Two & more."), (inputs, "Uno."),
                                      (inputs, "Two & more.")]
  folder("table2text/webnlg/test/testdata_with_lex.xml", XML.format(
    ENTRY.format("Food", 1, "Seen.") + ENTRY.format("Artist", 2, "Unseen.")))
  assert [[t for _, t in texts("webnlg", s)] for s in ("test", "test_seen", "test_unseen")] == [
    ["Seen.", "Unseen."], ["Seen."], ["Unseen."]]
  folder("table2text/dart/dart-v1.1.1-full-dev.json", json.dumps([
    {"tripleset": [["A", "B", "C"]],
     "annotations": [{"text": "x."}, {"text": ""}, {"text": "y"}]}]))
  only, = read("dart", "validation")
  assert only == {"inputs": "dart triples: A : B : C", "targets": "x.", "references": ["x.", "y"]}
  folder("table2text/dart/dart-v1.1.1-full-test.xml.gz", XML.format(ENTRY.format("MISC", 1, "Z.")))
  assert read("dart", "test")[0]["references"] == ["Z.", "Two & more."]


def test_facts(folder):
  folder("lama/relations.jsonl", [{"relation": "P19", "template": "[X] was born in [Y] ."}])
  folder("lama/TREx/P19.jsonl", [{"sub_label": f"S{i}", "obj_label": f"O{i}"} for i in range(10)])
  found = [texts("lama_trex:P19", split) for split in ("train", "validation", "test")]
  assert list(map(len, found)) == [4, 1, 5]
  assert sorted(sum(found, [])) == [
    (f"S{i} was born in <extra_id_0> .", f"O{i}") for i in range(10)]
  with pytest.raises(UserError, match="lama_trex needs one of its relations\n(.*\n)*.*P19"):
    table.spec("lama_trex:P199")


def test_lines_that_are_no_rows_are_counted(folder):
  good = "1\t2\t3\tHow?\tWhy?\t1\n"
  folder("glue/QQP/train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
         + good * 199 + "1\t2\t3\tHow?\n" + "1\t2\t3\tHow?\tWhy?\t7\n")
  unusable = []
  assert len(read("glue_qqp", "train", unusable)) == 199
  assert [line.partition("train.tsv, ")[2] for line in unusable] == [
    "line 201: 4 fields, 6 columns",
    "line 202: column 'label': '7' is none of not_duplicate, duplicate"]
  folder("glue/QQP/train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
         + good * 9 + "1\n")
  with pytest.raises(UserError, match="glue_qqp: too many rows of train cannot be used\n.*1 of 10, "
                                      "the first is .*line 11: 1 fields(.*\n)*.*at most 1%"):
    read("glue_qqp", "train")


@pytest.mark.parametrize("task, name, data, messages", [
  ("glue_sst2", "glue/SST-2/train.tsv", "text\tlabel\nx\t1\n",
   ["train.tsv, line 1: columns are missing", "'text', 'label'", "wanted: sentence"]),
  ("super_glue_cb", "superglue/CB/train.jsonl", '{"premise": "a"}\n',
   ["super_glue_cb, ", "train.jsonl, line 1: there is no column 'hypothesis'", "'premise'"]),
  ("super_glue_cb", "superglue/CB/train.jsonl", '{"premise": \n',
   ["train.jsonl, line 1, column 13: broken JSON"]),
  ("squad", "qa/train-v1.1.json", '{"data": [\n', ["train-v1.1.json, line 1, column"]),
  ("webnlg", "table2text/webnlg/train.xml", "<a>\n<b></a>", ["line 2, column 5: broken XML"]),
  ("mr", "textcls/MR/rt-polarity.pos", b"ok\n",
   ["the data of split 'all' is not in DATA_DIR", "rt-polarity.neg", "get rt-polaritydata"]),
  ("glue_sst2", "glue/SST-2/train.tsv", b"sentence\tlabel\ncaf\xe9\t1\n",
   ["train.tsv, line 2: not UTF-8 text", "byte 0xe9 at column 4"])])
def test_bad_files(folder, task, name, data, messages):
  folder(name, data)
  with pytest.raises(UserError) as error:
    read(task, "train")
  for message in messages:
    assert message in str(error.value)


def test_no_data(monkeypatch, tmp_path):
  monkeypatch.delenv("DATA_DIR", raising=False)
  with pytest.raises(UserError, match="DATA_DIR is not set\n(.*\n)*.*glue/RTE/train.tsv\n.*"
                                      "download GLUE's archives.*'tfds' .glue/rte:2.0.0."):
    read("glue_rte", "train")
  monkeypatch.setenv("DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match="the data of split 'train' is not in DATA_DIR"):
    read("glue_rte", "train")


def elsewhere(name, origin, split):
  return [(e["inputs"], e["targets"])
          for e in Variant(data_from=origin).apply(table.spec(name)).examples(split)]


def test_tfds_and_hugging_face(monkeypatch):
  """Stand-ins for both packages: which names are asked for, and what their values become."""
  import numpy as np

  asked = []

  def load(name, split, **settings):
    asked.append((name, split))
    return [{"premise": b"P\xc3\xa9", "hypothesis": b"H", "label": np.int64(2), "idx": 0}]

  monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(
    load=load, as_numpy=iter, ReadConfig=lambda **_: None))
  assert elsewhere("glue_mnli", "tfds", "validation") == [
    ("mnli hypothesis: H premise: P\xe9", "contradiction")]
  assert asked == [("glue/mnli:2.0.0", "validation_matched")]
  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(
    load_dataset=lambda name, configuration, split: [
      {"id": "1", "question": "Q", "context": name, "answers": {"text": [split]}}]))
  assert elsewhere("squad", "huggingface", "validation") == [
    ("question: Q context: rajpurkar / squad", "validation")]
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(UserError, match="'huggingface' needs the package datasets\n(.*\n)*.*pip"):
    elsewhere("squad", "huggingface", "validation")
  with pytest.raises(UserError, match="tfds does not have this data\n(.*\n)*.*github.com/Yale"):
    elsewhere("dart", "tfds", "train")
  with pytest.raises(UserError, match="DATA_FROM is unknown\n(.*\n)*.*did you mean 'tfds'"):
    Variant(data_from="tdfs").apply(table.spec("squad"))
