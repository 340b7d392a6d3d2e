"""Prompt design: a frozen model, templates and solved examples; nothing is trained.

Every template, verbaliser, number of examples, way to choose them and seed is a cell of a grid;
each keeps its own result, because the spread between them is what prompt design costs. A class is
chosen by the log-likelihood of its word (Brown et al. 2020, arXiv 2005.14165, section 2.4):

  plain       summed over the word's tokens, the end of sequence included
  normalised  divided by their number
  calibrated  minus the log of its share when the question has no content ("N/A", "[MASK]", nothing;
              the mean of the shares), with the same examples (Zhao et al. 2021, arXiv 2102.09690)
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning import labelled_rows, scoring
from prompt_tuning.cells import Cells, Row
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.discrete import contexts
from prompt_tuning.discrete.contexts import Context
from prompt_tuning.discrete.templates import Answers, Pattern, answers
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.run_dir import describe
from prompt_tuning.tasks import few_shot
from prompt_tuning.trees import Split

SCORINGS = ("plain", "normalised", "calibrated")
CONTENT_FREE = ("N/A", "[MASK]", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesignConfig:
  """A grid of hard prompts.

  Attributes:
    model: without a prompt.
    task: with labels; examples come from its training split.
    model_dir: MODEL_DIR.
    templates: TEMPLATES, texts with `{inputs}` and `{targets}`.
    verbalizers: VERBALIZERS, dictionaries from label to word; None: the labels as they are.
    sentinel: SENTINEL, for models of span corruption (`templates.py`).
    shots: SHOTS, numbers of examples.
    choices: CHOICES, how they are chosen: `random`, `balanced`, `nearest`.
    seeds: SEEDS, of the pool and of what is drawn from it.
    separator: SEPARATOR, behind each example.
    content_free: CONTENT_FREE, questions without content.
    pool_rows: POOL_ROWS, training rows that examples are chosen from, drawn by the seed.
    split, max_examples, batch_size: SPLIT, MAX_EXAMPLES, BATCH_SIZE; what is classified.
  """

  model: ModelConfig
  task: TaskConfig
  model_dir: str
  templates: tuple[str, ...]
  verbalizers: tuple[Mapping[str, str], ...] | None = None
  sentinel: bool = False
  shots: tuple[int, ...] = (0, 4)
  choices: tuple[str, ...] = contexts.CHOICES
  seeds: tuple[int, ...] = (0, 1, 2)
  separator: str = " "
  content_free: tuple[str, ...] = CONTENT_FREE
  pool_rows: int = 1000
  split: str = "validation"
  max_examples: int | None = None
  batch_size: int = 64

  def __post_init__(self):
    for name in ("templates", "shots", "choices", "seeds", "content_free", "verbalizers"):
      value = getattr(self, name)
      if value is None and name == "verbalizers":
        continue
      if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{name.upper()} is not a list", found=repr(value),
                        wanted="a list of one or more", fix=f"put it in [ ]: --gin.{name.upper()}")
      object.__setattr__(self, name, tuple(value))
    for template in self.templates:
      Pattern(template, self.sentinel)
    for how in self.choices:
      if how not in contexts.CHOICES:
        raise UserError("CHOICES has an unknown way to choose examples", found=repr(how),
                        wanted="of " + ", ".join(contexts.CHOICES),
                        fix=nearest(str(how), contexts.CHOICES))
    for name, least in (("shots", 0), ("seeds", 0)):
      for value in getattr(self, name):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
          raise UserError(f"{name.upper()} holds something that is not a number",
                          found=repr(value), wanted=f"whole numbers, {least} or more",
                          fix=f"--gin.{name.upper()}=\"[0, 4]\"")
    if self.model.prompt is not None:
      raise UserError("Prompt design asks the model as it is",
                      found=type(self.model.prompt).__name__, wanted="no prompt method",
                      fix="leave the file of prompts/ out")


@dataclasses.dataclass(frozen=True)
class Cell:
  """One hard prompt. `choice` and `seed` are None without examples, which nothing then draws."""

  template: str
  verbalizer: int
  shots: int
  choice: str | None
  seed: int | None


def cells_of(config: DesignConfig) -> Iterator[Cell]:
  """The grid; without examples one cell a template and verbaliser."""
  numbers = range(len(config.verbalizers or (None,)))
  for template, number, shots in itertools.product(config.templates, numbers, config.shots):
    drawn = itertools.product(config.choices, config.seeds) if shots else [(None, None)]
    for choice, seed in drawn:
      yield Cell(template, number, shots, choice, seed)


def predictions(scores: np.ndarray, lengths: np.ndarray,
                content_free: np.ndarray) -> dict[str, np.ndarray]:
  """The class that each way of scoring chooses.

  Args:
    scores: `[n, C]` log-likelihoods.
    lengths: `[C]` tokens that were scored.
    content_free: `[n, F, C]` log-likelihoods of F questions without content.
  """
  shares = content_free - np.logaddexp.reduce(content_free, axis=-1, keepdims=True)
  mean = np.logaddexp.reduce(shares, axis=1) - np.log(shares.shape[1])
  found = {"plain": scores, "normalised": scores / lengths, "calibrated": scores - mean}
  return {name: values.argmax(axis=1) for name, values in found.items()}


class Designer:
  """What the cells of one run share; `cell` measures one."""

  def __init__(self, config: DesignConfig):
    """Reads the data and checks what needs no weights."""
    self.config = config
    config.model.check()
    self._tokenizer = config.model.tokenizer()
    self.rows = labelled_rows.read(config.task, config.model.vocabulary, config.split,
                                   config.max_examples)
    self._pools: dict[int, labelled_rows.LabelledRows] = {}
    self._length = config.task.feature_lengths["inputs"]
    self._answers = [answers(self.rows.labels, words, self._tokenizer, config.sentinel)
                     for words in config.verbalizers or (None,)]
    longest = max(found.ids.shape[1] for found in self._answers)
    if longest > config.task.feature_lengths["targets"]:
      raise UserError("A verbaliser's word is longer than the targets", found=f"{longest} tokens",
                      wanted=f"at most {config.task.feature_lengths['targets']}",
                      fix=f"raise TASK_FEATURE_LENGTHS['targets'] to {longest}")
    for template in config.templates:
      self._check_questions(Pattern(template, config.sentinel))
    self._params: Any = None

  def load(self, seed: int = 0) -> str:
    """Loads the backbone; its fingerprint."""
    backbone = self.config.model.load_backbone(seed)
    self._params = {"backbone": backbone}
    self._table = np.asarray(backbone["token_embedder"]["embedding"], np.float32)
    return backbone_files.fingerprint(backbone)

  def majority(self) -> float:
    """Accuracy of the most frequent class."""
    return float(np.bincount(self.rows.classes).max() / len(self.rows))

  def cell(self, cell: Cell) -> list[Row]:
    """A row for each way of scoring."""
    pattern = Pattern(cell.template, self.config.sentinel)
    words = self._answers[cell.verbalizer]
    made = self.contexts(cell, self.rows.texts, self.rows.ids)
    bare = self._without_content(cell, pattern, made)
    scores = self._scores([each.ids for each in made], words)
    free = self._scores(bare, words).reshape(len(made), -1, len(words.words))
    results = []
    for name, chosen in predictions(scores, words.lengths, free).items():
      counts = np.bincount(chosen, minlength=len(words.words))
      results.append({
        "template": cell.template, "words": " / ".join(words.words), "shots": cell.shots,
        "choice": cell.choice or "", "seed": "" if cell.seed is None else cell.seed,
        "scoring": name, "accuracy": float((chosen == self.rows.classes).mean()),
        "largest_class": float(counts.max() / len(made)), "rows": len(made),
        "examples": float(np.mean([len(each.examples) for each in made])),
        "left_out": sum(each.left_out for each in made),
        "long_questions": sum(each.is_long for each in made)})
    return results

  def contexts(self, cell: Cell, texts: Sequence[str], ids: Sequence[np.ndarray]) -> list[Context]:
    """The whole input of each question."""
    pattern = Pattern(cell.template, self.config.sentinel)
    encode, end = self._tokenizer.encode, self._tokenizer.eos_id
    chosen = np.zeros((len(texts), 0), int)
    examples: dict[int, np.ndarray] = {}
    if cell.shots:
      assert cell.seed is not None and cell.choice is not None
      pool = self._pool(cell.seed)
      if cell.choice == "nearest":
        chosen = contexts.nearest(contexts.mean_embeddings(ids, self._table),
                                  contexts.mean_embeddings(pool.ids, self._table), cell.shots)
      else:
        one = few_shot.fixed(cell.choice, cell.shots, pool.classes, cell.seed)
        chosen = np.tile(one, (len(texts), 1))
      words = self._answers[cell.verbalizer].words
      examples = {row: np.array(encode(pattern.example(
        pool.texts[row], words[pool.classes[row]]) + self.config.separator), np.int32)
        for row in np.unique(chosen).tolist()}
    return [contexts.fit([examples[row] for row in rows], rows,
                         np.array(encode(pattern.question(text)), np.int32), end, self._length)
            for text, rows in zip(texts, chosen.tolist(), strict=True)]

  def _without_content(self, cell: Cell, pattern: Pattern,
                       made: Sequence[Context]) -> list[np.ndarray]:
    """Every context again, F times, with a question without content."""
    asked = [np.array([*self._tokenizer.encode(pattern.question(text)), self._tokenizer.eos_id],
                      np.int32) for text in self.config.content_free]
    bare = []
    for context, text in zip(made, self.rows.texts, strict=True):
      question = len(self._tokenizer.encode(pattern.question(text))) + 1
      ahead = context.ids[:max(len(context.ids) - question, 0)]
      bare += [np.concatenate([ahead, ids]) for ids in asked]
    return bare

  def _scores(self, inputs: Sequence[np.ndarray], words: Answers) -> np.ndarray:
    """`[n, C]`; equal inputs are computed once."""
    # A question without content may be longer than one with.
    width = max(self._length, max(map(len, inputs)))
    numbers: dict[bytes, int] = {}
    place = [numbers.setdefault(ids.tobytes(), len(numbers)) for ids in inputs]
    unique = [np.frombuffer(key, np.int32) for key in numbers]
    size = self.config.batch_size
    tokens = np.zeros((-(-len(unique) // size) * size, width), np.int32)
    for out, ids in zip(tokens, unique, strict=False):
      out[:len(ids)] = ids
    model = self.config.model.module()
    found = [np.asarray(scoring.call({}, self._params, Split({}), model, scoring.label_scores,
                                     tokens[i:i + size], words.ids, given=words.given))
             for i in range(0, len(tokens), size)]
    return np.concatenate(found)[place].astype(np.float64)

  def _pool(self, seed: int) -> labelled_rows.LabelledRows:
    if seed not in self._pools:
      self._pools[seed] = labelled_rows.read(
        self.config.task, self.config.model.vocabulary, "train", self.config.pool_rows, seed)
    return self._pools[seed]

  def _check_questions(self, pattern: Pattern) -> None:
    lengths = np.array([len(self._tokenizer.encode(pattern.question(text))) + 1
                        for text in self.rows.texts])
    long = int((lengths > self._length).sum())
    if long > self.config.task.max_truncated_inputs * len(lengths):
      raise UserError(f"Too many questions are longer than {self._length} tokens",
                      found=f"{long} of {len(lengths)} with {pattern.text!r} would lose their end; "
                      f"the longest has {lengths.max()}",
                      wanted=f"at most {self.config.task.max_truncated_inputs:.2%} of them "
                      "(MAX_TRUNCATED_INPUTS)",
                      fix="raise TASK_FEATURE_LENGTHS['inputs'] to "
                      f"{-(-int(lengths.max()) // 8) * 8}, or MAX_TRUNCATED_INPUTS")


def design(config: DesignConfig, config_text: str) -> tuple[list[Row], float]:
  """Measures every cell that is not done yet; the rows of all, and the majority's accuracy."""
  designer = Designer(config)
  grid = Cells(config.model_dir, describe(config), config_text, designer.rows.fingerprint)
  fingerprint = designer.load()
  grid.run.check_backbone(config.model.initial_checkpoint_path, fingerprint)
  about: dict[str, Any] = {"task": config.task.name, "backbone": {
    "from": config.model.initial_checkpoint_path, "fingerprint": fingerprint},
    "majority": designer.majority()}
  grid.run.write_summary(about)
  for cell in cells_of(config):
    name = repr(dataclasses.astuple(cell))
    if name not in grid:
      rows = designer.cell(cell)
      grid.add(name, rows, {f"accuracy_{row['scoring']}": row["accuracy"] for row in rows},
               config.split)
  grid.write("spread.csv", spread(grid.rows))
  grid.finish({**about, "spread": spread(grid.rows)}, 0)
  return grid.rows, designer.majority()


def spread(rows: Sequence[Row]) -> list[Row]:
  """Over templates, verbalisers and seeds: a row for each number of examples, choice and scoring.

  `sd` is the sample standard deviation, empty for a single prompt.
  """
  groups: dict[tuple, list[Row]] = {}
  for row in rows:
    groups.setdefault((row["shots"], row["choice"], row["scoring"]), []).append(row)
  table = []
  for (shots, choice, name), members in sorted(groups.items()):
    values = np.array([row["accuracy"] for row in members])
    best = members[int(values.argmax())]
    table.append({"shots": shots, "choice": choice, "scoring": name, "prompts": len(values),
                  "mean": float(values.mean()),
                  "sd": float(values.std(ddof=1)) if len(values) > 1 else "",
                  "worst": float(values.min()), "best": float(values.max()),
                  "best_template": best["template"], "best_words": best["words"],
                  "examples": float(np.mean([row["examples"] for row in members])),
                  "left_out": sum(row["left_out"] for row in members)})
  return table
