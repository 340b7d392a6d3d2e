"""SQuAD v1.1, its shifted test sets, and MRQA 2019 (Fisch et al. 2019), cast as T5 casts SQuAD.

`question: ... context: ...` -> the first answer, every mark between spaces (T5's
`_pad_punctuation`: what is no ASCII letter, digit or `_` is a mark). `references` are all the
answers. An answer that is not where the file says makes a row unusable, and so does having none.
"""

import functools
import pathlib
import re
from collections.abc import Iterator, Mapping

from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import Row as RawRow
from prompt_tuning.tasks.readers import json_file, json_lines
from prompt_tuning.tasks.spec import Example, Row, TaskSpec, Unusable

SQUAD = "get train-v1.1.json and dev-v1.1.json (rajpurkar.github.io/SQuAD-explorer) into " \
  "DATA_DIR/qa"
MRQA = "get the files of the MRQA 2019 shared task (github.com/mrqa/MRQA-Shared-Task-2019) into " \
  "DATA_DIR/qa/mrqa/train and DATA_DIR/qa/mrqa/dev"
_MARK = re.compile(r"([^0-9A-Za-z_])")
_SPACE = re.compile(r"[ \t\n\f\r]+")


@functools.lru_cache(maxsize=64)  # the questions of a paragraph have its context in common
def pad_marks(text: str) -> str:
  """Spaces around every mark, and single ones."""
  return _SPACE.sub(" ", _MARK.sub(r" \1 ", text))


def answer_question(row: Row) -> Example:
  """A row of SQuAD (`answers` of TFDS) or MRQA (`answers` a list) -> an example."""
  answers = row["answers"]["text"] if isinstance(row["answers"], Mapping) else row["answers"]
  if not answers:
    raise Unusable("column 'answers': the question has none")
  inputs = f"question: {pad_marks(row['question'])} context: {pad_marks(row['context'])}"
  padded = [pad_marks(answer) for answer in answers]
  example = {"inputs": _SPACE.sub(" ", inputs), "targets": padded[0], "references": padded}
  return example | ({"group": row["window_of"]} if "window_of" in row else {})


def squad_file(path: pathlib.Path) -> Iterator[RawRow]:
  """SQuAD's JSON: a row a question."""
  for article in json_file(path)["data"]:
    for number, paragraph in enumerate(article["paragraphs"], start=1):
      context = paragraph["context"]
      for question in paragraph["qas"]:
        where = f"{path}, {article['title']!r} paragraph {number}, question {question['id']}"
        answers = question.get("answers", [])
        wrong = [answer for answer in answers if not context.startswith(
          answer["text"], answer["answer_start"])]
        yield {"id": question["id"], "title": article["title"], "context": context,
               "question": question["question"], "where": where,
               "answers": {"text": [answer["text"] for answer in answers],
                           "answer_start": [answer["answer_start"] for answer in answers]},
               **_misplaced([f"{answer['text']!r} at {answer['answer_start']}"
                             for answer in wrong])}


def mrqa_file(path: pathlib.Path) -> Iterator[RawRow]:
  """MRQA's JSON lines: a row a question; the first line of a file may be a header."""
  for where, values in json_lines(path):
    if "header" in values:
      continue
    context = values["context"]
    for question in values["qas"]:
      detected = question.get("detected_answers", [])
      wrong = [f"{answer['text']!r} at {start}" for answer in detected
               for start, end in answer["char_spans"]
               if _letters(context[start:end + 1]) != _letters(answer["text"])]
      yield {"qid": question["qid"], "question": question["question"], "context": context,
             "answers": list(question["answers"]), "where": f"{where}, question {question['qid']}",
             **_misplaced(wrong)}


def _letters(text: str) -> str:
  """Spans are of tokens: their spaces may differ from the answer's, nothing else."""
  return "".join(text.split()).lower()


def _misplaced(wrong: list[str]) -> dict[str, str]:
  return {"unusable": f"column 'answers': {wrong[0]} is not in the context"} if wrong else {}


def _squad(name: str, files: Mapping[str, tuple[str, ...]], sizes: tuple[int, ...],
           description: str, download: str = SQUAD, **elsewhere: str) -> TaskSpec:
  return TaskSpec(name=name, source=Published(files=files, read=squad_file, download=download,
                                              **elsewhere),
                  to_text=answer_question, labels=None, metrics=("squad",),
                  sizes=dict(zip(files, sizes, strict=True)), description=description)


def _mrqa(name: str, file: str, tfds: str, *sizes: int) -> TaskSpec:
  """With two sizes an in-domain set (train, validation), with one an out-of-domain test set."""
  in_domain = len(sizes) == 2
  files = {"train": (f"qa/mrqa/train/{file}.jsonl",)} if in_domain else {}
  files["validation"] = (f"qa/mrqa/dev/{file}.jsonl",)
  source = Published(files=files, read=mrqa_file, download=MRQA, tfds=f"mrqa/{tfds}:1.0.0",
                     their_splits={} if in_domain else {"validation": "test"})
  return TaskSpec(name=f"mrqa_{name}", source=source, to_text=answer_question, labels=None,
                  metrics=("squad",), sizes=dict(zip(files, sizes, strict=True)),
                  description=f"MRQA 2019, {file}: " + ("in-domain" if in_domain else
                                                         "out-of-domain, evaluation only"))


ROWS = (
  _squad("squad", {"train": ("qa/train-v1.1.json",), "validation": ("qa/dev-v1.1.json",)},
         (87599, 10570), "SQuAD v1.1: spans of Wikipedia", tfds="squad/v1.1:3.0.0",
         huggingface="rajpurkar/squad"),
  _squad("squadshifts_new_wiki", {"validation": ("qa/squadshifts_new_wiki_v1.0.json",
                                                 "qa/new_wiki_v1.0.json")},
         (7938,), "new articles of Wikipedia (Miller et al. 2020); evaluation only",
         "get new_wiki_v1.0.json (modestyachts.github.io/squadshifts-website) into DATA_DIR/qa"),
  _squad("xquad_en", {"validation": ("qa/xquad.en.json",)}, (1190,),
         "XQuAD's English part: 240 paragraphs of SQuAD's dev set; evaluation only",
         "get xquad.en.json (github.com/google-deepmind/xquad) into DATA_DIR/qa"),
  _mrqa("squad", "SQuAD", "squad", 86588, 10507),
  _mrqa("newsqa", "NewsQA", "news_qa", 74160, 4212),
  _mrqa("triviaqa", "TriviaQA", "trivia_qa", 61688, 7785),
  _mrqa("searchqa", "SearchQA", "search_qa", 117384, 16980),
  _mrqa("hotpotqa", "HotpotQA", "hotpot_qa", 72928, 5901),
  _mrqa("naturalquestions", "NaturalQuestions", "natural_questions", 104071, 12836),
  _mrqa("bioasq", "BioASQ", "bio_asq", 1504),
  _mrqa("drop", "DROP", "drop", 1503),
  _mrqa("duorc", "DuoRC.ParaphraseRC", "duo_rc", 1501),
  _mrqa("race", "RACE", "race", 674),
  _mrqa("re", "RelationExtraction", "relation_extraction", 2948),
  _mrqa("textbookqa", "TextbookQA", "textbook_qa", 1503),
)
