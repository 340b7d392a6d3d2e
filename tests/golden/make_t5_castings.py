"""Casts `casting_rows.py` with the T5 library's own preprocessors -> `t5_castings.json`.

  pip download t5==0.9.3 --no-deps && unzip t5-0.9.3-*.whl -d t5_library
  pip install babel
  python tests/golden/make_t5_castings.py t5_library

T5 registers these preprocessors with these arguments in its tasks.py and glue_utils.py. Up to 0.9.3
it puts spaces around whatever is no ASCII letter, digit or `_` in questions and contexts, as its
papers did; 0.9.4 around ASCII punctuation alone. MRQA is not T5's own: the prompt-tuning paper's
code casts it as T5 casts SQuAD.
"""

import functools
import importlib.util
import json
import pathlib
import sys

import tensorflow as tf
from casting_rows import ROWS

HERE = pathlib.Path(__file__).parent
FEATURES = {"super_glue_multirc": ("question", "answer", "paragraph"),
            "super_glue_wic": ("sentence1", "sentence2", "word")}
BENCHMARKS = {"glue_ax": "mnli", "super_glue_axb": "rte", "super_glue_axg": "rte"}
RTE, YES_NO = ["entailment", "not_entailment"], ["False", "True"]
NLI = ["entailment", "neutral", "contradiction"]
# TFDS's label_classes.
LABELS = {
  "glue_cola": ["unacceptable", "acceptable"], "glue_sst2": ["negative", "positive"],
  "glue_mrpc": ["not_equivalent", "equivalent"], "glue_qqp": ["not_duplicate", "duplicate"],
  "glue_mnli": NLI, "glue_ax": NLI, "glue_qnli": RTE, "glue_rte": RTE,
  "glue_wnli": ["not_entailment", "entailment"], "super_glue_boolq": YES_NO,
  "super_glue_cb": ["entailment", "contradiction", "neutral"],
  "super_glue_copa": ["choice1", "choice2"], "super_glue_multirc": YES_NO, "super_glue_rte": RTE,
  "super_glue_wic": YES_NO, "super_glue_axb": RTE, "super_glue_axg": RTE}
# Columns that TFDS's rows of these tasks do not have as text features.
NOT_TEXT = ("start1", "end1", "start2", "end2")


def load(folder):
  """T5's preprocessors.py alone: the package imports Mesh TensorFlow."""
  path = pathlib.Path(folder) / "t5" / "data" / "preprocessors.py"
  module = importlib.util.module_from_spec(
    found := importlib.util.spec_from_file_location("t5_preprocessors", path))
  found.loader.exec_module(module)
  return module


def preprocessor(t5, task):
  if task in LABELS:
    return functools.partial(t5.glue, benchmark_name=BENCHMARKS.get(task, task.split("_")[-1]),
                             label_names=LABELS[task], feature_names=FEATURES.get(task))
  return {"glue_stsb": t5.stsb, "super_glue_record": t5.record, "squad": t5.squad,
          "super_glue_wsc": t5.wsc_simple,
          "xsum": functools.partial(t5.summarize, article_key="document", summary_key="summary"),
          "cnn_dailymail": functools.partial(t5.summarize, article_key="article",
                                             summary_key="highlights"),
          "mrqa_newsqa": t5.squad}[task]


def dataset(task, row):
  row = {name: value for name, value in row.items() if name not in NOT_TEXT}
  if task == "mrqa_newsqa":
    row = {"id": row["qid"], "context": row["context"], "question": row["question"],
           "answers": {"text": row["answers"]}}
  if task == "super_glue_record":
    row["answers"] = tf.constant(row["answers"], tf.string)
  return tf.data.Dataset.from_tensors(row)


def text(value):
  return [text(item) for item in value] if hasattr(value, "__len__") and not isinstance(
    value, bytes | str) else value.decode() if isinstance(value, bytes) else value


def main():
  t5 = load(sys.argv[1])
  golden = {}
  for task, rows in ROWS.items():
    golden[task] = [
      [{name: text(value.tolist() if hasattr(value, "tolist") else value)
        for name, value in example.items() if name in ("inputs", "targets", "answers")}
       for example in preprocessor(t5, task)(dataset(task, row)).as_numpy_iterator()]
      for row in rows]
  (HERE / "t5_castings.json").write_text(
    json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
