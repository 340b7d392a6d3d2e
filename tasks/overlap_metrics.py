"""Metrics of generated text against one or several references.

BLEU, chrF and TER are sacrebleu's, ROUGE is rouge-score's, METEOR nltk's, NIST our own. All are
between 0 and 100, as they are published, but NIST, which has no upper end, and TER, which counts
edits in percent of the reference's words (less is better). Rows of one `group` (one source with
several references) are judged once, by the first prediction and all references.

METEOR (Banerjee and Lavie 2005, with the parameters of Lavie and Agarwal 2007) matches words, then
stems, then synonyms. The synonyms are WordNet's, which no package brings along, so ours stops at
stems and is called `meteor_exact_stem`: it is at most the published metric. nltk's alignment takes
matches from the end, not those with the fewest crossings.
"""

import functools
from collections.abc import Hashable, Sequence
from typing import Any

from prompt_tuning.tasks import nist_score
from prompt_tuning.tasks.answer_metrics import References, first_of_group
from prompt_tuning.tasks.classification_metrics import share

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Groups = Sequence[Hashable] | None


def bleu(targets: Sequence[str], predictions: Sequence[str], *,
         references: References | None = None, groups: Groups = None) -> dict[str, float]:
  """Corpus BLEU (13a tokens, exponential smoothing), with case: sacrebleu's default."""
  return {"bleu": _sacrebleu("corpus_bleu", targets, predictions, references, groups)}


def bleu_uncased(targets: Sequence[str], predictions: Sequence[str], *,
                 references: References | None = None, groups: Groups = None) -> dict[str, float]:
  """Corpus BLEU without case, as mteval-v13a and with it the E2E challenge compute it."""
  return {"bleu_uncased": _sacrebleu("corpus_bleu", targets, predictions, references, groups,
                                     lowercase=True)}


def chrf(targets: Sequence[str], predictions: Sequence[str], *,
         references: References | None = None, groups: Groups = None) -> dict[str, float]:
  """chrF2: F of character n-grams up to 6, recall twice as heavy (Popovic 2015)."""
  return {"chrf": _sacrebleu("corpus_chrf", targets, predictions, references, groups)}


def ter(targets: Sequence[str], predictions: Sequence[str], *,
        references: References | None = None, groups: Groups = None) -> dict[str, float]:
  """Translation edit rate (Snover et al. 2006): edits and shifts, % of the references' words."""
  return {"ter": _sacrebleu("corpus_ter", targets, predictions, references, groups)}


def nist(targets: Sequence[str], predictions: Sequence[str], *,
         references: References | None = None, groups: Groups = None) -> dict[str, float]:
  """NIST-5 (Doddington 2002), without case."""
  _, chosen, known = first_of_group(targets, predictions, references, groups)
  if not chosen:
    return {"nist": 0.0}
  return {"nist": nist_score.corpus_nist([[_words(text) for text in texts] for texts in known],
                                         [_words(text) for text in chosen])}


def meteor(targets: Sequence[str], predictions: Sequence[str], *,
           references: References | None = None, groups: Groups = None) -> dict[str, float]:
  """Mean METEOR of words and stems, without synonyms: `meteor_exact_stem`."""
  from nltk.translate import meteor_score

  _, chosen, known = first_of_group(targets, predictions, references, groups)
  scores = [meteor_score.meteor_score([_words(text) for text in texts], _words(prediction),
                                      wordnet=_NoSynonyms())
            for texts, prediction in zip(known, chosen, strict=True)]
  return {"meteor_exact_stem": 100 * share(scores)}


def rouge(targets: Sequence[str], predictions: Sequence[str], *,
          references: References | None = None, groups: Groups = None) -> dict[str, float]:
  """Mean F-measures of ROUGE-1, 2, L and Lsum with stemming; the best reference counts.

  ROUGE-Lsum is of summaries with a sentence a line. Decoded text has no line ends, so " . " ends a
  sentence too, as in T5's evaluation.
  """
  from rouge_score import rouge_scorer

  _, chosen, known = first_of_group(targets, predictions, references, groups)
  scorer = rouge_scorer.RougeScorer(ROUGE_KINDS, use_stemmer=True)
  scores = [scorer.score_multi([_sentences(text) for text in texts], _sentences(prediction))
            for texts, prediction in zip(known, chosen, strict=True)]
  return {kind: 100 * share([score[kind].fmeasure for score in scores]) for kind in ROUGE_KINDS}


def _sacrebleu(function: str, targets: Sequence[str], predictions: Sequence[str],
               references: References | None, groups: Groups, **settings: Any) -> float:
  import sacrebleu

  _, chosen, known = first_of_group(targets, predictions, references, groups)
  if not chosen:
    return 0.0
  # sacrebleu wants the first references of all rows, then the second ones; None for none.
  streams = [[texts[i].strip() if i < len(texts) else None for texts in known]
             for i in range(max(map(len, known)))]
  found = getattr(sacrebleu, function)([text.strip() for text in chosen], streams, **settings)
  return float(found.score)


def _sentences(text: str) -> str:
  return text.strip().replace(" . ", " .\n")


def _words(text: str) -> list[str]:
  return _tokenizer()(text.strip().lower()).split()


@functools.cache
def _tokenizer():
  from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

  return Tokenizer13a()


class _NoSynonyms:
  """What nltk's METEOR asks for synonyms, where there is no WordNet."""

  def synsets(self, word: str) -> list:
    del word
    return []
