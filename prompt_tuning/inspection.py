"""What a prompt's vectors are near to: words of the frozen vocabulary, and other prompts.

Lester et al. 2021 (arXiv 2104.08691), section 7: the nearest neighbours of each virtual token in
the embedding table, by cosine. Similarities are those of `transfer.py`.
"""

import csv
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_tuning.errors import UserError
from prompt_tuning.prompts.initializers import read_prompt
from prompt_tuning.run_config import RANDOM, ModelConfig
from prompt_tuning.transfer import cosines, similarity, write_matrix


def nearest_words(prompt: np.ndarray, embedding: np.ndarray, piece_of: Callable[[int], str],
                  k: int) -> list[list[tuple[str, float]]]:
  """The k rows of the embedding table nearest to each prompt vector.

  Args:
    prompt: `[P, D]`.  embedding: `[V, D]`.
    piece_of: how an id is written.

  Returns:
    For each of the P vectors, (word, cosine), nearest first; the lower id of two that are equal.
  """
  found = cosines(prompt, embedding)
  order = np.argsort(-found, axis=1, kind="stable")[:, :k]
  return [[(piece_of(int(i)), float(row[i])) for i in ids]
          for row, ids in zip(found, order, strict=True)]


def inspect(config: ModelConfig, files: Sequence[str], *, words: int = 5,
            output_dir: str | None = None) -> None:
  """Prints the tables of every prompt; with `output_dir` writes CSV files and a heat map.

  Raises:
    UserError: a prompt file that is none, or of another width; a backbone without weights.
  """
  if words < 1:
    raise UserError("--words is not a count", found=words, wanted="1 or more", fix="--words 5")
  if config.initial_checkpoint_path == RANDOM:
    raise UserError("Words near a prompt need the backbone's weights",
                    found="INITIAL_CHECKPOINT_PATH = 'random'",
                    wanted="the checkpoint the prompt was trained with",
                    fix="use models/tiny.gin, or give --gin.INITIAL_CHECKPOINT_PATH")
  prompts = [read_prompt(file, None, config.backbone.emb_dim) for file in files]
  tokenizer = config.tokenizer()
  embedding = np.asarray(config.load_backbone(0)["token_embedder"]["embedding"], np.float32)
  # Rows above the vocabulary only pad the table: they stand for no word.
  embedding = embedding[:tokenizer.vocab_size]
  console = Console()
  found = []
  for file, prompt in zip(files, prompts, strict=True):
    near = nearest_words(prompt, embedding, tokenizer.piece, words)
    norms = np.linalg.norm(prompt, axis=1)
    found += [(file, i, float(norm), rank, word, cosine) for i, (norm, row) in enumerate(
      zip(norms, near, strict=True)) for rank, (word, cosine) in enumerate(row, start=1)]
    console.print(_words_table(file, norms, near))
  norm = np.linalg.norm(embedding, axis=1)
  console.print(f"norm of the vocabulary's vectors: mean {norm.mean():.2f}, "
                f"least {norm.min():.2f}, most {norm.max():.2f}", highlight=False)
  matrix = similarity(prompts) if len(prompts) > 1 else cosines(prompts[0])
  names = list(files) if len(prompts) > 1 else [str(i) for i in range(len(prompts[0]))]
  if len(prompts) > 1:
    console.print(_similarity_table(matrix, names))
  if output_dir is not None:
    _write(pathlib.Path(output_dir), found, matrix, names)
    print(f"Wrote words.csv, similarity.csv and similarity.png to {output_dir}.")


def _words_table(file: str, norms: np.ndarray, near: list[list[tuple[str, float]]]) -> Table:
  table = Table(title=f"nearest words (cosine) of {file}")
  table.add_column("vector", justify="right")
  table.add_column("norm", justify="right")
  table.add_column("words")
  for i, (norm, row) in enumerate(zip(norms, near, strict=True)):
    table.add_row(str(i), f"{norm:.2f}", escape(", ".join(f"{w} {c:.2f}" for w, c in row)))
  return table


def _similarity_table(matrix: np.ndarray, names: Sequence[str]) -> Table:
  table = Table(title="similarity of prompts (cosine of their means)")
  table.add_column("prompt")
  for number in range(1, len(names) + 1):
    table.add_column(str(number), justify="right")
  for number, (name, row) in enumerate(zip(names, matrix, strict=True), start=1):
    table.add_row(escape(f"{number} {name}"), *(f"{value:.3f}" for value in row))
  return table


def _write(folder: pathlib.Path, words: Sequence[tuple], matrix: np.ndarray,
           names: Sequence[str]) -> None:
  if folder.is_file():
    raise UserError("--output_dir is a file", found=str(folder), wanted="a folder",
                    fix="give another --output_dir")
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "words.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["prompt", "vector", "norm", "rank", "word", "cosine"])
    writer.writerows(words)
  write_matrix(folder / "similarity.csv", matrix, names)
  from prompt_tuning.plots import draw_heat_map  # matplotlib is slow to import.
  draw_heat_map(matrix, names, folder / "similarity.png")
