"""How much of a sentence a few vectors can hold, for a frozen model (`prompt-tuning recover`).

Subramani et al. 2019 (arXiv 1907.04944): for each sentence vectors are optimised so that the frozen
model says it, and then it has to say it by greedy decoding. On T5 the encoder's whole input is the
sentence's own P vectors and an end of sequence, so nothing but the vectors knows the sentence.

All sentences of a cell are one bank of prompts `[N, P, D]` and one batch: the loss is the sum of
each sentence's mean loss a token, so no sentence's gradient sees another, and Adam treats every
number by itself. A model with random weights is the control: what it recovers, any model could.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sacrebleu
from jax import Array

from prompt_tuning import generation, scoring
from prompt_tuning.cells import Cells, Row
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.converter import shift_right
from prompt_tuning.disk import write_text
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import read_lines
from prompt_tuning.losses import sequence_log_likelihood
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.prompts.initializers import Initializer, Uniform
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import RANDOM, ModelConfig
from prompt_tuning.run_dir import describe
from prompt_tuning.t5 import T5
from prompt_tuning.trees import Split

BACKBONES = ("given", RANDOM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecoverConfig:
  """A grid of recoveries.

  Attributes:
    model: without a prompt.
    model_dir: MODEL_DIR.
    sentences: SENTENCES, the domains: name -> a text file, a sentence a line.
    vectors: VECTORS, numbers of vectors P.
    backbones: BACKBONES, of `given` and `random`, the control.
    seeds: SEEDS, of the vectors' start and of the random backbone.
    initializer: PROMPT_INIT, where the vectors start.
    train_steps, learning_rate: TRAIN_STEPS of Adam, from LEARNING_RATE down to 0 in a line.
    max_examples: MAX_EXAMPLES, sentences of a domain; the first that fit.
    length: SENTENCE_LENGTH, tokens of a sentence with its end; longer ones are counted, not cut.
  """

  model: ModelConfig
  model_dir: str
  sentences: Mapping[str, str]
  vectors: tuple[int, ...] = (1, 2, 4, 8)
  backbones: tuple[str, ...] = BACKBONES
  seeds: tuple[int, ...] = (0, 1, 2)
  initializer: Initializer = Uniform()
  train_steps: int = 300
  learning_rate: float = 0.1
  max_examples: int = 32
  length: int = 32

  def __post_init__(self):
    if not isinstance(self.sentences, Mapping) or not self.sentences:
      raise UserError("SENTENCES names no text", found=repr(self.sentences),
                      wanted="a dictionary from a name to a file, a sentence a line",
                      fix="--gin.SENTENCES=\"{'mine': 'sentences.txt'}\"")
    for name, least in (("vectors", 1), ("seeds", 0)):
      values = getattr(self, name)
      if not isinstance(values, list | tuple) or not values or not all(
          isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values):
        raise UserError(f"{name.upper()} is not a list of numbers", found=repr(values),
                        wanted=f"whole numbers, {least} or more",
                        fix=f"--gin.{name.upper()}=\"[1, 2]\"")
      object.__setattr__(self, name, tuple(values))
    object.__setattr__(self, "backbones", tuple(self.backbones))
    for backbone in self.backbones:
      if backbone not in BACKBONES:
        raise UserError("BACKBONES has an unknown backbone", found=repr(backbone),
                        wanted="of " + ", ".join(BACKBONES), fix=nearest(str(backbone), BACKBONES))
    for name, macro in (("train_steps", "TRAIN_STEPS"), ("max_examples", "MAX_EXAMPLES"),
                        ("length", "SENTENCE_LENGTH")):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{macro} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more", fix=f"--gin.{macro}=32")
    if not self.learning_rate > 0:
      raise UserError("LEARNING_RATE is not a rate", found=repr(self.learning_rate),
                      wanted="a number above 0", fix="--gin.LEARNING_RATE=0.1")
    if self.model.prompt is not None:
      raise UserError("Recovery makes vectors of its own",
                      found=type(self.model.prompt).__name__, wanted="no prompt method",
                      fix="leave the file of prompts/ out")


@dataclasses.dataclass(frozen=True)
class Sentences:
  """Attributes:
    texts: N of them.  targets: `[N, U]` int32 with their ends.  too_long: left out.
  """

  texts: list[str]
  targets: np.ndarray
  too_long: int


@dataclasses.dataclass(frozen=True)
class Cell:
  domain: str
  backbone: str
  vectors: int
  seed: int


def cells_of(config: RecoverConfig) -> Iterator[Cell]:
  # One number of vectors after the other: a compilation each.
  for vectors, backbone, domain, seed in itertools.product(
      config.vectors, config.backbones, config.sentences, config.seeds):
    yield Cell(domain, backbone, vectors, seed)


def read_sentences(path: str, config: RecoverConfig) -> Sentences:
  """The first lines of a file that fit.

  Raises:
    UserError: no such file, or fewer fitting lines than MAX_EXAMPLES.
  """
  tokenizer = config.model.tokenizer()
  texts: list[str] = []
  rows: list[list[int]] = []
  too_long = 0
  for line in read_lines(path, "SENTENCES"):
    ids = [*tokenizer.encode(line.strip()), tokenizer.eos_id]
    if len(texts) == config.max_examples:
      break
    if len(ids) > config.length:
      too_long += 1
    elif len(ids) > 1:
      texts.append(line.strip())
      rows.append(ids)
  if len(texts) < config.max_examples:
    raise UserError("There are too few sentences", found=f"{len(texts)} in {path} with at most "
                    f"{config.length} tokens, {too_long} longer ones",
                    wanted=f"{config.max_examples} (MAX_EXAMPLES)",
                    fix="lower MAX_EXAMPLES, or raise SENTENCE_LENGTH")
  targets = np.zeros((len(rows), config.length), np.int32)
  for out, row in zip(targets, rows, strict=True):
    out[:len(row)] = row
  return Sentences(texts, targets, too_long)


def encoder_tokens(rows: int, vectors: int, end: int) -> np.ndarray:
  """`[N, P + 1]`: a sentence's own vectors and the end of sequence."""
  ids = np.array([*(-1 - p for p in range(vectors)), end], np.int32)
  return np.tile(ids, (rows, 1))


def row_losses(model: PromptedT5, params: Any, tokens: Array, targets: Array,
               shifted: Array) -> Array:
  """`[N]`: the mean loss a token of each sentence, with its own row of the bank."""
  logits = model.apply({"params": params}, tokens, shifted, enable_dropout=False,
                       prompt_ids=jnp.arange(tokens.shape[0]))
  weights = (targets != 0).astype(jnp.float32)
  return -sequence_log_likelihood(logits, targets, weights) / weights.sum(axis=1)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def optimise(backbone: Any, bank: Array, tokens: Array, targets: Array, shifted: Array,
             rate: float, *, model: PromptedT5, steps: int) -> tuple[Array, Array]:
  """Adam on `[N, P, D]`; the vectors, and the losses `[N]` of the last step."""
  adam = optax.adam(optax.linear_schedule(1.0, 0.0, steps))

  def total(bank):
    params = {"backbone": backbone, "prompt": {"embedding": bank}}
    losses = row_losses(model, params, tokens, targets, shifted)
    return losses.sum(), losses

  def step(carry, _):
    bank, state = carry
    gradient, losses = jax.grad(total, has_aux=True)(bank)
    updates, state = adam.update(gradient, state)
    return (bank + rate * updates, state), losses

  (bank, _), losses = jax.lax.scan(step, (bank, adam.init(bank)), length=steps)
  return bank, losses[-1]


class Recovery:
  """What the cells of one run share; `cell` measures one."""

  def __init__(self, config: RecoverConfig):
    """Reads the sentences and checks what needs no weights."""
    self.config = config
    config.model.check()
    self._tokenizer = config.model.tokenizer()
    self.sentences = {name: read_sentences(path, config)
                      for name, path in config.sentences.items()}
    self._backbones: dict[tuple[str, int], Any] = {}

  def backbone(self, name: str, seed: int) -> Any:
    """Weights: those that were named, or random ones of this seed."""
    key = (name, seed if name == RANDOM else 0)
    if key not in self._backbones:
      model = self.config.model if name != RANDOM else dataclasses.replace(
        self.config.model, initial_checkpoint_path=RANDOM)
      self._backbones = {k: v for k, v in self._backbones.items() if k[0] != name}
      self._backbones[key] = model.load_backbone(seed)
    return self._backbones[key]

  def cell(self, cell: Cell) -> tuple[Row, np.ndarray, list[str]]:
    """The measurement, the vectors `[N, P, D]`, and what was said."""
    sentences = self.sentences[cell.domain]
    prompt = SoftPrompt(self.config.model.backbone, cell.vectors, self.config.initializer,
                        num_prompts=len(sentences.texts))
    model = PromptedT5(T5(self.config.model.backbone), prompt)
    backbone = self.backbone(cell.backbone, cell.seed)
    start = dataclasses.replace(self.config.model, prompt=prompt).start_prompt(backbone, cell.seed)
    tokens = encoder_tokens(len(sentences.texts), cell.vectors, self._tokenizer.eos_id)
    bank, losses = optimise(backbone, start["embedding"], tokens, sentences.targets,
                            shift_right(sentences.targets), self.config.learning_rate, model=model,
                            steps=self.config.train_steps)
    params = {"backbone": backbone, "prompt": {"embedding": bank}}
    said = np.asarray(scoring.call(
      {}, params, Split({}), model, generation.generate, tokens, None,
      np.arange(len(tokens), dtype=np.int32), max_length=self.config.length))
    texts = [self._tokenizer.decode(row.tolist()) for row in said]
    wanted = [self._tokenizer.decode(row.tolist()) for row in sentences.targets]
    exact = [a == b for a, b in zip(texts, wanted, strict=True)]
    row = {**dataclasses.asdict(cell), "exact_match": float(np.mean(exact)),
           "bleu": sacrebleu.corpus_bleu(texts, [wanted]).score,
           "loss": float(np.mean(losses)), "sentences": len(texts),
           "tokens": float((sentences.targets != 0).sum(axis=1).mean()),
           "too_long": sentences.too_long}
    return row, np.asarray(bank), texts


def recover(config: RecoverConfig, config_text: str) -> list[Row]:
  """Measures every cell that is not done yet; the rows of all."""
  recovery = Recovery(config)
  corpus = json.dumps([each.texts for each in recovery.sentences.values()])
  grid = Cells(config.model_dir, describe(config), config_text, _digest(corpus))
  fingerprint = backbone_files.fingerprint(config.model.load_backbone(0))
  grid.run.check_backbone(config.model.initial_checkpoint_path, fingerprint)
  about = {"backbone": {"from": config.model.initial_checkpoint_path, "fingerprint": fingerprint}}
  grid.run.write_summary(about)
  folder = pathlib.Path(config.model_dir)
  (folder / "vectors").mkdir(exist_ok=True)
  for cell in cells_of(config):
    name = f"{cell.domain}_{cell.backbone}_{cell.vectors}_{cell.seed}"
    if name in grid:
      continue
    row, bank, texts = recovery.cell(cell)
    np.save(folder / "vectors" / f"{name}.npy", bank)
    pairs = zip(recovery.sentences[cell.domain].texts, texts, strict=True)
    write_text(folder / "vectors" / f"{name}.jsonl", "".join(
      json.dumps({"sentence": a, "recovered": b}, ensure_ascii=False) + "\n" for a, b in pairs))
    grid.add(name, [row], {k: row[k] for k in ("exact_match", "bleu", "loss")}, cell.domain)
  grid.finish({**about, "means": means(grid.rows)}, config.seeds[0])
  return grid.rows


def means(rows: Sequence[Row]) -> list[Row]:
  """Over seeds: a row a domain, backbone and number of vectors."""
  groups: dict[tuple, list[Row]] = {}
  for row in rows:
    groups.setdefault((row["domain"], row["backbone"], row["vectors"]), []).append(row)
  table = []
  for (domain, backbone, vectors), members in groups.items():
    mean: Row = {"domain": domain, "backbone": backbone, "vectors": vectors, "seeds": len(members)}
    for name in ("exact_match", "bleu", "loss"):
      values = np.array([row[name] for row in members])
      mean[name] = float(values.mean())
      mean[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    table.append(mean)
  return table


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
