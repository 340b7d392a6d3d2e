"""Raw rows in TFDS's form, one or more a task, whose castings `t5_castings.json` holds."""

PARAGRAPH = ("<b>Sent 1: </b>Ana baked bread.<br><b>Sent 2: </b>It was too hot to eat, so she "
             "waited &amp; slept.<br>")
PASSAGE = ("Kim met Lee in Oslo\n@highlight\nLee left early.\n@highlight\nKim stayed\n@highlight\n"
           "\"It rained\"\n@highlight\nAll was well")
PONY = ("The boy continued to whip the pony , and eventually the pony threw him over. John laughed "
        "out quite loud. \"Good for him,\" he said. ")
PEBBLE = ("When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the "
          "magic pebble in an iron safe . Some day they might want to use it , but really for now, "
          "what more could they wish for?")


def _pair(first, second, labels, texts=("A \"cat\" sat.", "Nothing sat; café.")):
  return [{first: texts[0], second: texts[1], "label": label, "idx": i}
          for i, label in enumerate(labels)]


def _wsc(text, span1, span2, index, label, idx):
  return {"text": text, "span1_text": span1, "span1_index": 0, "span2_text": span2,
          "span2_index": index, "label": label, "idx": idx}


ROWS = {
  "glue_cola": [{"sentence": "They drank the pub.", "label": label, "idx": 0}
                for label in (0, 1, -1)],
  "glue_sst2": [{"sentence": "it 's a charming journey . ", "label": label, "idx": 3}
                for label in (0, 1)],
  "glue_mrpc": _pair("sentence1", "sentence2", (0, 1)),
  "glue_qqp": _pair("question1", "question2", (0, 1), ("How so?", "Why not?")),
  "glue_stsb": [{"sentence1": "Big news.", "sentence2": "No idea.", "label": label, "idx": 1}
                for label in (0.0, 1.66, 2.8, 3.3, 4.9, 5.0)],
  "glue_mnli": _pair("premise", "hypothesis", (0, 1, 2, -1)),
  "glue_qnli": _pair("question", "sentence", (0, 1)),
  "glue_rte": _pair("sentence1", "sentence2", (0, 1)),
  "glue_wnli": _pair("sentence1", "sentence2", (0, 1)),
  "glue_ax": _pair("premise", "hypothesis", (-1,)),
  "super_glue_boolq": _pair("passage", "question", (0, 1, -1)),
  "super_glue_cb": _pair("premise", "hypothesis", (0, 1, 2)),
  "super_glue_copa": [{"premise": "It rained.", "choice1": "She got wet.", "choice2": "It was dry.",
                       "question": "effect", "label": label, "idx": 0} for label in (0, 1)],
  "super_glue_multirc": [{"paragraph": PARAGRAPH, "question": "Why did she wait?",
                          "answer": "<b>Heat</b>", "label": label,
                          "idx": {"paragraph": 5, "question": 1, "answer": label}}
                         for label in (0, 1)],
  "super_glue_record": [
    {"passage": PASSAGE, "query": "@placeholder stayed", "entities": ["Kim", "Lee", "Oslo"],
     "answers": answers, "idx": {"passage": 2, "query": 7}} for answers in (["Kim"], [])],
  "super_glue_rte": _pair("premise", "hypothesis", (0, 1)),
  "super_glue_wic": [{"word": "class", "sentence1": "A class act.", "sentence2": "The class left.",
                      "start1": 2, "end1": 7, "start2": 4, "end2": 9, "label": label, "idx": 0}
                     for label in (0, 1)],
  "super_glue_wsc": [
    _wsc("Mitchell asked Tom if he could lend some money.", "Tom", "he", 4, 1, 0),
    _wsc("Ana asked (Eve) whether X or (she) was meant. X was.", "Ana", "(she)", 6, 0, 1),
    _wsc(PONY, "The boy", "him", 18, 0, 2), _wsc(PEBBLE, "the magic pebble", "it", 25, 1, 3)],
  "super_glue_axb": _pair("premise", "hypothesis", (0, 1)),
  "super_glue_axg": _pair("premise", "hypothesis", (0, 1)),
  "squad": [{"id": "a", "title": "T", "context": "St. Paul's was (re)built   1675–1710 in café_2.",
             "question": "When's it?",
             "answers": {"text": ["1675–1710", "1675"], "answer_start": [27, 27]}}],
  "mrqa_newsqa": [{"qid": "q", "context": "[TLE] A day [PAR] Kim's\tday\nwas 5°C.",
                   "question": "How cold?", "answers": ["5°C", "5"]}],
  "cnn_dailymail": [{"article": "News  came.\nIt went.", "highlights": "News came .\nIt went ."}],
  "xsum": [{"document": "A long day.\nIt ended.", "summary": "A day.", "id": "1"}],
}
