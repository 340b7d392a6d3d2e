"""`prompt-tuning inspect`: what the vectors of prompts are near to, as text, CSV and figures.

The measures are in `prompt_measures.py`, what can be looked at in `prompt_reading.py`.
"""

import csv
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning import prompt_measures as measures
from prompt_tuning.errors import UserError
from prompt_tuning.prompt_reading import ReadPrompt, read
from prompt_tuning.run_config import RANDOM, ModelConfig
from prompt_tuning.tasks.vocabularies import Tokenizer
from prompt_tuning.transfer import cosines, similarity, write_matrix

Rows = list[tuple]
_COLUMNS = {
  "words": ("prompt", "vector", "norm", "rank", "word", "cosine"),
  "clusters": ("prompt", "vector", "cluster", "nearest"),
  "labels": ("prompt", *(f.name for f in dataclasses.fields(measures.LabelReading))),
  "pairs": ("first", "second", "same_task",
            *(f.name for f in dataclasses.fields(measures.PairReading)))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looking:
  """Attributes:
    words: K nearest words a vector.
    clusters: groups of a prompt's vectors.
    labels: class labels to look for; None: those that a run started from.
    output_dir: where CSV files and figures go; None: nowhere.
  """

  words: int = 5
  clusters: int = 5
  labels: tuple[str, ...] | None = None
  output_dir: str | None = None

  def __post_init__(self):
    for name in ("words", "clusters"):
      if getattr(self, name) < 1:
        raise UserError(f"--{name} is not a count", found=getattr(self, name), wanted="1 or more",
                        fix=f"--{name} 5")
    if self.output_dir is not None and pathlib.Path(self.output_dir).is_file():
      raise UserError("--output_dir is a file", found=self.output_dir, wanted="a folder",
                      fix="give another --output_dir")


def inspect(config: ModelConfig, paths: Sequence[str], looking: Looking,
            config_of: Callable[[pathlib.Path], ModelConfig]) -> None:
  """Prints the tables of every prompt, then what they have in common; writes files.

  Args:
    config: of the backbone.
    paths: prompt files or MODEL_DIRs.
    config_of: the model of a run.

  Raises:
    UserError: a prompt that is none, or of another width; a backbone without weights.
  """
  if config.initial_checkpoint_path == RANDOM:
    raise UserError("Words near a prompt need the backbone's weights",
                    found="INITIAL_CHECKPOINT_PATH = 'random'",
                    wanted="the checkpoint the prompt was trained with",
                    fix="use models/tiny.gin, or give --gin.INITIAL_CHECKPOINT_PATH")
  tokenizer = config.tokenizer()
  for label in looking.labels or ():
    if not tokenizer.encode(label):
      raise UserError("A label has no tokens", found=repr(label), wanted="a word",
                      fix="correct --labels")
  # A file that does not exist is known before any weight is read.
  for path in paths:
    if not pathlib.Path(path).exists():
      read(path, np.zeros((1, config.backbone.emb_dim), np.float32), config_of)
  table = np.asarray(config.load_backbone(0)["token_embedder"]["embedding"], np.float32)
  # Rows above the vocabulary only pad the table: they stand for no word.
  table = table[:tokenizer.vocab_size]
  prompts = [prompt for path in paths for prompt in read(path, table, config_of)]
  console, rows = Console(), {name: [] for name in _COLUMNS}
  for prompt in prompts:
    _look_at(prompt, table, tokenizer, looking, console, rows)
  norm = np.linalg.norm(table, axis=1)
  console.print(f"norm of the vocabulary's vectors: mean {norm.mean():.2f}, "
                f"least {norm.min():.2f}, most {norm.max():.2f}", highlight=False)
  several = len(prompts) > 1
  values = [prompt.values for prompt in prompts]
  matrix = similarity(values) if several else cosines(values[0])
  names = [p.name for p in prompts] if several else [str(i) for i in range(len(values[0]))]
  if several:
    _compare(prompts, table, looking, console, rows, matrix)
  if looking.output_dir is not None:
    _write(pathlib.Path(looking.output_dir), rows, matrix, names, prompts)


def _look_at(prompt: ReadPrompt, table: np.ndarray, tokenizer: Tokenizer, looking: Looking,
             console: Console, rows: dict[str, Rows]) -> None:
  near = measures.nearest_words(prompt.values, table, tokenizer.piece, looking.words)
  norms = np.linalg.norm(prompt.values, axis=1)
  groups = measures.clusters(prompt.values, looking.clusters)
  shown = Table(title=escape(f"nearest words (cosine) of {prompt.name}"))
  for column in ("vector", "norm", "cluster"):
    shown.add_column(column, justify="right")
  shown.add_column("words")
  for i, (norm, words, group) in enumerate(zip(norms, near, groups, strict=True)):
    shown.add_row(str(i), f"{norm:.2f}", str(group),
                  escape(", ".join(f"{word} {cosine:.2f}" for word, cosine in words)))
    rows["clusters"].append((prompt.name, i, int(group), words[0][0]))
    rows["words"] += [(prompt.name, i, float(norm), rank, word, cosine)
                      for rank, (word, cosine) in enumerate(words, start=1)]
  console.print(shown)
  console.print(_cluster_table(prompt, groups, table, tokenizer, looking.words))
  if looking.words > 1:
    own, drawn = measures.cohesion(prompt.values, table, looking.words)
    console.print(f"the {looking.words} nearest words of a vector have a mean cosine of {own:.2f} "
                  f"with each other; {looking.words} words drawn at random {drawn:.2f}",
                  highlight=False)
  labels = looking.labels or prompt.labels
  if labels:
    found = measures.label_readings(prompt.values, table, labels, tokenizer.encode)
    rows["labels"] += [(prompt.name, *dataclasses.astuple(each)) for each in found]
    console.print(_label_table(prompt, found))


def _cluster_table(prompt: ReadPrompt, groups: np.ndarray, table: np.ndarray,
                   tokenizer: Tokenizer, words: int) -> Table:
  shown = Table(title=escape(f"clusters of the vectors of {prompt.name}"))
  for column in ("cluster", "vectors", "mean cosine"):
    shown.add_column(column, justify="right")
  shown.add_column("words nearest to the middle")
  for group in range(groups.max() + 1):
    members = prompt.values[groups == group]
    pairs = np.triu_indices(len(members), 1)
    inner = f"{cosines(members)[pairs].mean():.2f}" if len(members) > 1 else ""
    middle, = measures.nearest_words(members.mean(axis=0, keepdims=True), table, tokenizer.piece,
                                     words)
    shown.add_row(str(group), str(len(members)), inner, escape(", ".join(w for w, _ in middle)))
  return shown


def _label_table(prompt: ReadPrompt, found: Sequence[measures.LabelReading]) -> Table:
  shown = Table(title=escape(f"class labels in {prompt.name}"), caption="rank 1: no word is nearer")
  shown.add_column("label")
  for column in ("own vector", "cosine", "rank", "best vector", "cosine", "rank"):
    shown.add_column(column, justify="right")
  for each in found:
    own = ("", "", "") if each.row is None else (
      str(each.row), f"{each.row_cosine:.2f}", str(each.row_rank))
    shown.add_row(escape(each.label), *own, str(each.best_row), f"{each.best_cosine:.2f}",
                  str(each.best_rank))
  return shown


def _compare(prompts: Sequence[ReadPrompt], table: np.ndarray, looking: Looking, console: Console,
             rows: dict[str, Rows], matrix: np.ndarray) -> None:
  """Similarity of all prompts; and pairs of one task (seeds) beside pairs of two."""
  shown = Table(title="similarity of prompts (cosine of their means)")
  shown.add_column("prompt")
  for number in range(1, len(prompts) + 1):
    shown.add_column(str(number), justify="right")
  for number, (prompt, row) in enumerate(zip(prompts, matrix, strict=True), start=1):
    shown.add_row(escape(f"{number} {prompt.name}"), *(f"{value:.3f}" for value in row))
  console.print(shown)
  groups: dict[str, list[measures.PairReading]] = {}
  for first, second in itertools.combinations(prompts, 2):
    found = measures.pair_reading(first.values, second.values, table, looking.words)
    known = first.task and second.task
    same = "" if not known else "same task" if first.task == second.task else "different tasks"
    rows["pairs"].append((first.name, second.name, same, *dataclasses.astuple(found)))
    groups.setdefault(same or "task unknown", []).append(found)
  shown = Table(title="pairs of prompts, mean")
  shown.add_column("")
  names = [field.name for field in dataclasses.fields(measures.PairReading)]
  for column in ("pairs", *names):
    shown.add_column(column.replace("_", " "), justify="right")
  for group, pairs in sorted(groups.items()):
    shown.add_row(group, str(len(pairs)), *(_mean([getattr(p, name) for p in pairs])
                                            for name in names))
  console.print(shown)


def _mean(values: Sequence[float | None]) -> str:
  known = [value for value in values if value is not None]
  return f"{np.mean(known):.3f}" if known else ""


def _write(folder: pathlib.Path, rows: dict[str, Rows], matrix: np.ndarray, names: Sequence[str],
           prompts: Sequence[ReadPrompt]) -> None:
  from prompt_tuning.plots import draw_heat_map  # matplotlib is slow to import.
  from prompt_tuning.prompt_figures import draw_clusters
  folder.mkdir(parents=True, exist_ok=True)
  written = []
  for name, content in rows.items():
    if content:
      with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS[name])
        writer.writerows(content)
      written.append(f"{name}.csv")
  write_matrix(folder / "similarity.csv", matrix, names)
  draw_heat_map(matrix, names, folder / "similarity.png")
  for number, prompt in enumerate(prompts, start=1):
    own = [row for row in rows["clusters"] if row[0] == prompt.name]
    stem = re.sub(r"[^A-Za-z0-9]+", "_", pathlib.Path(prompt.name).stem).strip("_")
    name = f"clusters_{number}_{stem}.png"
    draw_clusters(measures.principal_components(prompt.values), [row[2] for row in own],
                  [row[3] for row in own], folder / name)
    written.append(name)
  print(f"Wrote {', '.join(written)}, similarity.csv and similarity.png to {folder}.")
