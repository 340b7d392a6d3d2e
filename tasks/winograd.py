"""WSC as T5 judges it (Raffel et al. 2020, appendix B): does the model name the candidate?

The model is asked what a pronoun refers to and answers in words; the row asks whether a given
candidate is it. The answer means yes where, without case and determiners, its words are among the
candidate's or the candidate's among them; one of them alone being a possessive means no.
"""

from collections.abc import Sequence

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.classification_metrics import pairs, share

DETERMINERS = frozenset(
  "a an few her his each every many much my our some that the their these this those which whose "
  "your".split())
YES = ("1", "true")


def wsc(targets: Sequence[str], predictions: Sequence[str], *,
        row_labels: Sequence[str] | None = None) -> dict[str, float]:
  """Accuracy of "is the candidate meant?"; targets are the candidates, `row_labels` the truth.

  Raises:
    UserError: the rows do not say what is true.
  """
  if row_labels is None:
    raise UserError("the metric wsc needs the label of each row", found="rows without label",
                    wanted="`label` in what to_text makes of a row", fix="add it")
  return {"accuracy": share([
    names(prediction, target) == (label.strip().lower() in YES)
    for (target, prediction), label in zip(pairs(targets, predictions), row_labels, strict=True)])}


def names(prediction: str, candidate: str) -> bool:
  """Whether an answer means the candidate."""
  answer, wanted = _words(prediction), _words(candidate)
  if not answer or ("'" in prediction) != ("'" in candidate):
    return False
  return answer <= wanted or wanted <= answer


def _words(text: str) -> set[str]:
  return {word for word in text.lower().split() if word not in DETERMINERS}
