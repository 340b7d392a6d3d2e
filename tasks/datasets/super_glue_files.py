"""SuperGLUE's JSON lines -> the flat rows of TFDS, where the two differ."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_tuning.tasks.readers import NO_LABEL, JsonLines, Row, json_lines

_PLAIN = JsonLines()


def same(row: Row) -> Row:
  """A row of TFDS, which is as it should be."""
  return row


def rekeyed(row: Row) -> Row:
  """AX-b names its sentences otherwise than RTE."""
  names = {"sentence1": "premise", "sentence2": "hypothesis"}
  return {names.get(name, name): value for name, value in row.items()}


def axb(path: pathlib.Path) -> Iterator[Row]:
  """AX-b, as `rekeyed`."""
  return map(rekeyed, _PLAIN(path))


def multirc(path: pathlib.Path) -> Iterator[Row]:
  """A row for each answer of each question of each paragraph."""
  for where, values in json_lines(path):
    passage = values["passage"]
    for question in passage["questions"]:
      for answer in question["answers"]:
        yield {"paragraph": passage["text"], "question": question["question"],
               "answer": answer["text"], "label": answer.get("label", NO_LABEL), "where": where,
               "idx": {"paragraph": values["idx"], "question": question["idx"],
                       "answer": answer["idx"]}}


def record(path: pathlib.Path) -> Iterator[Row]:
  """A row for each query; entities and answers are different texts, sorted."""
  for where, values in json_lines(path):
    text = values["passage"]["text"]
    entities = sorted({text[span["start"]:span["end"] + 1]
                       for span in values["passage"]["entities"]})
    for query in values["qas"]:
      yield {"passage": text, "query": query["query"], "entities": entities,
             "answers": sorted({answer["text"] for answer in query.get("answers", ())}),
             "idx": {"passage": values["idx"], "query": query["idx"]}, "where": where}


def wsc(path: pathlib.Path) -> Iterator[Row]:
  """WSC's rows with their spans on top, corrected as in TFDS's `wsc.fixed`."""
  for row in _PLAIN(path):
    target = row.pop("target", {})
    yield fix_spans({**row, **target})


# The candidates of these rows are not in one piece in the text.
_SCATTERED = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")


def fix_spans(row: Mapping[str, Any]) -> Row:
  """Makes the text of a span a part of the sentence: its case, final stops and line ends differ."""
  fixed = dict(row)
  for span in ("span1", "span2"):
    text, words = fixed[f"{span}_text"], fixed["text"].split()
    if text in fixed["text"] or text in _SCATTERED:
      continue
    if "theyscold" in text:
      fixed["span2_index"] = 10
    first = words[fixed[f"{span}_index"]][0]
    start = text[0].lower() if first.islower() else text[0].upper()
    fixed[f"{span}_text"] = (start + text[1:]).rstrip(".").replace("\n", " ")
  return fixed
