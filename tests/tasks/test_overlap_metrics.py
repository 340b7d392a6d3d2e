"""Generated text, against the E2E challenge's own program, nltk, and definitions written out."""

import collections
import math

import pytest
from nltk.translate import nist_score as nltk_nist

from prompt_tuning.tasks import nist_score, overlap_metrics

PREDICTIONS = ["The cat sat on the mat.", "A dog ran by, quickly."]
REFERENCES = [["The cat is on the mat.", "There is a cat on the mat."],
              ["A dog ran past quickly.", "the dog, quickly, ran by", "dogs run"]]
TARGETS = [texts[0] for texts in REFERENCES]


def test_bleu_and_nist_are_the_e2e_challenges():
  # metrics/pymteval.py of tuetschek/e2e-metrics gives 0.4020008412704198 and 4.139499005342983;
  # on its ten example rows (2 to 14 references) both sides give 72.0293 and 7.78889.
  bleu = overlap_metrics.bleu_uncased(TARGETS, PREDICTIONS, references=REFERENCES)
  assert bleu["bleu_uncased"] == pytest.approx(40.20008412704198)
  nist = overlap_metrics.nist(TARGETS, PREDICTIONS, references=REFERENCES)
  assert nist["nist"] == pytest.approx(4.139499005342983)
  # No match hangs on the case here but that of "the".
  upper = [text.replace("The", "THE") for text in PREDICTIONS]
  assert overlap_metrics.bleu(TARGETS, upper, references=REFERENCES)["bleu"] < 40
  assert overlap_metrics.bleu_uncased(TARGETS, upper, references=REFERENCES) == bleu


def test_nist_with_one_reference_is_nltks():
  references = [[text.lower().split()] for text in TARGETS]
  predictions = [text.lower().split() for text in PREDICTIONS]
  assert nist_score.corpus_nist(references, predictions) == pytest.approx(
    nltk_nist.corpus_nist(references, predictions))
  # Two thirds of the reference's length cost half of the score.
  assert nist_score.corpus_nist([["abc"]], ["ab"], max_n=1) == pytest.approx(0.5 * math.log2(3))
  assert nist_score.corpus_nist([["abc"]], [""]) == 0


def test_rows_of_one_group_are_one_source():
  pairs = [(text, group) for group, texts in enumerate(REFERENCES) for text in texts]
  targets = [text for text, _ in pairs]
  groups = [group for _, group in pairs]
  repeated = [PREDICTIONS[group] for group in groups]
  for metric in (overlap_metrics.bleu, overlap_metrics.nist, overlap_metrics.rouge,
                 overlap_metrics.meteor, overlap_metrics.chrf, overlap_metrics.ter):
    together = metric(TARGETS, PREDICTIONS, references=REFERENCES)
    assert metric(targets, repeated, groups=groups) == together
    assert metric(targets, repeated) != together


def test_ter_counts_edits_and_shifts():
  # One word replaced of four; and one word moved: a shift is one edit.
  assert overlap_metrics.ter(["a b c d"], ["a b x d"])["ter"] == pytest.approx(25)
  assert overlap_metrics.ter(["a b c d e"], ["a c d b e"])["ter"] == pytest.approx(20)
  # The closest reference, in percent of the mean length of both.
  assert overlap_metrics.ter(["a b c d"], ["a b c x"], references=[["a b c d", "q r"]])[
    "ter"] == pytest.approx(100 * 1 / 3)


def test_chrf_from_its_definition():
  target, prediction = "the cat sat", "a cat sits"
  texts = [text.replace(" ", "") for text in (target, prediction)]
  scores = []
  for n in range(1, 7):
    grams = [collections.Counter(text[i:i + n] for i in range(len(text) - n + 1))
             for text in texts]
    shared = sum((grams[0] & grams[1]).values())
    recall, precision = (shared / sum(each.values()) for each in grams)
    scores.append((precision, recall))
  precision, recall = (sum(values) / 6 for values in zip(*scores, strict=True))
  expected = 5 * precision * recall / (4 * precision + recall)
  assert overlap_metrics.chrf([target], [prediction])["chrf"] == pytest.approx(100 * expected)


def test_meteor_from_its_formula():
  # Words: the, on, the; stem: sitting ~ sits. Of 6 words 4 match; they stand as
  # "the" | "sits on the", so two chunks.
  target, prediction = "the cat sits on the mat", "the dog sitting on the rug"
  precision = recall = 4 / 6
  mean = precision * recall / (0.9 * precision + 0.1 * recall)
  expected = mean * (1 - 0.5 * (2 / 4)**3)
  found = overlap_metrics.meteor([target], [prediction])
  assert found == {"meteor_exact_stem": pytest.approx(100 * expected)}
  # Synonyms are none: "sofa" and "couch" do not match.
  assert overlap_metrics.meteor(["couch"], ["sofa"]) == {"meteor_exact_stem": 0.0}


def test_rouge_takes_the_best_reference_and_sentences():
  found = overlap_metrics.rouge(["x"], ["the cat"], references=[["no such thing", "the cat sat"]])
  assert found["rouge1"] == pytest.approx(100 * 2 * 2 / 5)
  # Sentence by sentence all words of "b a" and "d c" are found; in one sequence only two of four.
  swapped = overlap_metrics.rouge(["c d . a b"], ["a b . c d"])
  assert swapped["rougeL"] == pytest.approx(50) and swapped["rougeLsum"] == pytest.approx(100)
