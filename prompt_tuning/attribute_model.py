"""A linear classifier of attributes on the frozen decoder, for controlled generation.

It reads the mean of the decoder's outputs over a text (PPLM's discriminator: Dathathri et al. 2020,
arXiv 1912.02164, section 3.3), and is fitted to beginnings of texts of every fourth length, since
that is what it judges while a text is generated. The backbone, and the prompt it generates with,
stay as they are.

The task is a classification: its first `context` tokens are what the encoder reads, the rest what
the decoder writes, its target the label.

File (.npz): kernel [D, C] float32, bias [C] float32, labels [C].
"""

import dataclasses
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from prompt_tuning import examples, prompt_bank, scoring, trained_model
from prompt_tuning.converter import check_feature_lengths, shift_right, trim
from prompt_tuning.disk import first_line
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.trees import Split

_EVERY = 4
_FIT_STEPS, _RATE, _DECAY = 300, 0.05, 1e-4


@dataclasses.dataclass(frozen=True)
class AttributeModel:
  """Attributes:
    labels: C names.
    kernel, bias: `[D, C]`, `[C]`.
  """

  labels: tuple[str, ...]
  kernel: np.ndarray
  bias: np.ndarray

  @classmethod
  def read(cls, path: str) -> "AttributeModel":
    """The model in a file that `write` left.

    Raises:
      UserError: there is none, or it is something else.
    """
    try:
      with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in ("labels", "kernel", "bias")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      raise UserError("ATTRIBUTE_MODEL cannot be read", found=f"{path}: {first_line(error)}",
                      wanted="a .npz of `prompt-tuning attribute`",
                      fix="make one: prompt-tuning attribute --gin.OUTPUT_FILE=attribute.npz ...") \
        from error
    count = len(found["labels"])
    if found["kernel"].ndim != 2 or found["kernel"].shape[1] != count or (
        found["bias"].shape != (count,)) or not np.isfinite(found["kernel"]).all():
      raise UserError("ATTRIBUTE_MODEL is damaged",
                      found=f"{path}: kernel {found['kernel'].shape}, {count} labels",
                      wanted="a finite kernel [D, C] and C labels", fix="make it again")
    return cls(tuple(map(str, found["labels"])), found["kernel"].astype(np.float32),
               found["bias"].astype(np.float32))

  def write(self, path: str) -> None:
    np.savez(path, labels=np.array(self.labels), kernel=self.kernel, bias=self.bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributeConfig:
  """One fit.

  Attributes:
    model, task: the frozen model; a classification task.
    output_file: OUTPUT_FILE, a .npz.
    labels: LABELS, the task's.
    context: CONTEXT_TOKENS that the encoder reads.
    model_dir, prompt_file: of the prompt that the text is generated with; neither: none.
    max_examples: MAX_EXAMPLES of a split; None: all.
    batch_size: BATCH_SIZE.
    seed: RANDOM_SEED, of a random backbone.
  """

  model: ModelConfig
  task: TaskConfig
  output_file: str
  labels: tuple[str, ...]
  context: int = 0
  model_dir: str | None = None
  prompt_file: str | None = None
  max_examples: int | None = None
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    object.__setattr__(self, "labels", examples.class_names(self.labels or ()))
    if not self.output_file.endswith(".npz") or not pathlib.Path(self.output_file).parent.is_dir():
      raise UserError("OUTPUT_FILE cannot be written", found=self.output_file,
                      wanted="a .npz in a folder that exists",
                      fix="--gin.OUTPUT_FILE=attribute.npz")
    length = self.task.feature_lengths["inputs"]
    if not isinstance(self.context, int) or not 0 <= self.context < length:
      raise UserError("CONTEXT_TOKENS is out of range", found=repr(self.context),
                      wanted=f"0 to {length - 1}, below the length of the inputs",
                      fix="--gin.CONTEXT_TOKENS=8")


def fit(config: AttributeConfig) -> tuple[AttributeModel, float]:
  """Fits and writes the model; also its accuracy on whole texts of the validation split."""
  lengths = check_feature_lengths(config.task.feature_lengths)
  trained = trained_model.find(config.model, config.model_dir, config.prompt_file) \
    if config.model_dir or config.prompt_file else trained_model.find(
      dataclasses.replace(config.model, prompt=None), None, None)
  bank = prompt_bank.of_trained(trained, config.task.name)
  tokenizer = config.model.tokenizer()
  splits = {split: examples.of_task(config.task, split, config.model.vocabulary,
                                    config.max_examples, tokenizer)
            for split in ("train", "validation")}
  for split, found in splits.items():
    unknown = sorted(set(found.targets) - set(config.labels))
    if unknown:
      raise UserError(f"The {split} split has targets that are no label", found=unknown[0],
                      wanted=", ".join(config.labels), fix="correct LABELS")
  params, = bank.load(config.seed)
  features, labels = _features(config, bank, params, splits["train"], lengths, beginnings=True)
  kernel, bias = _fit(features, labels, len(config.labels))
  model = AttributeModel(config.labels, kernel, bias)
  whole, labels = _features(config, bank, params, splits["validation"], lengths, beginnings=False)
  accuracy = float(((whole @ kernel + bias).argmax(axis=1) == labels).mean())
  model.write(config.output_file)
  return model, accuracy


def _features(config: AttributeConfig, bank: prompt_bank.Bank, params: Any,
              found: examples.Examples, lengths: dict[str, int], *,
              beginnings: bool) -> tuple[np.ndarray, np.ndarray]:
  """`[n, D]` means of the decoder's outputs, and their labels `[n]`."""
  group, = bank.groups
  (_, row), = next(iter(bank.tasks.values()))
  size, length = config.batch_size, lengths["inputs"]
  means, labels = [], []
  for first in range(0, len(found.ids), size):
    rows = [trim(ids, length) for ids in found.ids[first:first + size]]
    rows += [rows[0]] * (size - len(rows))
    tokens = group.rows([row] * size, [_with_end(ids[:config.context]) for ids in rows],
                        config.context + 1)
    written = np.zeros((size, length), np.int32)
    for out, ids in zip(written, rows, strict=True):
      rest = ids[config.context:]
      out[:len(rest)] = rest
    prompt_ids = np.full(size, row, np.int32) if len(group.prompts) > 1 else None
    # Sums of many outputs, which a DTYPE of few bits would round off.
    outputs = np.asarray(scoring.call({}, params, Split({}), group.model, decoder_outputs, tokens,
                                      shift_right(written), prompt_ids), np.float32)
    sums = np.cumsum(outputs, axis=1)
    for i, target in enumerate(found.targets[first:first + size]):
      # The outputs that read the start and every token but the end of sequence.
      whole = max(1, int((written[i] != 0).sum()))
      ends = {whole} | (set(range(_EVERY, whole, _EVERY)) if beginnings else set())
      means += [sums[i, end - 1] / end for end in sorted(ends)]
      labels += [config.labels.index(target)] * len(ends)
  return np.stack(means), np.array(labels)


def decoder_outputs(model: PromptedT5, params: Any, tokens: Array, decoder_tokens: Array,
                    prompt_ids: Array | None = None) -> Array:
  """The decoder's outputs `[B, U, D]`, teacher-forced."""
  def run(module: PromptedT5) -> Array:
    values = module.prompt_values(tokens, prompt_ids)
    encoded = module.encode(tokens, prompt_ids=prompt_ids)
    return module.backbone.decoder(module.backbone.embed(decoder_tokens), encoded, tokens,
                                   values.decoder, None, None, False)

  return model.apply({"params": params}, method=run)


def _fit(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Logistic regression with a little weight decay on standardised features -> kernel, bias."""
  mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
  x = jnp.asarray((features - mean) / deviation)
  y = jnp.asarray(labels)
  start = {"kernel": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}
  optimizer = optax.adam(_RATE)

  def loss(params: dict[str, Array], x: Array, y: Array) -> Array:
    logits = x @ params["kernel"] + params["bias"][None]
    data = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return data + _DECAY * jnp.sum(jnp.square(params["kernel"]))

  @jax.jit
  def run(params: dict[str, Array], x: Array, y: Array) -> dict[str, Array]:
    def step(carry: tuple, _: None) -> tuple[tuple, None]:
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params, x, y), state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, _FIT_STEPS)
    return params

  found = jax.tree.map(np.asarray, run(start, x, y))
  kernel = found["kernel"] / deviation[:, None]
  return kernel, found["bias"] - mean @ kernel


def _with_end(ids: np.ndarray) -> np.ndarray:
  return ids if len(ids) and ids[-1] == EOS_ID else np.append(ids, np.int32(EOS_ID))
