"""What `prompt-tuning tasks` shows: the table of tasks, and one task's rows and lengths.

Nothing here imports TensorFlow: texts come from the task's row, ids from the light tokenizer.
"""

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning.tasks import table, vocabularies
from prompt_tuning.tasks.spec import MixtureSpec, Proportional, TaskSpec

PERCENTILES = (50, 90, 99, 100)
# Lengths are multiples of this, for the sake of the matrix units.
_MULTIPLE = 8
_INPUT_PERCENTILE = 99


def list_tasks() -> None:
  """Prints every task and mixture of the table; reads no data."""
  shown = Table(title="tasks (MIXTURE_OR_TASK_NAME)", show_lines=True)
  # Three columns fit into a terminal of 80.
  shown.add_column("name", no_wrap=True)
  shown.add_column("kind, splits, metrics")
  shown.add_column("description, labels")
  for row in table.describe():
    how = [row["kind"], ", ".join(row["splits"]), ", ".join(row["metrics"])]
    about = [row["description"], "labels: " + ", ".join(row["labels"]) if row["labels"] else ""]
    shown.add_row(row["name"], *(escape("\n".join(filter(None, cell))) for cell in (how, about)))
  Console().print(shown)


def show_task(name: str, count: int, vocabulary: str) -> None:
  """Prints examples, rows a split, lengths in tokens and the TASK_FEATURE_LENGTHS they suggest.

  Args:
    count: of the examples.
    vocabulary: as VOCABULARY.

  Raises:
    UserError: there is no such task or vocabulary.
  """
  row = table.spec(name)
  tokenizer = vocabularies.load_light(vocabulary)
  console = Console()
  if isinstance(row, MixtureSpec):
    console.print(f"{name}: a mixture", highlight=False)
    for task, rate in row.rates.items():
      console.print(f"  {task}  {describe_rate(rate)}", highlight=False)
    return
  console.print(f"[bold]{name}[/bold]  {escape(row.description)}", highlight=False)
  if row.labels:
    console.print("labels: " + escape(", ".join(row.labels)), highlight=False)
  first = row.source.splits[0]
  for number, example in enumerate(table.examples(name, first, count), start=1):
    for feature, text in example.items():
      if feature in ("inputs", "targets"):
        console.print(f"{first} {number} {feature}: {text}", highlight=False, markup=False)
  lengths = token_lengths(row, tokenizer)
  _show_lengths(console, row, lengths, vocabulary)


def describe_rate(rate: float | Proportional) -> str:
  """A mixture's rate in words."""
  if not isinstance(rate, Proportional):
    return f"rate {rate:g}"
  cap = "" if rate.cap is None else f", at most {rate.cap:,}"
  root = "" if rate.temperature == 1 else f", temperature {rate.temperature:g}"
  return f"in proportion to its training examples{cap}{root}"


def token_lengths(row: TaskSpec, tokenizer: vocabularies.Tokenizer,
                  ) -> dict[str, dict[str, np.ndarray]]:
  """split -> feature -> `[rows]` lengths in ids, the end of the sequence included."""
  result = {}
  for split in row.source.splits:
    found: dict[str, list[int]] = {}
    for example in row.examples(split):
      for feature, text in example.items():
        if feature in ("inputs", "targets"):
          found.setdefault(feature, []).append(len(tokenizer.encode(text)) + 1)
    result[split] = {feature: np.array(values) for feature, values in found.items()}
  return result


def suggest_lengths(lengths: dict[str, dict[str, np.ndarray]]) -> dict[str, int]:
  """TASK_FEATURE_LENGTHS that hold 99 % of the inputs and every target, in multiples of 8."""
  wanted = {"inputs": _INPUT_PERCENTILE, "targets": 100}
  result = {}
  for feature, percentile in wanted.items():
    rows = [found[feature] for found in lengths.values() if feature in found]
    if rows:
      value = int(np.percentile(np.concatenate(rows), percentile, method="higher"))
      result[feature] = -(-value // _MULTIPLE) * _MULTIPLE
  return result


def _show_lengths(console: Console, row: TaskSpec, lengths: dict[str, dict[str, np.ndarray]],
                  vocabulary: str) -> None:
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
