"""Prompt transfer (SPoT, Vu et al. 2022, arXiv 2110.07904): which prompt to start a new task from.

  1. Train prompts for source tasks, and one for the target task for a short while: its embedding.
  2. `similarity` of prompts (section 3.3): `mean`, the cosine of the mean vectors, or `per_token`,
     the mean of the cosines of all pairs of vectors.
  3. Start the target's prompt from the most similar source, or from the average of the k most
     similar ones, weighted by similarity (section 3.4).
"""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning.checkpoints import prompt_files, run_prompts
from prompt_tuning.errors import UserError, nearest

MEASURES = ("mean", "per_token")
# A vector of norm 0 has no direction: its cosine with anything is 0.
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class NamedPrompt:
  """Attributes:
    name: the task of a run, or the file's name.
    path: of the file.
    values: `[P, D]` float32.
  """

  name: str
  path: str
  values: np.ndarray


def cosines(rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
  """`[N, D]`, `[M, D]` (None: the same) -> `[N, M]`."""
  unit = _unit(rows)
  return unit @ (unit if others is None else _unit(others)).T


def similarity(prompts: Sequence[np.ndarray], measure: str = "mean") -> np.ndarray:
  """N prompts `[P_n, D]` -> `[N, N]`.

  Args:
    measure: `mean`, cosine of the mean vectors; `per_token`, mean cosine of all pairs of vectors.
  """
  if measure not in MEASURES:
    raise UserError("There is no such measure of similarity", found=repr(measure),
                    wanted=" or ".join(MEASURES), fix=nearest(str(measure), MEASURES))
  prompts = [np.asarray(prompt, np.float64) for prompt in prompts]
  if measure == "mean":
    return cosines(np.stack([prompt.mean(axis=0) for prompt in prompts]))
  # The mean over all pairs of unit vectors is the product of the mean unit vectors.
  means = np.stack([_unit(prompt).mean(axis=0) for prompt in prompts])
  return means @ means.T


def ranking(target: np.ndarray, sources: Sequence[np.ndarray], measure: str) -> np.ndarray:
  """`[M]` similarities of the sources to the target."""
  return similarity([target, *sources], measure)[0, 1:]


def average(prompts: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
  """`[P, D]`: the prompts weighted by similarity, the weights divided by their sum.

  Raises:
    UserError: the prompts differ in length; a similarity is not above 0.
  """
  shapes = {prompt.shape for prompt in prompts}
  if len(shapes) > 1:
    raise UserError("Prompts of different shapes have no average",
                    found=", ".join(map(str, sorted(shapes))), wanted="one shape [P, D]",
                    fix="choose sources of one length")
  share = np.asarray(weights, np.float64)
  if not (share > 0).all():
    raise UserError("A source that is not similar has no weight in an average",
                    found=f"similarities {', '.join(f'{w:.3f}' for w in weights)}",
                    wanted="similarities above 0", fix="lower --top")
  share = share / share.sum()
  return np.tensordot(share, np.stack(prompts).astype(np.float64), axes=1).astype(np.float32)


def read(path: str, setting: str) -> NamedPrompt:
  """A prompt file, or the best prompt of a run by its MODEL_DIR.

  Args:
    setting: what the path was given as, for the messages.

  Raises:
    UserError: neither; a bank of prompts; a method that is more than a table.
  """
  folder = pathlib.Path(path)
  name = folder.stem
  if run_prompts.is_run(folder):
    name = run_prompts.summary_of(folder).get("task") or folder.name
    path = str(run_prompts.table_of(folder, setting))
  values = prompt_files.read(path, setting).values
  if values.ndim != 2:
    raise UserError("A bank of prompts cannot be compared", found=f"{path}: {values.shape}",
                    wanted="one prompt [P, D]", fix="save its prompts one by one")
  return NamedPrompt(name, path, values)


def transfer(sources: Sequence[str], target: str | None, *, measure: str = "mean",
             top: int = 1, average_to: str | None = None, output_dir: str | None = None) -> None:
  """Prints similarities and the ranking of the sources; writes what is asked for.

  Args:
    sources, target: prompt files or MODEL_DIRs.
    top: how many of the best sources to average.
    average_to: where their weighted average goes, to be started from (`inits/from_file.gin`).
    output_dir: for `similarity.csv` and `similarity.png`.

  Raises:
    UserError: prompts of different widths; nothing to compare; an average without a target.
  """
  if target is None and (average_to is not None or len(sources) < 2):
    raise UserError("There is nothing to compare the prompts with",
                    found=f"{len(sources)} prompts and no --target", wanted="a --target, or (for a "
                    "table alone) two prompts or more", fix="add --target PROMPT")
  if not 1 <= top <= len(sources):
    raise UserError("--top is out of range", found=top, wanted=f"1 to {len(sources)}, the sources",
                    fix="--top 1 takes the best one")
  found = [read(path, "SOURCE") for path in sources]
  wanted = [] if target is None else [read(target, "--target")]
  widths = {each.values.shape[1] for each in [*found, *wanted]}
  if len(widths) > 1:
    raise UserError("Prompts of different widths cannot be compared", found=f"D = {sorted(widths)}",
                    wanted="prompts of one backbone", fix="leave the others out")
  everything = [*found, *wanted]
  matrix = similarity([each.values for each in everything], measure)
  names = [each.name for each in everything]
  console = Console()
  console.print(_matrix_table(matrix, names, measure))
  if wanted:
    scores = matrix[-1, :-1]
    order = np.argsort(-scores, kind="stable")
    console.print(_ranking_table(found, scores, order, wanted[0].name))
    chosen = order[:top]
    if average_to is not None:
      values = average([found[i].values for i in chosen], scores[chosen].tolist())
      about = prompt_files.describe(values, task=", ".join(found[i].name for i in chosen))
      prompt_files.write(average_to, values, about)
      console.print(f"The average of {top} is in {average_to}. Start from it with "
                    f"--gin_file=inits/from_file.gin --gin.INITIAL_PROMPT_FILE={average_to}",
                    highlight=False)
  if output_dir is not None:
    _write(pathlib.Path(output_dir), matrix, names)


def _matrix_table(matrix: np.ndarray, names: Sequence[str], measure: str) -> Table:
  table = Table(title=f"similarity of prompts ({measure})")
  table.add_column("prompt")
  for number in range(1, len(names) + 1):
    table.add_column(str(number), justify="right")
  for number, (name, row) in enumerate(zip(names, matrix, strict=True), start=1):
    table.add_row(escape(f"{number} {name}"), *(f"{value:.3f}" for value in row))
  return table


def _ranking_table(sources: Sequence[NamedPrompt], scores: np.ndarray, order: np.ndarray,
                   target: str) -> Table:
  table = Table(title=escape(f"sources for {target}, best first"))
  for name in ("source", "similarity", "file"):
    table.add_column(name)
  for i in order:
    table.add_row(escape(sources[i].name), f"{scores[i]:.3f}", escape(sources[i].path))
  return table


def _write(folder: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
  if folder.is_file():
    raise UserError("--output_dir is a file", found=str(folder), wanted="a folder",
                    fix="give another --output_dir")
  folder.mkdir(parents=True, exist_ok=True)
  write_matrix(folder / "similarity.csv", matrix, names)
  from prompt_tuning.plots import draw_heat_map  # matplotlib is slow to import.
  draw_heat_map(matrix, names, folder / "similarity.png")
  print(f"Wrote similarity.csv and similarity.png to {folder}.")


def write_matrix(path: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
  """A CSV of `[N, N]` with the names along both sides."""
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["", *names])
    writer.writerows([name, *map(float, row)] for name, row in zip(names, matrix, strict=True))


def _unit(rows: np.ndarray) -> np.ndarray:
  rows = np.asarray(rows, np.float64)
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
