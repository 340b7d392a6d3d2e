"""Metrics of a model on one split: rank classification, decoding, and loss.

  rank    every label's log-likelihood, summed over its tokens; the encoder runs once an input and
          all labels are scored in one decoder pass (Brown et al. 2020, section 2.4)
  decode  greedy text, compared by the task's metric functions
  loss    nats a target token; and the encoder gap: the loss with another row's input minus the
          loss with the row's own. Near zero, the decoder ignores the encoder

All arrays a step sees have one shape a run, so each function compiles once (`scoring.py`).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from prompt_tuning import ensembles, examples, generation, hosts, scoring
from prompt_tuning.batches import eval_batches
from prompt_tuning.converter import LengthReport, check_ids, check_truncation
from prompt_tuning.data import cache_task
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.seqio_metrics import SeqioMetrics
from prompt_tuning.task_setup import set_up
from prompt_tuning.tasks import vocabularies, windows
from prompt_tuning.tasks.metrics import Target
from prompt_tuning.token_cache import FEATURES, TokenCache
from prompt_tuning.trees import Split

METHODS = ("auto", "rank", "decode", "loss")
# Rows that are enough for metrics to say what they are called.
_SAMPLE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
  """Attributes:
    batch_size: rows a step.
    max_examples: the first rows of the split; None: all.
    method: `rank`, `decode` or `loss`; `auto` ranks where the task has labels, decodes where it
      has metrics, and else measures the loss.
    split: of the task.
  """

  batch_size: int = 64
  max_examples: int | None = None
  method: str = "auto"
  split: str = "validation"

  def __post_init__(self):
    if self.method not in METHODS:
      raise UserError("EvalSettings.method is unknown", found=repr(self.method),
                      wanted="one of " + ", ".join(METHODS), fix=nearest(self.method, METHODS))
    for name in ("batch_size", "max_examples"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise UserError(f"EvalSettings.{name} is not a count", found=value, wanted="1 or more",
                        fix=f"set {name} to 64")


@dataclasses.dataclass(frozen=True)
class Result:
  """Attributes:
    metrics: by name; `examples` is the number of rows.
    inputs, targets, predictions: texts, a row each (empty for `loss`).
    log_probs: of `rank`, `[rows, C]`: of each label, renormalised over the labels.
  """

  metrics: dict[str, float]
  inputs: list[str]
  targets: list[str]
  predictions: list[str]
  log_probs: np.ndarray | None = None

  def lines(self) -> str:
    """Input, target and prediction of every row, as lines of JSON."""
    rows = zip(self.inputs, self.targets, self.predictions, strict=True)
    return "".join(json.dumps({"input": i, "target": t, "prediction": p}, ensure_ascii=False) + "\n"
                   for i, t, p in rows)


class Evaluator:
  """One task, one split, one model; call it with parameters."""

  def __init__(self, model: ModelConfig, task: TaskConfig, settings: EvalSettings,
               prompt_ids: Mapping[str, int] | None = None,
               partitioner: Partitioner | None = None):
    """Args:
      prompt_ids: task -> row of a bank of prompts.
      partitioner: splits batches as the parameters that it will be called with are; None: they
        are on one device.
    """
    self._partitioner = partitioner
    self._model, self._settings = model.module(), settings
    self._placement = model.placement()
    self._tokenizer = vocabularies.load_light(model.vocabulary)
    self._lengths = dict(task.feature_lengths)
    self._leading_sentinel = task.leading_sentinel
    setup = set_up(task, model.vocabulary)
    self._setup, self._spec = setup, setup.spec
    tasks = list(setup.parts.values())
    for each in tasks:
      if settings.split not in each.splits:
        raise UserError(f"Task {each.name!r} has no split {settings.split!r}",
                        found=", ".join(each.splits) or "no split", wanted=settings.split,
                        fix="`eval` takes --gin.SPLIT, `train` --gin.evaluate.EvalSettings.split: "
                        + nearest(settings.split, each.splits))
    self._tasks = tasks
    self._prompt_ids = [_prompt_id(setup.names[each.name], prompt_ids) for each in tasks]
    self._caches = [
      self._cache(each, task, stochastic=each.name in setup.stochastic,
                  fingerprint=setup.fingerprint) for each in tasks]
    self.report = LengthReport.of(self._caches, self._lengths)
    # The same by the tasks' names.
    self.reports = {setup.names[each.name]: LengthReport.of([cache], self._lengths)
                    for each, cache in zip(tasks, self._caches, strict=True)}
    self.method = self._method()
    self._labels = self._label_ids() if self.method == "rank" else None
    if self.method != "loss":
      self._check_targets()
    self._seqio_metrics = (self._metrics_of_seqio(task.use_cached)
                           if self.method == "decode" and self._is_a_users else None)
    self.check_prompt(model.prompt)

  def check_prompt(self, prompt: Any) -> None:
    """Whether a method, or None, can write the targets.

    Raises:
      UserError: it cannot.
    """
    caches = {each.name: cache for each, cache in zip(self._tasks, self._caches, strict=True)}
    self._setup.check_prompt(prompt, caches, self._tokenizer,
                             leading_sentinel=self._leading_sentinel)

  @property
  def of_windows(self) -> bool:
    """Whether rows are windows of their questions' contexts (QA_WINDOW)."""
    return self._spec is not None and windows.of_windows(self._spec.source)

  def metric_names(self) -> list[str]:
    """What an evaluation by this method measures."""
    if self.method == "loss":
      return ["loss"]
    cache, limit = self._caches[0], min(self._limits()[0], _SAMPLE)
    targets = _targets([self._with_text(cache[row]) for row in range(limit)])
    names = self._metrics(targets, [target.text for target in targets]).keys() - {"examples"}
    ranked = {"accuracy", "label_loss"} if self.method == "rank" else set()
    return sorted(names | ranked | {"loss"})

  def __call__(self, trainable: Any, frozen: Any, split: Split) -> Result:
    """Evaluates `split.merge(trainable, frozen)`."""
    runners = {"rank": self._rank, "decode": self._decode, "loss": self._loss}

    def call(*args: Any, **static: Any) -> np.ndarray:
      found = scoring.call(trainable, frozen, split, *args, partitioner=self._partitioner,
                           **static)
      return np.asarray(hosts.fetch(found))

    return runners[self.method](call)

  def ensembles(self, results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Metrics of several prompts together (Lester et al. 2021, section 6); {} without labels.

    `majority_vote` is the label that most prompts choose, of equals the one with the larger mean
    probability; `mean_probability` the label with the largest one.
    """
    if self.method != "rank":
      return {}
    chosen = ensembles.label_values(np.stack([result.log_probs for result in results]))
    mean = chosen["mean_probability"]
    targets, labels = _targets(self._rows()), self._spec.labels
    known = [labels.index(target.text) for target in targets]
    found = {}
    for name, values in chosen.items():
      choices = values.argmax(axis=1)
      found[name] = self._metrics(targets, [labels[i] for i in choices])
      found[name].setdefault("accuracy", float((choices == known).mean()))
    loss = -np.log(mean[np.arange(len(known)), known])
    found["mean_probability"]["label_loss"] = float(loss.mean())
    return found

  def majority(self) -> dict[str, float]:
    """The most frequent target of this split, predicted for every row (classification)."""
    targets = _targets(self._rows())
    values, counts = np.unique([target.text for target in targets], return_counts=True)
    return self._metrics(targets, [str(values[np.argmax(counts)])] * len(targets))

  def _method(self) -> str:
    spec, wanted = self._spec, self._settings.method
    labels = spec is not None and spec.labels is not None
    if wanted == "rank" and not labels:
      raise UserError("Rank classification needs labels", found="a task without labels",
                      wanted="a classification task", fix="set EvalSettings.method = 'decode'")
    if wanted == "decode" and len(self._tasks) > 1:
      raise UserError("Tasks of a mixture have metrics of their own",
                      found=f"EvalSettings.method = 'decode' and {len(self._tasks)} tasks",
                      wanted="the loss of the mixture; `eval` decodes task by task",
                      fix="set EvalSettings.method = 'loss'")
    if wanted != "auto":
      return wanted
    if labels:
      return "rank"
    denoising = spec is not None and spec.objective is not None
    # A metric that texts are not enough for is an error, not a reason to measure something else.
    has_metrics = all(task.metric_objs for task in self._tasks)
    return "decode" if has_metrics and not denoising and len(self._tasks) == 1 else "loss"

  @property
  def _is_a_users(self) -> bool:
    """Whether this is one task that a user registered with seqio."""
    return list(self._setup.rows.values()) == [None]

  def _metrics_of_seqio(self, use_cached: bool) -> SeqioMetrics:
    limit = self._limits()[0]
    targets = [self._with_text(self._caches[0][i])["targets_text"] for i in range(limit)]
    return SeqioMetrics(self._tasks[0], self._settings.split, limit, targets,
                        use_cached=use_cached)

  def _cache(self, each: seqio.Task, config: TaskConfig, *, stochastic: bool,
             fingerprint: str) -> TokenCache:
    # Evaluation draws its noise once: the same rows at every step of every run.
    cache = cache_task(each, self._settings.split, cache_dir=config.folder(),
                       epoch_seed=0 if stochastic else None, fingerprint=fingerprint,
                       use_cached=config.use_cached)
    check_ids(each.name, cache, self._model.backbone.config.vocab_size)
    check_truncation(each.name, cache, self._lengths,
                     max_truncated_inputs=config.max_truncated_inputs,
                     max_truncated_targets=config.max_truncated_targets)
    return cache

  def _limits(self) -> list[int]:
    """How many rows of each cache: `max_examples` is shared out evenly over a mixture's tasks."""
    if self._settings.max_examples is None:
      return [len(cache) for cache in self._caches]
    share = -(-self._settings.max_examples // len(self._caches))
    return [min(share, len(cache)) for cache in self._caches]

  def _rows(self) -> list[dict[str, Any]]:
    return [self._with_text(cache[i]) for cache, limit in zip(self._caches, self._limits(),
                                                              strict=True) for i in range(limit)]

  def _with_text(self, row: dict[str, Any]) -> dict[str, Any]:
    # A user's task may not keep its texts; every row has a target, if only EOS.
    if row["targets_text"] or row["inputs_text"]:
      return row
    return row | {f"{name}_text": self._tokenizer.decode(row[name].tolist()) for name in FEATURES}

  def _batches(self):
    """Batches of the rows within the limits; the last one of a task is filled up and masked."""
    size = self._settings.batch_size
    if self._partitioner is not None:
      size = self._partitioner.padded(size)
    for cache, limit, prompt_id in zip(self._caches, self._limits(), self._prompt_ids,
                                       strict=True):
      left = limit
      for batch in eval_batches(cache, lengths=self._lengths, batch_size=size,
                                placement=self._placement, prompt_id=prompt_id):
        if left <= 0:
          break
        batch["row_mask"] &= np.cumsum(batch["row_mask"]) <= left
        left -= int(batch["row_mask"].sum())
        yield batch

  def _placed(self, arrays: Any) -> Any:
    """Rows, on the devices that compute them."""
    if self._partitioner is None or arrays is None:
      return arrays
    # Every host makes the whole batch and has all results: so all judge alike.
    return hosts.put(arrays, self._partitioner.over_batch())

  def _label_ids(self) -> np.ndarray:
    """`[C, U]` ids of the labels with EOS, padded."""
    ids = examples.label_ids(self._spec.labels, self._tokenizer, self._leading_sentinel)
    width = ids.shape[1]
    if width > self._lengths["targets"]:
      longest = self._spec.labels[int((ids != 0).sum(axis=1).argmax())]
      raise UserError("A label is longer than the targets", found=f"{longest!r}: {width} tokens",
                      wanted=f"at most {self._lengths['targets']}",
                      fix=f"raise TASK_FEATURE_LENGTHS['targets'] to {width}")
    return ids

  def _rank(self, call) -> Result:
    scores = []
    for batch in self._batches():
      found = call(self._model, scoring.label_scores,
                   self._placed(batch["encoder_input_tokens"]), self._labels,
                   self._placed(batch.get("prompt_ids")))
      scores.append(found[batch["row_mask"]])
    return self.ranked(np.concatenate(scores))

  def ranked(self, scores: np.ndarray) -> Result:
    """The result of `[rows, C]` label scores."""
    rows = self._rows()
    labels = self._spec.labels
    targets = _targets(rows)
    predictions = [labels[i] for i in scores.argmax(axis=1)]
    known = [labels.index(target.text) for target in targets]
    # Renormalised over the labels: what the choice was made by.
    log_probs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    metrics = self._metrics(targets, predictions)
    metrics.setdefault("accuracy", float((scores.argmax(axis=1) == known).mean()))
    metrics["label_loss"] = float(-log_probs[np.arange(len(rows)), known].mean())
    metrics["loss"] = float(-scores[np.arange(len(rows)), known].sum()
                            / sum((self._labels[k] != 0).sum() for k in known))
    return Result(metrics, [row["inputs_text"] for row in rows],
                  [target.text for target in targets], predictions, log_probs)

  def _decode(self, call) -> Result:
    predictions, losses, scores = [], [], []
    for batch in self._batches():
      inputs, ids = (self._placed(batch.get(name)) for name in ("encoder_input_tokens",
                                                               "prompt_ids"))
      tokens = call(self._model, generation.generate, inputs, None, ids,
                    max_length=self._lengths["targets"])
      kept = tokens[batch["row_mask"]]
      predictions += map(self.text, kept)
      losses.append(call(self._model, scoring.token_losses, self._placed(_arrays(batch))))
      if self.of_windows:
        found = call(self._model, scoring.output_scores, inputs, self._placed(tokens), ids)
        scores += found[batch["row_mask"]].tolist()
    kept = None
    if self.of_windows:
      # A question has one answer, that of the window in which the model is surest, and counts once.
      groups = [target.group for target in _targets(self._rows())]
      predictions = [predictions[row] for row in windows.best(groups, scores)]
      kept = windows.firsts(groups)
    result = self.generated(predictions, kept)
    result.metrics["loss"] = _mean_loss(losses)
    return result

  def generated(self, predictions: Sequence[str], kept: Sequence[int] | None = None) -> Result:
    """The result of generated texts, a row each; without the loss.

    Args:
      kept: the rows that are judged; None: all.
    """
    rows = self._rows()
    if kept is not None:
      rows, predictions = [rows[i] for i in kept], [predictions[i] for i in kept]
    targets = _targets(rows)
    return Result(self._metrics(targets, predictions), [row["inputs_text"] for row in rows],
                  [target.text for target in targets], list(predictions))

  def text(self, ids: np.ndarray) -> str:
    """What generated ids say."""
    return examples.answer(ids, self._tokenizer, self._leading_sentinel)

  def requests(self) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The rows' input ids, untrimmed, and the labels' ids `[C, U]` where rows are ranked."""
    return [row["inputs"] for row in self._rows()], self._labels

  def _loss(self, call) -> Result:
    own, gaps, count = [], [], 0
    for batch in self._batches():
      arrays = _arrays(batch)
      own.append(call(self._model, scoring.token_losses, self._placed(arrays)))
      real = int(batch["row_mask"].sum())
      if real > 1:
        # Every row gets its neighbour's input; what fills the batch up is no neighbour.
        swapped = dict(arrays)
        swapped["encoder_input_tokens"] = arrays["encoder_input_tokens"].copy()
        swapped["encoder_input_tokens"][:real] = np.roll(
          arrays["encoder_input_tokens"][:real], 1, axis=0)
        other = call(self._model, scoring.token_losses, self._placed(swapped))
        gaps.append([other[0] - own[-1][0], own[-1][1]])
      count += int(batch["row_mask"].sum())
    metrics = {"loss": _mean_loss(own), "examples": float(count)}
    if gaps:
      metrics["encoder_gap"] = _mean_loss(gaps)
    return Result(metrics, [], [], [])

  def _check_targets(self) -> None:
    """Every target is known, and one of the labels, before any weight is read."""
    labels = self._spec.labels if self.method == "rank" else None
    for each, cache, limit in zip(self._tasks, self._caches, self._limits(), strict=True):
      texts = ((row, cache.text("targets_text", row)) for row in range(limit))
      examples.check_targets(each.name, self._settings.split, texts, labels)

  def _metrics(self, targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    values: dict[str, float] = {"examples": float(len(targets))}
    if self._seqio_metrics is not None:
      return values | self._seqio_metrics(predictions)
    # In a mixture there may be functions that know nothing of ours: they get texts.
    known = targets if self._spec is not None else [target.text for target in targets]
    for metric in self._tasks[0].metric_fns:
      values |= {name: float(value) for name, value in metric(known, predictions).items()}
    return values


def _targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
  return [Target.parse(row["targets_text"], row["extras_text"]) for row in rows]


def _arrays(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens",
           "decoder_loss_weights", "prompt_ids")
  arrays = {name: batch[name] for name in names if name in batch}
  arrays["decoder_loss_weights"] = (arrays["decoder_loss_weights"]
                                    * batch["row_mask"][:, None]).astype(np.float32)
  return arrays


def _prompt_id(task: str, prompt_ids: Mapping[str, int] | None) -> int | None:
  if prompt_ids is None:
    return None
  if task not in prompt_ids:
    raise UserError("The bank has no prompt for this task", found=task,
                    wanted="one of " + ", ".join(prompt_ids), fix=nearest(task, prompt_ids))
  return prompt_ids[task]


def _mean_loss(sums: Sequence[Any]) -> float:
  total, tokens = np.stack(sums).sum(axis=0)
  return float(total / max(tokens, 1.0))
