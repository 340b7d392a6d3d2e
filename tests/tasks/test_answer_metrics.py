"""Answers to questions, against counts made by hand."""

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import answer_metrics, metrics, winograd


def test_the_best_of_several_answers_counts():
  targets = ["Denver Broncos", "1066"]
  references = [["Denver Broncos", "The Denver Broncos!"], ["1066", "in October 1066"]]
  found = answer_metrics.squad(targets, ["the denver broncos", "October 1066."],
                               references=references)
  # Second row against "in October 1066": precision 2/2, recall 2/3.
  assert found == {"em": 0.5, "f1": pytest.approx((1 + 0.8) / 2)}
  alone = answer_metrics.squad(targets, ["the denver broncos", "October 1066."])
  assert alone["f1"] == pytest.approx((1 + 2 / 3) / 2)
  assert answer_metrics.exact_match(targets, ["x", "in October 1066"], references=references) == {
    "exact_match": 0.5}


def test_record_judges_each_query_once():
  # Two rows of query 1, one an answer; the second of its predictions is not judged.
  found = answer_metrics.record(["Mary Ann", "Mary", "Bob"], ["Mary", "wrong", "Tom"],
                                groups=["1", "1", "2"])
  assert found == {"em": 0.5, "f1": 0.5}
  spread = answer_metrics.record(["Mary Ann", "Bob"], ["Mary", "Bob"],
                                 references=[["Mary Ann", "Ann"], ["Bob"]])
  assert spread == {"em": 0.5, "f1": pytest.approx((2 / 3 + 1) / 2)}


def test_multirc_judges_answers_and_questions():
  labels = ("False", "True")
  rows = [("q1", "True", "True"), ("q1", "False", "False"), ("q2", "True", "False"),
          ("q2", "True", "True"), ("q3", "False", "True")]
  groups, targets, predictions = map(list, zip(*rows, strict=True))
  found = answer_metrics.multirc(targets, predictions, groups=groups, labels=labels)
  # 2 hits, 3 predicted, 3 true; only q1 is right in all of its answers.
  assert found == {"f1a": pytest.approx(2 / 3), "em": pytest.approx(1 / 3)}
  with pytest.raises(UserError, match="needs the question of each row"):
    metrics.bind("multirc", labels)(targets, predictions)


@pytest.mark.parametrize("prediction,candidate,same", [
  ("The City Councilmen", "city councilmen", True), ("councilmen", "the city councilmen", True),
  ("the demonstrators", "the city councilmen", False), ("", "Mark", False), ("the", "Mark", False),
  ("Bob's", "Bob", False), ("Bob's father", "bob's", True),
])
def test_wsc_compares_words_as_t5_does(prediction, candidate, same):
  assert winograd.names(prediction, candidate) is same
  for label in ("True", "1", "False", "0"):
    right = same == (label in ("True", "1"))
    target = metrics.Target(candidate, label=label)
    assert metrics.bind("wsc", None)([target], [prediction]) == {"accuracy": float(right)}


def test_wsc_needs_the_truth():
  with pytest.raises(UserError, match="needs the label of each row"):
    metrics.bind("wsc", None)(["Mark"], ["Mark"])
