"""Castings against T5's own, and by hand where T5 has none; variants differ by what they say."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import table, vocabularies
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec
from prompt_tuning.tasks.variants import Variant

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from casting_rows import ROWS  # noqa: E402

T5 = json.loads((GOLDEN / "t5_castings.json").read_text(encoding="utf-8"))
TASKS = [name for name in table.names() if isinstance(table.spec(name), TaskSpec)
         and not name.startswith("docstring_")]


@dataclasses.dataclass(frozen=True)
class Injected:
  """Raw rows as every split."""

  raw: tuple
  splits: tuple[str, ...] = ("train", "validation")

  def rows(self, split):
    return iter(self.raw)

  def fingerprint(self):
    return "injected"


def cast(name, rows, split="train", **variant):
  task = dataclasses.replace(table.spec(name), source=Injected(tuple(rows)))
  return list(Variant(**variant).apply(task).examples(split))


def texts(examples):
  return [(example["inputs"], example["targets"]) for example in examples]


@pytest.mark.parametrize("name", ROWS)
def test_t5s_castings(name):
  rows, golden = ROWS[name], [example for row in T5[name] for example in row]
  split = "train"
  if name == "super_glue_wsc":
    # T5 trains on the rows whose candidate is right, and evaluates on all.
    right = [example for row, cast in zip(rows, T5[name], strict=True) if row["label"]
             for example in cast]
    assert texts(cast(name, rows)) == texts(right)
    assert [example["label"] for example in cast(name, rows, "validation")] == [
      "True", "False", "False", "True"]
    split = "validation"
  assert texts(cast(name, rows, split)) == texts(golden)
  if "answers" in golden[0] and name != "super_glue_record":
    assert [e["references"] for e in cast(name, rows)] == [e["answers"] for e in golden]


@pytest.mark.parametrize("name", [name for name in ROWS if table.spec(name).prefix])
def test_taskless_is_without_the_first_word(name):
  plain, taskless = cast(name, ROWS[name]), cast(name, ROWS[name], taskless=True)
  assert [t["inputs"] for t in taskless] == [re.sub("^[^ ]* ", "", p["inputs"]) for p in plain]
  assert [{**t, "inputs": ""} for t in taskless] == [{**p, "inputs": ""} for p in plain]


def test_several_references_a_source():
  """Training has an example for each, evaluation one a row with all of them."""
  row = {"mr": "name[A], food[B]", "references": ["A has B.", "B at A."]}
  assert texts(cast("e2e", [row])) == [("e2e mr: name[A], food[B]", "A has B."),
                                       ("e2e mr: name[A], food[B]", "B at A.")]
  only, = cast("e2e", [row], "validation")
  assert (only["targets"], only["references"]) == ("A has B.", ["A has B.", "B at A."])
  record = {**ROWS["super_glue_record"][0], "answers": ["Kim", "Lee"]}
  assert [e["targets"] for e in cast("super_glue_record", [record])] == ["Kim", "Lee"]
  only, = cast("super_glue_record", [record], "validation")
  assert (only["references"], only["group"]) == (["Kim", "Lee"], "2-7")
  groups = [e["group"] for e in cast("super_glue_multirc", ROWS["super_glue_multirc"])]
  assert groups == ["5-1", "5-1"]


@pytest.mark.parametrize("name, row, expected", [
  ("e2e_cleaned", {"mr": "name[A]", "references": ["A."]}, ("e2e mr: name[A]", "A.")),
  ("webnlg", {"triples": [("A", "b", "C D"), ("A", "e", "\"F\"")], "references": ["A is."]},
   ("webnlg triples: A : b : C D | A : e : \"F\"", "A is.")),
  ("dart", {"triples": [("A", "B", "C")], "references": ["It is.", "x"]},
   ("dart triples: A : B : C", "It is.")),
  ("dialogsum", {"dialogue": "#Person1#: Hi.\n#Person2#: Bye.", "summary1": "They meet.",
                 "summary2": "They part."},
   ("summarize: #Person1#: Hi.\n#Person2#: Bye.", "They meet.")),
  ("ag_news", {"title": "A", "description": "b.", "label": 3},
   ("ag_news title: A description: b.", "Sci/Tech")),
  ("mr", {"sentence": "good .", "label": "positive"}, ("mr sentence: good .", "positive")),
  ("lama_trex:P19", {"template": "[X] was born in [Y] .", "sub_label": "Dante",
                     "obj_label": "Florence"},
   ("Dante was born in <extra_id_0> .", "Florence")),
  ("squadshifts_new_wiki", {"question": "Who?", "context": "I.",
                            "answers": {"text": ["I"], "answer_start": [0]}},
   ("question: Who ? context: I . ", "I")),
])
def test_castings_that_t5_has_not(name, row, expected):
  assert texts(cast(name, [row], "validation")) == [expected]


def test_every_casting_is_tested():
  """Tasks that share a `to_text` and its texts with a tested one need no row of their own."""
  tested = {type(table.spec(name).to_text) if not isinstance(table.spec(name).to_text, type(cast))
            else table.spec(name).to_text for name in [*ROWS, "e2e", "webnlg", "dart", "dialogsum",
                                                       "ag_news", "mr"]}
  for name in TASKS:
    casting = table.spec(name).to_text
    if table.spec(name).objective is None:
      assert casting in tested or type(casting) in tested, name


@pytest.mark.parametrize("name", [name for name in TASKS if table.spec(name).labels])
@pytest.mark.parametrize("vocabulary", ["tiny", "bytes"])
def test_every_label_survives_tokenising(name, vocabulary):
  tokenizer = vocabularies.load_light(vocabulary)
  labels = table.spec(name).labels
  assert [tokenizer.decode(tokenizer.encode(label)).strip() for label in labels] == list(labels)


def test_similarities_are_rounded_as_t5_rounds_them():
  """numpy in float32 is what TensorFlow computes, checked at the halves by the golden rows."""
  values = np.arange(0, 5.0001, 0.001)
  rows = [{"sentence1": "a", "sentence2": "b", "label": str(value)} for value in values]
  expected = [f"{np.rint(np.float32(v) * np.float32(5)) / 5:.1f}" for v in values]
  assert [e["targets"] for e in cast("glue_stsb", rows)] == expected


def test_label_words_and_templates():
  rows = ROWS["glue_mrpc"]
  task = dataclasses.replace(table.spec("glue_mrpc"), source=Injected(tuple(rows)))
  words = {"equivalent": "duplicate", "not_equivalent": "not_duplicate"}
  varied = Variant(labels=words, template="{sentence1} = {sentence2}? [{inputs}]").apply(task)
  assert varied.labels == ("not_duplicate", "duplicate")
  assert varied.metrics == ("f1_binary:duplicate", "accuracy")
  first, second = varied.examples("train")
  assert first["inputs"] == ("A \"cat\" sat. = Nothing sat; café.? [mrpc sentence1: A \"cat\" sat. "
                             "sentence2: Nothing sat; café.]")
  assert (first["targets"], second["targets"]) == ("not_duplicate", "duplicate")
  with pytest.raises(UserError, match="TASK_LABELS names no label of 'glue_mrpc'"):
    Variant(labels={"equal": "same"}).apply(task)


def test_a_few_rows_a_label():
  rows = [{"sentence": str(i), "label": i % 2 if i else -1} for i in range(41)]
  chosen = [cast("glue_sst2", rows, k_shot=4, k_shot_seed=seed) for seed in (0, 0, 1)]
  for examples in chosen:
    assert sorted(e["targets"] for e in examples) == ["negative"] * 4 + ["positive"] * 4
    assert len(texts(examples)) == len(set(texts(examples)))
  assert chosen[0] == chosen[1] != chosen[2]
  assert len(cast("glue_sst2", rows, "validation", k_shot=4)) == 41
  with pytest.raises(UserError, match="too few rows for K_SHOT = 21"):
    cast("glue_sst2", rows, k_shot=21)


def test_a_few_rows_of_many_references_are_as_few_examples():
  rows = [{"mr": str(i), "references": [f"{i}{j}" for j in "abc"]} for i in range(9)]
  assert len(cast("e2e", rows)) == 27
  drawn = [cast("e2e", rows, k_shot=5, k_shot_seed=seed) for seed in (0, 0, 1)]
  assert [len(examples) for examples in drawn] == [5, 5, 5] and drawn[0] == drawn[1] != drawn[2]
  for examples in drawn:
    assert len({e["inputs"] for e in examples}) == 5
    assert all(e["targets"][0] == e["inputs"][-1] for e in examples)
  # Not the first of each.
  assert {e["targets"][1] for e in drawn[0] + drawn[2]} != {"a"}


def test_a_fixed_order():
  rows = [{"sentence": str(i), "label": 1} for i in range(20)]
  plain = texts(cast("glue_sst2", rows))
  first, again = (texts(cast("glue_sst2", rows, order_seed=3)) for _ in range(2))
  assert first == again != plain and sorted(first) == sorted(plain)
  assert texts(cast("glue_sst2", rows, "validation", order_seed=3)) == plain


def test_splits_are_cut():
  rows = [{"sentence": str(i), "label": 1} for i in range(10)]
  task = dataclasses.replace(table.spec("glue_sst2"), source=Injected(tuple(rows)))
  varied = Variant(splits={"train": "train[:50%]+validation[8:]", "test": "train[-30%:]",
                           "validation": "train[5:7]"}).apply(task)
  found = {split: [e["inputs"][-1] for e in varied.examples(split)]
           for split in varied.source.splits}
  assert found == {"train": list("0123489"), "validation": list("56"), "test": list("789")}
  with pytest.raises(UserError, match="cuts 'validation' from 'train', which stays whole"):
    Variant(splits={"validation": "train[90%:]"}).apply(task)
  with pytest.raises(UserError, match="no split 'tset' to cut"):
    Variant(splits={"train": "tset[:3]"}).apply(task)
  with pytest.raises(UserError, match="cannot be read"):
    Variant(splits={"train": "train[3]"}).apply(task)


def test_a_mixture_is_varied_in_all_its_tasks():
  mixture = MixtureSpec(name="two", rates={"glue_rte": 1.0, "glue_cola": 1.0})
  parts = {name: table.spec(name) for name in mixture.rates}
  varied = Variant(taskless=True, data_dir="/there").apply(mixture, parts)
  assert [task.name for task in varied.tasks] == ["glue_rte", "glue_cola"]
  assert {task.variant for task in varied.tasks} == {varied.variant} != {""}
  assert {task.source.data_dir for task in varied.tasks} == {"/there"}
  assert Variant(data_dir="/there").tag() == "" and Variant().apply(mixture) is mixture


@pytest.mark.parametrize("settings, message", [
  ({"k_shot": 0}, "K_SHOT is not a count"), ({"window": 1.5}, "QA_WINDOW is not a count"),
  ({"stride": 4}, "QA_STRIDE needs QA_WINDOW"), ({"labels": ["a"]}, "TASK_LABELS is not a dict"),
  ({"splits": "train"}, "TASK_SPLITS is not a dictionary")])
def test_bad_settings(settings, message):
  with pytest.raises(UserError, match=message):
    Variant(**settings)
