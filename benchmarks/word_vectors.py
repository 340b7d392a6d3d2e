r"""Word vectors from co-occurrence, as the embeddings that pre-training starts from.

  python benchmarks/word_vectors.py start runs/vectors --corpus 'corpus/*_train.txt.gz'
  python benchmarks/word_vectors.py --model models/family_0m1.gin --model models/family_3m0.gin \
    start runs/family/vectors --corpus 'corpus/*_train.txt.gz'
  python benchmarks/word_vectors.py probe tiny runs/vectors random --table runs/outside/sst2

`start` counts which pieces stand within 8 places of each other, takes the positive pointwise mutual
information, and its first D singular vectors (Levy & Goldberg 2014, sections 3.1 and 3.3). It
writes a backbone with random weights whose embeddings, and output layer, are these vectors. Of
several models it counts once, and a model's backbone is in a folder with the name of its gin file.

`probe` says what embeddings know: the accuracy of a ridge classifier on their mean over a text. It
reads the `_train.tsv` and `_valid.tsv` of outside_data.py; no prompt on a frozen backbone can be
expected to do much better.
"""

import argparse
import csv
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from scipy.sparse.linalg import svds

from prompt_tuning import config
from prompt_tuning.checkpoints import backbone, loading
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import init_backbone
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.tasks import corpora, vocabularies
from prompt_tuning.tasks.docstring_tasks import RUNNING_TEXT

WINDOW = 8
TEXTS_AT_A_TIME = 50_000
PROBE_ROWS = 10_000
RIDGE = 10.0


def cooccurrence(texts: Iterable[str], tokenizer: vocabularies.Tokenizer) -> np.ndarray:
  """`[V, V]` float64 counts of pieces within WINDOW places, weighted by distance^-1/2."""
  size = tokenizer.vocab_size
  counts = np.zeros((size, size))
  for batch in _batches(texts):
    # Id 0 (padding) keeps texts apart.
    ids = np.concatenate([np.array([*tokenizer.encode(text), 0]) for text in batch])
    for distance in range(1, WINDOW + 1):
      pairs = ids[:-distance] * size + ids[distance:]
      counts += np.bincount(pairs, minlength=size**2).reshape(size, size) / distance**0.5
  counts[0], counts[:, 0] = 0, 0
  return counts + counts.T


def vectors(counts: np.ndarray, width: int) -> np.ndarray:
  """`[V, width]`, rows of norm width^1/2; zeros for pieces that never occur."""
  share = counts.sum(1) / counts.sum()
  with np.errstate(divide="ignore", invalid="ignore"):
    information = np.log(counts / counts.sum() / share[:, None] / share[None])
  information = np.where(counts > 0, np.maximum(information, 0), 0)
  start = np.random.default_rng(0).standard_normal(len(counts))
  left, values, _ = svds(information, k=width, v0=start)
  rows = left * values**0.5
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  return np.where(norms > 1e-3, rows / np.maximum(norms, 1e-3) * width**0.5, 0)


def counts_of(files: Sequence[str], tokenizer: vocabularies.Tokenizer) -> np.ndarray:
  """`cooccurrence` in text files and the docstrings."""
  def texts() -> Iterator[str]:
    yield from (row["text"] for row in corpora.TextFiles(files={"train": files}).rows("train"))
    yield from (row["text"] for row in RUNNING_TEXT.rows("train"))

  return cooccurrence(texts(), tokenizer)


def start(folder: pathlib.Path, model: ModelConfig, counts: np.ndarray) -> None:
  """Writes the backbone."""
  found = vectors(counts, model.backbone.emb_dim)
  seen = np.flatnonzero(np.abs(found).sum(1))
  params = jax.tree.map(np.array, init_backbone(jax.random.key(0), model.backbone))
  params["token_embedder"]["embedding"][seen] = found[seen]
  output = params["decoder"].get("logits_dense", {}).get("kernel")
  if output is not None:
    output[:, seen] = found[seen].T * output.std()
  backbone.save(folder, params, model.backbone,
                vocabulary=vocabularies.fingerprint(model.vocabulary),
                about={"from": "word vectors, other weights random"})
  print(f"{folder}: vectors of {len(seen)} pieces")


def probe(name: str, model: ModelConfig, table: str) -> float:
  """Accuracy on the validation rows of a ridge classifier over mean embeddings."""
  embedding = _embedding(name, model.backbone)
  tokenizer = model.tokenizer()

  def features(split: str, most: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    with open(f"{table}_{split}.tsv", encoding="utf-8") as file:
      rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:most + 1]
    means = np.stack([embedding[tokenizer.encode(row[0])].mean(0) for row in rows])
    labels = sorted({row[-1] for row in rows})
    return means, np.array([labels.index(row[-1]) for row in rows]), labels

  x, y, labels = features("train", PROBE_ROWS)
  test_x, test_y, _ = features("valid", PROBE_ROWS)
  mean, spread = x.mean(0), x.std(0) + 1e-9
  x, test_x = ((np.c_[(part - mean) / spread, np.ones(len(part))]) for part in (x, test_x))
  weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ np.eye(len(labels))[y])
  return float(((test_x @ weights).argmax(1) == test_y).mean())


def _embedding(name: str, architecture: T5Config) -> np.ndarray:
  if name == "random":
    params = init_backbone(jax.random.key(0), architecture)
    return np.asarray(params["token_embedder"]["embedding"])
  return np.asarray(loading.find(name).open(name).read("token_embedder/embedding"), np.float32)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
  batch = []
  for text in texts:
    batch.append(text)
    if len(batch) == TEXTS_AT_A_TIME:
      yield batch
      batch = []
  if batch:
    yield batch


def model_of(file: str) -> ModelConfig:
  """The model of a gin file; its weights are not read."""
  config.load(["commands/model.gin", file], ["INITIAL_CHECKPOINT_PATH = 'random'"])
  return config.build(ModelConfig)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", action="append", default=[], metavar="FILE",
                      help="gin file of the architecture (models/tiny.gin); repeatable")
  jobs = parser.add_subparsers(dest="job", required=True)
  starting = jobs.add_parser("start")
  starting.add_argument("folder", type=pathlib.Path)
  starting.add_argument("--corpus", nargs="+", required=True)
  probing = jobs.add_parser("probe")
  probing.add_argument("backbones", nargs="+", help="checkpoints, or `random`")
  probing.add_argument("--table", required=True, help="path of a data set without _train.tsv")
  options = parser.parse_args()
  files = options.model or ["models/tiny.gin"]
  models = {pathlib.Path(file).stem: model_of(file) for file in files}
  model = next(iter(models.values()))
  if options.job == "start":
    counts = counts_of(options.corpus, model.tokenizer())
    for name, each in models.items():
      start(options.folder / name if len(models) > 1 else options.folder, each, counts)
    return
  for name in options.backbones:
    print(f"{name:30} {probe(name, model, options.table):.3f}")


if __name__ == "__main__":
  main()
