"""The text and the objectives of a pre-training run, as one mixture that gin can fill.

Each objective is one task over the same text: text files (`corpora.py`) and the docstrings. The
rates say how often each is drawn. LM adaptation is the same with `rates={"prefix_lm": 1.0}`.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import corpora
from prompt_tuning.tasks.docstring_tasks import JOIN_WORDS, RUNNING_TEXT
from prompt_tuning.tasks.objectives import OBJECTIVES, Objective
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec


@dataclasses.dataclass(frozen=True)
class PretrainingText:
  """A task source: text files, then the docstrings. Rows are `{"text": ...}`.

  Attributes:
    join_words: short lines are joined up to so many words, and longer ones split.
  """

  files: Mapping[str, Sequence[str]]
  docstrings: bool
  join_words: int = JOIN_WORDS

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(split for split in ("train", "validation")
                 if self.docstrings or split in self.files)

  def rows(self, split: str) -> Iterator[dict[str, str]]:
    if split in self.files:
      yield from self._text_files().rows(split)
    if self.docstrings:
      yield from RUNNING_TEXT.rows(split)

  def fingerprint(self) -> str:
    parts = [self._text_files().fingerprint()] if self.files else []
    parts += [RUNNING_TEXT.fingerprint()] if self.docstrings else []
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

  def _text_files(self) -> corpora.TextFiles:
    return corpora.TextFiles(files=self.files, join_words=self.join_words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingMixture:
  """What a pre-training run reads.

  Attributes:
    name: of the mixture; its tasks are `<name>_<objective>`.
    files: paths or globs of training text.
    validation_files: of held-out text.
    docstrings: add the embedded docstrings, their own train and validation splits.
    rates: name of an objective (`objectives.OBJECTIVES`) -> how often it is drawn.
    objectives: name -> that objective with other settings than its defaults.
    length: tokens of a chunk before noise, where an objective has none of its own; None: what fits
      the feature lengths.
    leading_sentinel: put `<extra_id_0>` ahead of every target, for all.
    join_words: words that the files' lines are joined to; a text holds no more than that.
  """

  name: str = "pretraining"
  files: Sequence[str] = ()
  validation_files: Sequence[str] = ()
  docstrings: bool = True
  rates: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"span_corruption": 0.4, "rebuild": 0.6})
  objectives: Mapping[str, Objective] = dataclasses.field(default_factory=dict)
  length: int | None = None
  leading_sentinel: bool = False
  join_words: int = JOIN_WORDS

  def __post_init__(self):
    for field in ("files", "validation_files"):
      if isinstance(getattr(self, field), str):
        raise UserError(f"PretrainingMixture.{field} is one text", found=getattr(self, field),
                        wanted="a list of paths or globs", fix="put it in [ ]")
    for name in (*self.rates, *self.objectives):
      if name not in OBJECTIVES:
        raise UserError(f"there is no objective {name!r}", found=name,
                        wanted="one of " + ", ".join(OBJECTIVES), fix=nearest(name, OBJECTIVES))
    unused = set(self.objectives) - set(self.rates)
    if unused:
      raise UserError("PretrainingMixture.objectives has settings that nothing uses",
                      found=", ".join(sorted(unused)), wanted="objectives that rates names",
                      fix="give them a rate, or leave them out")
    if not self.files and not self.docstrings:
      raise UserError("there is nothing to pre-train on", found="no files, docstrings=False",
                      wanted="some text", fix="set files")

  def spec(self) -> MixtureSpec:
    """The mixture with its tasks, for `registry.resolve` or `table.add`."""
    files = {split: tuple(patterns) for split, patterns in
             (("train", self.files), ("validation", self.validation_files)) if patterns}
    source = PretrainingText(files=files, docstrings=self.docstrings, join_words=self.join_words)
    tasks = {}
    for label in self.rates:
      objective = self.objectives.get(label) or OBJECTIVES[label]()
      settings = {"leading_sentinel": True} if self.leading_sentinel else {}
      if self.length is not None and objective.length is None:
        settings["length"] = self.length
      tasks[f"{self.name}_{label}"] = TaskSpec(
        name=f"{self.name}_{label}", source=source, to_text=corpora.text_targets, labels=None,
        metrics=(), objective=dataclasses.replace(objective, **settings),
        description=f"{label} over the pre-training text")
    return MixtureSpec(name=self.name, tasks=tuple(tasks.values()),
                       rates={f"{self.name}_{label}": rate for label, rate in self.rates.items()})
