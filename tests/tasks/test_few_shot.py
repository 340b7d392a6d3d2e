"""Solved examples ahead of inputs: which, in what order, and what happens where they do not fit."""

import dataclasses
import itertools

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import registry, table, vocabularies
from prompt_tuning.tasks.few_shot import LEFT_OUT, Room
from prompt_tuning.tasks.variants import Variant


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows that say which split they are of, labels in turn."""

  train: int = 30
  test: int = 5
  splits = ("train", "test")

  def rows(self, split):
    count = getattr(self, split)
    return iter([{"sentence": f"{split}{i}", "label": i % 2} for i in range(count)])

  def fingerprint(self):
    return f"{self.train} {self.test}"


def sst2(source=None, room=None, **settings):
  row = dataclasses.replace(table.spec("glue_sst2"), source=source or Rows())
  return Variant(taskless=True, **settings).apply(row, room=room)


def words(example):
  """The solved examples and the question of inputs like "train3 negative train5 negative test1"."""
  found = example["inputs"].removeprefix("sentence: ").split(" sentence: ")
  return [tuple(part.split()) for part in found[:-1]], found[-1]


def test_the_examples_are_training_rows_with_their_own_labels_and_stand_ahead():
  task = sst2(few_shot=4)
  made = [words(example) for example in task.examples("test")]
  assert [question for _, question in made] == [f"test{i}" for i in range(5)]
  assert all(shown == made[0][0] for shown, _ in made) and len(made[0][0]) == 4
  for text, label in made[0][0]:
    assert label == ("negative", "positive")[int(text.removeprefix("train")) % 2]
  assert len({text for text, _ in made[0][0]}) == 4


def test_a_training_row_never_stands_in_its_own_context():
  task = sst2(few_shot=4)
  made = [words(example) for example in task.examples("train")]
  usual, _ = words(next(task.examples("test")))
  assert all(len(shown) == 4 and question not in dict(shown) for shown, question in made)
  # Only the four examples see another one, in their own place.
  assert {question for shown, question in made if shown != usual} == set(dict(usual))
  for shown, question in made:
    others = [(a, b) for a, b in zip(usual, shown, strict=True) if a != b]
    assert [a for (a, _), _ in others] == [question] * (question in dict(usual))
  # Two rows of one text are the same question: neither is shown to the other.
  twins = dataclasses.replace(
    table.spec("glue_sst2"), source=Rows(), labels=None, to_text=lambda row: {
      "inputs": str(int(row["sentence"].strip("trainesl")) // 2), "targets": str(row["label"])})
  for example in Variant(few_shot=3).apply(twins).examples("train"):
    *shown, question = example["inputs"].split()
    assert question not in shown[::2] and len(set(shown[::2])) == 3


def test_balanced_examples_have_every_label_and_the_seed_draws_others():
  draws = []
  for seed in range(4):
    task = sst2(few_shot=5, few_shot_choice="balanced", few_shot_seed=seed)
    shown, _ = words(next(task.examples("test")))
    labels = [label for _, label in shown]
    # The fifth one's label is drawn.
    assert sorted(map(labels.count, ("negative", "positive"))) == [2, 3]
    draws.append(tuple(shown))
  assert len(set(draws)) == 4
  assert draws[0] == tuple(words(next(sst2(
    few_shot=5, few_shot_choice="balanced", few_shot_seed=0).examples("test")))[0])


def test_templates_separators_words_and_k_shots_apply():
  task = sst2(few_shot=2, few_shot_template="{inputs} means {targets}", few_shot_separator=" || ",
              labels={"negative": "bad", "positive": "good"}, k_shot=3)
  first, second, question = next(task.examples("test"))["inputs"].split(" || ")
  assert question == "sentence: test0" and first != second
  assert {text.split(" means ")[1] for text in (first, second)} <= {"bad", "good"}
  train = list(task.examples("train"))
  assert len(train) == 6
  pool = {example["inputs"].rpartition("|| ")[2] for example in train}
  assert all(text.split(" means ")[0] in pool
             for example in train for text in example["inputs"].split(" || ")[:2])


def test_all_rows_as_examples_leave_each_training_row_one_less():
  task = sst2(Rows(train=4), few_shot=4)
  assert all(example[LEFT_OUT] == 0 for example in task.examples("test"))
  assert all(example[LEFT_OUT] == 1 and len(words(example)[0]) == 3
             for example in task.examples("train"))
  with pytest.raises(UserError, match="(?s)too few training rows for the examples.*4 rows"):
    list(sst2(Rows(train=4), few_shot=5).examples("test"))


@pytest.mark.parametrize("length", [4, 12, 20, 29, 30, 31, 60])
def test_what_does_not_fit_is_left_out_from_the_far_end_and_the_question_is_whole(length):
  """Against the definition, by brute force on the joined text."""
  encode = vocabularies.load_light("tiny").encode
  whole = next(sst2(few_shot=4).examples("test"))["inputs"]
  parts = [f"sentence:{part}" for part in whole.split("sentence:")[1:]]
  found = next(sst2(few_shot=4, room=Room(vocabulary="tiny", length=length)).examples("test"))
  sizes = [len(encode(part)) for part in parts]
  # Of all choices among the four, the one that has the last example if it can, then the third ...
  choices = [kept for kept in itertools.product((1, 0), repeat=4)
             if sum(itertools.compress(sizes, kept)) + sizes[4] + 1 <= length]
  best = max(choices, key=lambda kept: kept[::-1], default=(0, 0, 0, 0))
  expected = [*itertools.compress(parts, best), parts[4]]
  assert len(encode("".join(expected))) == sum(map(len, map(encode, expected)))
  assert found["inputs"] == "".join(expected)
  assert found[LEFT_OUT] == 5 - len(expected)


def test_the_lengths_and_settings_are_part_of_the_tasks_name():
  names = {registry.build(sst2(few_shot=n, room=Room(vocabulary="tiny", length=length))).name
           for n, length in ((2, 20), (3, 20), (2, 30))}
  assert len(names) == 3
  # The same data elsewhere is the same task.
  assert Variant(few_shot=2, data_dir="/a").tag() == Variant(few_shot=2, data_dir="/b").tag()
  for folder in ("/a", "/b"):
    row = Variant(few_shot=2, data_dir=folder).apply(table.spec("glue_sst2"))
    assert row.to_text.task.source.data_dir == folder
    assert registry.build(row).name == registry.build(row).name


def test_a_rows_losses_are_counted():
  task = registry.build(sst2(few_shot=4, room=Room(vocabulary="tiny", length=20)))
  rows = list(task.get_dataset(sequence_length=None, split="test", shuffle=False))
  assert len(rows) == 5
  assert registry.lost(task.name, "test") == {"unusable": 0, "short_contexts": 5}


@pytest.mark.parametrize("settings, message", [
  ({"few_shot": 0}, "FEW_SHOT is not a count"),
  ({"few_shot": True}, "FEW_SHOT is not a count"),
  ({"few_shot": 2, "few_shot_choice": "nearest"}, "FEW_SHOT_CHOICE is unknown"),
  ({"few_shot_seed": 2}, "Settings of FEW_SHOT need FEW_SHOT"),
  ({"few_shot": 2, "few_shot_template": "{question}"}, "FEW_SHOT_TEMPLATE cannot be filled"),
  ({"few_shot": 2, "few_shot_template": "{inputs}"}, "FEW_SHOT_TEMPLATE cannot be filled")])
def test_bad_settings(settings, message):
  with pytest.raises(UserError, match=message):
    sst2(**settings)


def test_tasks_that_can_have_no_examples():
  with pytest.raises(UserError, match="no inputs that examples could stand ahead of"):
    Variant(few_shot=2).apply(table.spec("c4_span_corruption"))
  with pytest.raises(UserError, match="cannot be balanced"):
    Variant(few_shot=2, few_shot_choice="balanced").apply(table.spec("e2e"))
  with pytest.raises(UserError, match="no rows that examples could be drawn from"):
    Variant(few_shot=2).apply(table.spec("glue_ax"))
