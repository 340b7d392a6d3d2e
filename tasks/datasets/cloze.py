"""LAMA's TREx (Petroni et al. 2019): facts as clozes, a task a relation, `lama_trex:P19`.

The relation's template (`[X] was born in [Y] .`) becomes the input, `[X]` filled and `[Y]` a
sentinel, and the target is what fills it, as T5's span corruption has it. LAMA has one split; its
rows are put into a fixed random order and cut 40, 10 and 50 in 100.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks.published import Published
from prompt_tuning.tasks.readers import Row as RawRow
from prompt_tuning.tasks.readers import json_lines
from prompt_tuning.tasks.slices import Cut, Reordered
from prompt_tuning.tasks.spec import Example, Row, TaskSpec, Unusable

NAME = "lama_trex"
BLANK = "<extra_id_0>"
RELATIONS = tuple("P1001 P101 P103 P106 P108 P127 P1303 P131 P136 P1376 P138 P140 P1412 P159 P17 "
                  "P176 P178 P19 P190 P20 P264 P27 P276 P279 P30 P31 P36 P361 P364 P37 P39 P407 "
                  "P413 P449 P463 P47 P495 P527 P530 P740 P937".split())


@dataclasses.dataclass(frozen=True)
class Facts:
  """Rows of a relation's file, each with the relation's template (of `relations.jsonl`)."""

  relation: str

  def __call__(self, path: pathlib.Path) -> Iterator[RawRow]:
    if path.name.startswith("relations"):
      return
    folder = path.parent.parent
    relations = next((file for file in (folder / "relations.jsonl", folder / "relations.jsonl.gz")
                      if file.is_file()), folder / "relations.jsonl")
    templates = {values["relation"]: values["template"] for _, values in json_lines(relations)
                 if "relation" in values}
    if self.relation not in templates:
      raise UserError(f"{relations} has no template for {self.relation}",
                      found=", ".join(sorted(templates)[:8]), wanted=self.relation,
                      fix="get LAMA's own relations.jsonl")
    for where, values in json_lines(path):
      yield {**values, "template": templates[self.relation], "where": where}


def fill(row: Row) -> Example:
  """A fact -> `Dante was born in <extra_id_0> .` and `Florence`."""
  template = row["template"]
  if "[X]" not in template or "[Y]" not in template:
    raise Unusable(f"column 'template': {template!r} lacks [X] or [Y]")
  return {"inputs": template.replace("[X]", row["sub_label"]).replace("[Y]", BLANK),
          "targets": row["obj_label"]}


def spec(name: str) -> TaskSpec:
  """The task of a relation.

  Args:
    name: `lama_trex:P19`.

  Raises:
    UserError: there is no such relation.
  """
  relation = name.partition(":")[2]
  if relation not in RELATIONS:
    raise UserError(f"{NAME} needs one of its relations", found=repr(name),
                    wanted=f"{NAME}:P19, for one", fix=nearest(relation, RELATIONS))
  source = Published(
    files={"all": (f"lama/relations.jsonl+lama/TREx/{relation}.jsonl",)}, read=Facts(relation),
    download="get LAMA's data.zip (github.com/facebookresearch/LAMA) and unpack its data folder as "
             "DATA_DIR/lama")
  return TaskSpec(name=name, to_text=fill, labels=None, metrics=("accuracy",),
                  source=Cut(Reordered(source), {"train": "all[:40%]", "validation": "all[40%:50%]",
                                                 "test": "all[50%:]"}),
                  description=f"facts of relation {relation}, as clozes")
