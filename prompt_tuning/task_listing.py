"""What `prompt-tuning tasks` shows: the table of tasks, and one task's rows and lengths.

Nothing here imports TensorFlow: texts come from the task's row, ids from the light tokenizer.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import table, vocabularies
from prompt_tuning.tasks.published import NoData
from prompt_tuning.tasks.spec import EXTRAS, UNLABELLED, MixtureSpec, Proportional, TaskSpec
from prompt_tuning.tasks.variants import Variant

PERCENTILES = (50, 90, 99, 100)
# Enough rows of a split to know its lengths by.
MAX_ROWS = 50_000
# Lengths are multiples of this, for the sake of the matrix units.
_MULTIPLE = 8
_INPUT_PERCENTILE = 99
Lengths = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Listing:
  """What `tasks NAME` is told besides the name.

  Attributes:
    name: MIXTURE_OR_TASK_NAME, what `source` makes.
    source: TASK_SOURCE, an object whose `spec()` makes a task, such as a user's files; or None.
    variant: how the task is varied.
  """

  name: str | None = None
  source: Any = None
  variant: Variant = Variant()

  def row(self, name: str) -> TaskSpec | MixtureSpec:
    """The row of the table, or what `source` makes.

    Raises:
      UserError: nothing is called that.
    """
    if self.source is None or (name != self.name and table.has(name)):
      return table.spec(name)
    if name != self.name:
      raise UserError(f"there is no task {name!r}", found=name,
                      wanted=f"{self.name}, which TASK_SOURCE makes, or a task of the table",
                      fix=nearest(name, [str(self.name), *table.names()]))
    return self.source.spec()


def list_tasks() -> None:
  """Prints every task and mixture of the table; reads no data."""
  shown = Table(title="tasks (MIXTURE_OR_TASK_NAME)", show_lines=True)
  # Three columns fit into a terminal of 80.
  shown.add_column("name", no_wrap=True)
  shown.add_column("kind, rows, metrics", overflow="fold")
  shown.add_column("description, labels, source", overflow="fold")
  for row in table.describe():
    sizes = [f"{split} {row['sizes'][split]:,}" if split in row["sizes"] else split
             for split in row["splits"]]
    how = [row["kind"], ", ".join(sizes), ", ".join(row["metrics"])]
    about = [row["description"], "labels: " + ", ".join(row["labels"]) if row["labels"] else "",
             row["source"] and f"source: {row['source']}"]
    shown.add_row(row["name"], *(escape("\n".join(filter(None, cell))) for cell in (how, about)))
  Console().print(shown)


def show_task(name: str, count: int, vocabulary: str, listing: Listing) -> None:
  """Prints examples, rows a split, lengths in tokens and the TASK_FEATURE_LENGTHS they suggest.

  Args:
    count: of the examples.
    vocabulary: as VOCABULARY.
    listing: what the configuration says.

  Raises:
    UserError: there is no such task or vocabulary, or none of its data.
  """
  row, variant = listing.row(name), listing.variant
  tokenizer = vocabularies.load_light(vocabulary)
  console = Console()
  if isinstance(row, MixtureSpec):
    if variant != Variant():
      raise UserError("Settings vary one task, and this is a mixture", found=name,
                      wanted="one of its tasks", fix="name a task, or leave the settings out")
    console.print(f"{name}: a mixture", highlight=False)
    for task, rate in row.rates.items():
      console.print(f"  {task}  {describe_rate(rate)}", highlight=False)
    return
  row = variant.apply(row)
  console.print(f"[bold]{name}[/bold]  {escape(row.description)}", highlight=False)
  if row.labels:
    console.print("labels: " + escape(", ".join(row.labels)), highlight=False)
  lengths, notes = token_lengths(row, tokenizer)
  first = next(iter(lengths))
  for number, example in enumerate(itertools.islice(row.examples(first), count), start=1):
    for feature in ("inputs", "targets", *EXTRAS):
      if feature in example:
        console.print(f"{first} {number} {feature}: {example[feature]}", highlight=False,
                      markup=False)
  _show_lengths(console, row, lengths, vocabulary)
  for note in notes:
    console.print(note, highlight=False, markup=False, soft_wrap=True)


def describe_rate(rate: float | Proportional) -> str:
  """A mixture's rate in words."""
  if not isinstance(rate, Proportional):
    return f"rate {rate:g}"
  cap = "" if rate.cap is None else f", at most {rate.cap:,}"
  root = "" if rate.temperature == 1 else f", temperature {rate.temperature:g}"
  return f"in proportion to its training examples{cap}{root}"


def token_lengths(row: TaskSpec, tokenizer: vocabularies.Tokenizer) -> tuple[Lengths, list[str]]:
  """split -> feature -> `[rows]` lengths in ids, the end of the sequence included; and notes.

  Notes say which splits are not on this machine, which rows cannot be used, and which splits were
  read in part.

  Raises:
    UserError: there is no split at all.
  """
  result: Lengths = {}
  notes: list[str] = []
  missing: UserError | None = None
  for split in row.source.splits:
    found: dict[str, list[int]] = {}
    unusable: list[str] = []
    unlabelled = 0
    try:
      for example in itertools.islice(row.examples(split, unusable), MAX_ROWS):
        unlabelled += example["targets"] == UNLABELLED
        for feature in ("inputs", "targets"):
          if feature in example:
            found.setdefault(feature, []).append(len(tokenizer.encode(example[feature])) + 1)
    except NoData as error:
      missing = missing or error
      notes.append(f"{split}: not on this machine ({error.wanted})")
      continue
    result[split] = {feature: np.array(values) for feature, values in found.items()}
    if unusable:
      notes.append(f"{split}: {len(unusable)} rows cannot be used, the first is {unusable[0]}")
    if unlabelled:
      notes.append(f"{split}: {unlabelled:,} of the examples have no published target")
    if any(len(values) == MAX_ROWS for values in found.values()):
      notes.append(f"{split}: of its first {MAX_ROWS:,} examples")
  if missing is not None and not result:
    raise missing
  return result, notes


def suggest_lengths(lengths: Lengths) -> dict[str, int]:
  """TASK_FEATURE_LENGTHS that hold 99 % of the inputs and every target, in multiples of 8."""
  wanted = {"inputs": _INPUT_PERCENTILE, "targets": 100}
  result = {}
  for feature, percentile in wanted.items():
    rows = [found[feature] for found in lengths.values() if feature in found]
    if rows:
      value = int(np.percentile(np.concatenate(rows), percentile, method="higher"))
      result[feature] = -(-value // _MULTIPLE) * _MULTIPLE
  return result


def _show_lengths(console: Console, row: TaskSpec, lengths: Lengths, vocabulary: str) -> None:
  shown = Table(title=f"tokens a row, vocabulary {vocabulary}")
  shown.add_column("split")
  shown.add_column("rows", justify="right")
  shown.add_column("feature")
  for percentile in PERCENTILES:
    shown.add_column(f"{percentile} %", justify="right")
  for split, found in lengths.items():
    for feature, values in found.items():
      at = [str(int(np.percentile(values, p, method="higher"))) for p in PERCENTILES]
      shown.add_row(split, f"{len(values):,}", feature, *at)
  console.print(shown)
  if row.objective is not None:
    console.print("A denoising task: its objective makes inputs and targets of these texts, of the "
                  "length that it is set to.", highlight=False)
    return
  suggested = suggest_lengths(lengths)
  console.print(f"suggested: --gin.TASK_FEATURE_LENGTHS=\"{suggested}\"", highlight=False,
                soft_wrap=True, markup=False)
