"""The training loop: pre-training, LM adaptation, model and prompt tuning are settings of it.

  check settings -> data -> weights -> compile -> steps, evaluations, checkpoints -> summary

Everything that can be wrong is checked before the weights are loaded. Metrics stay on the device
until a log is due, so a step never waits for the host. A run that is repeated resumes, with the
same result to the bit, because the batch, the dropout mask and the rates of a step depend on the
seed and its number alone.
"""

import dataclasses
import logging
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import host_memory, partitioning, trees
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints.trained import TrainedCheckpoints
from prompt_tuning.data import TrainData
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings, Evaluator, Result
from prompt_tuning.optimizers import Optimizer
from prompt_tuning.prefetch import Prefetcher
from prompt_tuning.progress import Progress
from prompt_tuning.prompted import abstract_params
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.run_dir import RunDir, describe, environment
from prompt_tuning.task_setup import set_up
from prompt_tuning.tasks import vocabularies
from prompt_tuning.train_state import LossConfig, TrainState, make_train_step, new_state

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """One training run.

  Attributes:
    model, task, optimizer: what, on which data, how.
    model_dir: MODEL_DIR.
    trainable: TRAINABLE, path patterns of backbone parameters that are trained besides the prompt.
    train_steps: TRAIN_STEPS, of this run.
    batch_size: BATCH_SIZE, rows a step over all devices.
    eval_period: EVAL_PERIOD, steps between evaluations; each one also saves.
    log_period: steps between lines of metrics.csv.
    seed: RANDOM_SEED.
    eval_settings: of the evaluations during training; None: none.
    patience: stop after this many evaluations without a better one; None: never.
    prefetch: batches prepared ahead.
    export_dtype: EXPORT_DTYPE, of the `backbone/` folder that a run which trains one leaves.
  """

  model: ModelConfig
  task: TaskConfig
  optimizer: Optimizer
  model_dir: str
  train_steps: int
  batch_size: int
  trainable: tuple[str, ...] = ()
  eval_period: int = 1000
  log_period: int = 20
  seed: int = 0
  loss: LossConfig = LossConfig()
  eval_settings: EvalSettings | None = EvalSettings()
  patience: int | None = None
  prefetch: int = 4
  export_dtype: str = "float32"

  def __post_init__(self):
    for name in ("train_steps", "batch_size", "eval_period", "log_period", "prefetch"):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise UserError(f"TrainConfig.{name} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more",
                        fix=f"--gin.{name.upper()}=100")
    if self.patience is not None and self.eval_settings is None:
      raise UserError("Early stopping needs evaluations", found="patience without eval_settings",
                      wanted="both", fix="set eval_settings, or patience = None")
    if self.task.pack and self.model.prompt is not None and self.model.prompt_in_front:
      raise UserError("Packed rows hold a prompt a segment, not one in front",
                      found="TaskConfig.pack = True and ModelConfig.prompt_in_front = True",
                      wanted="virtual tokens placed by their ids",
                      fix="--gin.run_config.ModelConfig.prompt_in_front=False")
    object.__setattr__(self, "trainable", tuple(self.trainable))


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a run ends with.

  Attributes:
    params: `{"backbone": ..., "prompt": ...}` of the best evaluation (the last step without any).
    best: the best evaluation, or None.
    step: steps that are done.  interrupted: it was told to stop and can be resumed.
    summary: what summary.json holds.
  """

  params: Mapping[str, Any]
  best: Result | None
  step: int
  interrupted: bool
  summary: Mapping[str, Any]


class _Stop:
  """Turns SIGTERM and SIGINT into a flag that the loop reads between two steps."""

  def __init__(self):
    self.asked = False
    self._previous: dict[int, Any] = {}

  def __enter__(self):
    # Handlers can only be set by the main thread.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *unused):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: Any) -> None:
    if self.asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.asked = True


class Trainer:
  """Holds what a run is made of; `train(config)` is the way in."""

  def __init__(self, config: TrainConfig, operative_config: str):
    self.config = config
    self.started = time.time()
    self.mesh = partitioning.make_mesh()
    partitioning.check_batch_size(config.batch_size, config.loss.num_microbatches, self.mesh)
    self.module = config.model.module()
    config.model.check()
    self.split = trees.plan_split(abstract_params(self.module), config.trainable)
    config.model.check_prompt_start()
    self.dir = RunDir(config.model_dir)
    self.dir.check(describe(config))
    self.data = self._data()
    self.evaluator = None if config.eval_settings is None else Evaluator(
      config.model, config.task, config.eval_settings, self.prompt_ids)
    self.dir.claim(describe(config), self.corpus)
    self.dir.write_config(operative_config)
    self.checkpoints = TrainedCheckpoints(self.dir.path)
    self.transformation = None
    # What a resumed run remembers. `waiting`: metrics of the steps since the last line of
    # metrics.csv; `evaluated`: the step of the last evaluation.
    self.counters: dict[str, Any] = {"score": None, "best_step": None, "worse": 0,
                                     "evaluated": -1, "waiting": [], "seconds": 0.0}

  def run(self, on_start: Callable[[Mapping[str, Any]], None] | None = None) -> Outcome:
    try:
      return self._run(on_start or (lambda summary: None))
    finally:
      self.dir.close()
      self.checkpoints.close()

  def _run(self, on_start: Callable[[Mapping[str, Any]], None]) -> Outcome:
    config = self.config
    state, frozen, summary = self._start()
    self.dir.write_summary(summary)
    on_start(summary)
    first = step = int(state.step)
    best: Result | None = None
    pending: list[tuple[int, Any]] = []
    with _Stop() as stop, Progress(config.train_steps, step) as progress:
      if self._evaluation_is_due(step):
        best = self._evaluate(state, frozen, step, progress, best)
      self._keep_best(state)
      ended = self._is_out_of_patience() or step >= config.train_steps
      compiled = None if ended else self._compile(state, frozen, summary)
      self.dir.write_summary(summary)
      with Prefetcher(self._device_batch, start=step, stop=config.train_steps,
                      ahead=config.prefetch) as batches:
        began = time.time()
        while not ended:
          state, metrics = compiled(state, frozen, next(batches))
          step += 1
          if step == first + 1:
            # Its buffers may lie where the second step's do not fit, and stay beside them.
            jax.block_until_ready(metrics)
            host_memory.return_unused_memory()
          pending.append((step, metrics))
          progress.advance()
          stopping, evaluate = stop.asked, self._evaluation_is_due(step)
          save = stopping or evaluate or self._ends_a_period(step)
          if save or step % config.log_period == 0:
            self._read(pending, began)
            if step % config.log_period == 0 or self._ends_a_period(step):
              self._log(step, len(pending), began, progress)
            pending, began = [], time.time()
          if save:
            self._check_finite(state, step)
            if evaluate and not stopping:
              best = self._evaluate(state, frozen, step, progress, best)
            self._save(state)
            began = time.time()
            ended = stopping or self._is_out_of_patience() or step >= config.train_steps
      interrupted = stop.asked and step < config.train_steps
    return self._finish(state, frozen, best, step, interrupted, summary)

  def _ends_a_period(self, step: int) -> bool:
    return step % self.config.eval_period == 0 or step == self.config.train_steps

  def _evaluation_is_due(self, step: int) -> bool:
    return (self.evaluator is not None and self._ends_a_period(step)
            and self.counters["evaluated"] < step)

  def _is_out_of_patience(self) -> bool:
    return self.config.patience is not None and self.counters["worse"] >= self.config.patience

  def _data(self) -> TrainData:
    config = self.config
    setup = set_up(config.task, config.model.vocabulary)
    self.corpus = setup.fingerprint
    self.prompt_ids = config.model.prompt_ids(list(setup.parts))
    return TrainData(
      setup.task, lengths=config.task.feature_lengths, batch_size=config.batch_size,
      seed=config.seed, cache_dir=config.task.folder(),
      placement=config.model.placement(), prompt_ids=self.prompt_ids,
      pack=config.task.pack, stochastic=setup.stochastic, use_cached=config.task.use_cached,
      fingerprint=setup.fingerprint, vocab_size=config.model.backbone.vocab_size,
      max_truncated_inputs=config.task.max_truncated_inputs,
      max_truncated_targets=config.task.max_truncated_targets,
      host_index=jax.process_index(), host_count=jax.process_count())

  def _device_batch(self, step: int) -> Any:
    return jax.device_put(self.data.at(step), partitioning.over_batch(self.mesh))

  def _start(self) -> tuple[TrainState, Any, dict[str, Any]]:
    """Weights and state, at step 0 or where the run was left; and the summary of what was done."""
    config = self.config
    everywhere = partitioning.replicated(self.mesh)
    backbone = config.model.load_backbone(config.seed, self.split, everywhere)
    fingerprint = backbone_files.fingerprint(backbone)
    self.dir.check_backbone(config.model.initial_checkpoint_path, fingerprint)
    prompt = config.model.start_prompt(backbone, config.seed)
    params = {"backbone": backbone} | ({"prompt": prompt} if prompt else {})
    trainable, frozen = jax.device_put(self.split.split(params), everywhere)
    self.transformation = config.optimizer.build(trainable)
    # Scalars too: a checkpoint is restored to the devices that the state is on.
    state = jax.device_put(new_state(trainable, self.transformation), everywhere)
    resumed = self.checkpoints.latest_step()
    if resumed is not None:
      state, counters = self.checkpoints.restore(state)
      self.counters |= counters
      log.info("resuming at step %d", resumed)
    # Numbers after the checkpoint were computed by steps that will be repeated.
    self.dir.forget_after(-1 if resumed is None else resumed, self.counters["evaluated"])
    summary = self._summary(trainable, frozen, backbone, fingerprint, resumed)
    return state, frozen, summary

  def _summary(self, trainable: Any, frozen: Any, backbone: Any, fingerprint: str,
               resumed: int | None) -> dict[str, Any]:
    config = self.config
    random = config.model.initial_checkpoint_path == "random"
    size = {"parameters": trees.count(backbone), "bytes": trees.num_bytes(backbone)}
    nothing = {"parameters": 0, "bytes": 0}
    prompt = trainable.get("prompt", {})
    return {
      "task": config.task.name, "corpus": self.corpus, "prompt_ids": self.prompt_ids,
      "restored": nothing if random else size, "initialised": {
        "backbone": size if random else nothing,
        "prompt": {"parameters": trees.count(prompt), "bytes": trees.num_bytes(prompt)}},
      "trained": {"parameters": trees.count(trainable), "bytes": trees.num_bytes(trainable),
                  "share": trees.count(trainable) / (trees.count(trainable) + trees.count(frozen))},
      "frozen": {"parameters": trees.count(frozen), "bytes": trees.num_bytes(frozen)},
      "backbone": {"from": config.model.initial_checkpoint_path, "fingerprint": fingerprint},
      "data": {"rows": self.data.examples_per_epoch, "long_inputs": self.data.report.long_inputs,
               "long_targets": self.data.report.long_targets,
               "epochs": config.train_steps / max(self.data.steps_per_epoch, 1)},
      "resumed_at": resumed, **environment(config.seed)}

  def _compile(self, state: TrainState, frozen: Any, summary: dict[str, Any]) -> Any:
    config = self.config
    step = make_train_step(self.module, self.split, config.optimizer, self.transformation,
                           config.loss, config.seed)
    began = time.time()
    batch = self._device_batch(int(state.step))
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    host_memory.return_unused_memory()
    summary["seconds"] = {"to_first_step": time.time() - self.started,
                          "compile": time.time() - began}
    return compiled

  def _read(self, pending: list[tuple[int, Any]], began: float) -> None:
    """One host sync for all the steps since the last one; stops at the first bad number."""
    values = jax.device_get([metrics for _, metrics in pending])
    for (step, _), metrics in zip(pending, values, strict=True):
      if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
        raise self._diverged(f"The loss or its gradient is not finite at step {step}",
                             f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']}")
    self.counters["waiting"] += [{name: float(value) for name, value in metrics.items()}
                                 for metrics in values]
    self.counters["seconds"] += time.time() - began

  def _check_finite(self, state: TrainState, step: int) -> None:
    # The loss of a step is that of the parameters before it.
    finite = jax.device_get(jax.tree.map(lambda x: jnp.isfinite(x).all(), state.trainable))
    bad = [path for path, is_finite in trees.flatten(finite).items() if not is_finite]
    if bad:
      raise self._diverged(f"Trained parameters are not finite after step {step}",
                           ", ".join(bad[:4]))

  def _diverged(self, what: str, found: str) -> UserError:
    saved = self.checkpoints.latest_step()
    kept = "nothing was saved yet" if saved is None else (
      f"the last good state is kept in {self.dir.path} (step {saved})")
    return UserError(what, found=found, wanted="finite numbers",
                     fix=f"lower LEARNING_RATE, in a new MODEL_DIR; {kept}")

  def _log(self, step: int, num_steps: int, began: float, progress: Progress) -> None:
    """A line of metrics.csv a metric: the means since the last ones."""
    waiting, self.counters["waiting"] = self.counters["waiting"], []
    mean = {name: float(np.mean([m[name] for m in waiting])) for name in waiting[0]}
    mean["steps_per_second"] = num_steps / max(time.time() - began, 1e-9)
    mean["tokens_per_second"] = self._tokens_per_step() * mean["steps_per_second"]
    self.dir.log(step, "train", mean)
    progress.show(step, mean)

  def _tokens_per_step(self) -> int:
    lengths = self.config.task.feature_lengths
    positions = lengths["inputs"] + lengths["targets"] + self.config.model.placement().size
    return self.config.batch_size * positions

  def _evaluate(self, state: TrainState, frozen: Any, step: int, progress: Progress,
                best: Result | None) -> Result | None:
    result = self.evaluator(state.trainable, frozen, self.split)
    self.counters["evaluated"] = step
    self.dir.log(step, "validation", result.metrics)
    progress.evaluated(step, result.metrics)
    score = self.evaluator.score(result.metrics)
    if self.counters["score"] is not None and score <= self.counters["score"]:
      self.counters["worse"] += 1
      return best
    self.counters |= {"score": score, "best_step": step, "worse": 0}
    return result

  def _write_best(self, state: TrainState) -> None:
    if "prompt" in state.trainable:
      prompt = self.module.prompt
      self.dir.write_prompt(trees.flatten(jax.device_get(prompt.fold(state.trainable["prompt"]))),
                            {"method": type(prompt.served()).__name__,
                             "task": self.config.task.name, "prompt_ids": self.prompt_ids})

  def _keep_best(self, state: TrainState) -> None:
    if self.counters["best_step"] == int(state.step):
      self._write_best(state)
      self.checkpoints.save(state, self.counters, best=True)

  def _save(self, state: TrainState) -> None:
    # A resume repeats what comes before the last state is saved, and makes the best one of it. With
    # the best one first, it could find one that comes after its own state, and no older one.
    self.dir.plot()
    self.checkpoints.save(state, self.counters)
    self._keep_best(state)

  def _finish(self, state: TrainState, frozen: Any, best: Result | None, step: int,
              interrupted: bool, summary: dict[str, Any]) -> Outcome:
    config = self.config
    if self.counters["best_step"] is not None:
      state, _ = self.checkpoints.restore(state, best_step=self.counters["best_step"])
    else:
      self._write_best(state)
    params = self.split.merge(state.trainable, frozen)
    if best is None and self.evaluator is not None and not interrupted:
      best = self.evaluator(state.trainable, frozen, self.split)
    trains_backbone = any(path.startswith("backbone/") for path in self.split.trained)
    if trains_backbone:
      self._write_backbone(params["backbone"], int(state.step))
    summary |= {"steps": step, "interrupted": interrupted,
                "stopped_early": step < config.train_steps and not interrupted,
                "best_step": self.counters["best_step"],
                "best": None if best is None else best.metrics}
    summary["seconds"] = summary.get("seconds", {}) | {"steps": self.counters["seconds"],
                           "total": time.time() - self.started}
    self.dir.write_summary(summary)
    return Outcome(params, best, step, interrupted, summary)

  def _write_backbone(self, params: Mapping[str, Any], step: int) -> None:
    config = self.config
    backbone_files.save(
      pathlib.Path(config.model_dir) / "backbone", params, config.model.backbone,
      vocabulary=vocabularies.fingerprint(config.model.vocabulary),
      about={"from": config.model.initial_checkpoint_path, "task": config.task.name, "step": step,
             "corpus": self.corpus}, dtype=config.export_dtype)


def train(config: TrainConfig, operative_config: str = "",
          on_start: Callable[[Mapping[str, Any]], None] | None = None) -> Outcome:
  """Runs or resumes one training run.

  Args:
    operative_config: for config.gin.
    on_start: called with the summary before the first step.

  Raises:
    UserError: a setting, a file or the data is wrong, the disk is full, or the loss diverged;
      what was saved before is kept.
  """
  return Trainer(config, operative_config).run(on_start)
