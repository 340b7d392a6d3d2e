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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import distillation, host_memory, hosts, placement, trees
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints.trained import TrainedCheckpoints
from prompt_tuning.data import TrainData
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import Evaluator, Result
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prefetch import Prefetcher
from prompt_tuning.progress import Progress
from prompt_tuning.prompted import abstract_params, logical_axes
from prompt_tuning.run_dir import ReadOnlyRunDir, RunDir, describe, environment
from prompt_tuning.selection import Selection
from prompt_tuning.task_setup import TaskSetup, set_up
from prompt_tuning.tasks import vocabularies
from prompt_tuning.train_config import TrainConfig
from prompt_tuning.train_state import TrainState, make_train_step, new_state

log = logging.getLogger(__name__)


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
  """Turns SIGTERM and SIGINT into a flag that the loop reads between two steps.

  Of several processes all stop at one step, which JAX agrees upon: it has the handler of SIGTERM.
  """

  def __init__(self):
    self.asked = False
    self._previous: dict[int, Any] = {}

  def __enter__(self):
    # Handlers can only be set by the main thread.
    if threading.current_thread() is threading.main_thread() and hosts.count() == 1:
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

  def is_due(self, step: int) -> bool:
    """Whether to stop after this step; asked once a step."""
    self.asked = self.asked or hosts.stop_is_agreed(step)
    return self.asked


def train_data(config: TrainConfig, setup: TaskSetup, seed: int,
               prompt_ids: Mapping[str, int] | None = None,
               share: tuple[int, int] = (0, 1)) -> TrainData:
  """The batches of a run; tokenises what is not cached yet.

  Args:
    prompt_ids: task -> row of a bank of prompts.
    share: index and number of the hosts that share each batch out.

  Raises:
    UserError: settings and data do not fit.
  """
  return TrainData(
    setup.task, lengths=config.task.feature_lengths, batch_size=config.batch_size,
    seed=seed, cache_dir=config.task.folder(),
    placement=config.model.placement(), prompt_ids=None if prompt_ids is None else {
      part: prompt_ids[name] for part, name in setup.names.items()},
    pack=config.task.pack, shuffle=config.task.shuffle, stochastic=setup.stochastic,
    use_cached=config.task.use_cached, fingerprint=setup.fingerprint,
    vocab_size=config.model.backbone.vocab_size,
    max_truncated_inputs=config.task.max_truncated_inputs,
    max_truncated_targets=config.task.max_truncated_targets,
    host_index=share[0], host_count=share[1], last_step=config.train_steps - 1)


class Trainer:
  """Holds what a run is made of; `train.train(config)` is the way in.

  `member_run.py` trains many prompts at once, by other answers of the methods below `_run`.
  """

  def __init__(self, config: TrainConfig, operative_config: str):
    self.config = config
    self.started = time.time()
    self.partitioner = Partitioner.make(config.model.layout)
    self.partitioner.layout.check(config.model.backbone, config.batch_size,
                                  config.loss.num_microbatches)
    self.module = config.model.module()
    config.model.check()
    self.split = trees.plan_split(abstract_params(self.module), config.trainable)
    self._check_starts()
    # Each piece of a batch has dropout masks of its own; without dropout only the rounding changes.
    fixed = ("loss.num_microbatches",) if self.module.has_dropout else ()
    self.dir = (RunDir if hosts.is_first() else ReadOnlyRunDir)(config.model_dir, fixed)
    self.dir.check(self._settings())
    hosts.check_shared(config.model_dir)
    self.data = self._data()
    self.evaluator = None if config.eval_settings is None else Evaluator(
      config.model, config.task, config.eval_settings, self.prompt_ids, self.partitioner)
    self.selection = None if self.evaluator is None else Selection.of(
      config.best_metrics, self.evaluator)
    hosts.barrier("checked")  # What one host has found free, another does not write to before.
    self.dir.claim(self._settings(), self.corpus)
    self.dir.write_config(operative_config)
    self.checkpoints = TrainedCheckpoints(self.dir.path)
    self.transformation: Any = None
    self.best: Result | None = None
    # What a resumed run remembers. `waiting`: metrics of the steps since the last line of
    # metrics.csv; `evaluated`: the step of the last evaluation.
    self.counters: dict[str, Any] = {"score": None, "best_step": None, "worse": 0,
                                     "evaluated": -1, "waiting": [], "seconds": 0.0}

  def run(self, on_start: Callable[[Mapping[str, Any]], None] | None = None) -> Outcome:
    try:
      return self._run(on_start or (lambda summary: None))
    finally:
      self.data.close()
      self.dir.close()
      self.checkpoints.close()

  def _run(self, on_start: Callable[[Mapping[str, Any]], None]) -> Outcome:
    config = self.config
    state, frozen, summary = self._start()
    self.dir.write_summary(summary)
    on_start(summary)
    first = step = int(state.step)
    pending: list[tuple[int, Any]] = []
    with _Stop() as stop, Progress(config.train_steps, step) as progress:
      if self._evaluation_is_due(step):
        self._evaluate(state, frozen, step, progress)
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
          stopping, evaluate = stop.is_due(step), self._evaluation_is_due(step)
          save = stopping or evaluate or self._ends_a_period(step)
          if save or step % config.log_period == 0:
            self._read(pending, began)
            if step % config.log_period == 0 or self._ends_a_period(step):
              self._log(step, len(pending), began, progress)
            pending, began = [], time.time()
          if save:
            self._check_finite(state, step)
            # At the last step there is no later start to leave it to.
            if evaluate and (not stopping or step >= config.train_steps):
              self._evaluate(state, frozen, step, progress)
            self._save(state)
            began = time.time()
            ended = stopping or self._is_out_of_patience() or step >= config.train_steps
      interrupted = stop.asked and step < config.train_steps
    return self._finish(state, frozen, step, interrupted, summary)

  def _ends_a_period(self, step: int) -> bool:
    return step % self.config.eval_period == 0 or step == self.config.train_steps

  def _evaluation_is_due(self, step: int) -> bool:
    return (self.evaluator is not None and self._ends_a_period(step)
            and self.counters["evaluated"] < step)

  def _is_out_of_patience(self) -> bool:
    return self.config.patience is not None and self.counters["worse"] >= self.config.patience

  def _check_starts(self) -> None:
    self.config.model.check_prompt_start()
    if self.config.distillation is not None:
      self.config.distillation.check(self.module)
      self.teachers = self.config.distillation.bank(self.config.model.backbone.emb_dim)

  def _settings(self) -> dict[str, Any]:
    """What a resume must repeat."""
    if self.config.distillation is None:
      return describe(self.config)
    return describe(self.config) | {"teachers": distillation.fingerprint(self.teachers)}

  def _data(self) -> Any:
    setup = set_up(self.config.task, self.config.model.vocabulary)
    self.corpus, self.task_names = setup.fingerprint, setup.names
    self.prompt_ids = self.config.model.prompt_ids(setup.order)
    batches = self._batches(setup)
    setup.check_prompt(self.config.model.prompt, batches.caches, self.config.model.tokenizer(),
                       leading_sentinel=self.config.task.leading_sentinel,
                       label_smoothing=self.config.loss.label_smoothing)
    return batches

  def _batches(self, setup: TaskSetup) -> Any:
    return self._train_data(setup, self.config.seed)

  def _train_data(self, setup: TaskSetup, seed: int) -> TrainData:
    share = hosts.row_share(self.partitioner.over_batch(), self.partitioner.row_shards)
    return train_data(self.config, setup, seed, self.prompt_ids, share)

  def _device_batch(self, step: int) -> Any:
    return self.partitioner.put_batch(self.data.at(step))

  def _start(self) -> tuple[TrainState, Any, dict[str, Any]]:
    """Weights and state, at step 0 or where the run was left; and the summary of what was done."""
    config = self.config
    backbone = config.model.load_backbone(config.seed, self.split, self.partitioner)
    fingerprint = backbone_files.fingerprint(backbone)
    self.dir.check_backbone(config.model.initial_checkpoint_path, fingerprint)
    prompt = self._start_prompt(backbone)
    params = {"backbone": backbone} | ({"prompt": prompt} if prompt else {})
    parts = self.split.split(params)
    axes = logical_axes(self.module)
    trainable, frozen = hosts.put(
      parts, tuple(self.partitioner.params(part, axes) for part in parts))
    # Scalars too: a checkpoint is restored to the devices that the state is on.
    state = self._new_state(trainable)
    state = hosts.put(state, self.partitioner.state(state, trainable, axes))
    self.checkpoints.constants = {name: frozen[name] for name in ("prompt",) if name in frozen}
    resumed = self.checkpoints.latest_step()
    if resumed is not None:
      state, counters = self.checkpoints.restore(state)
      frozen = frozen | self.checkpoints.constants
      self.counters |= counters
      log.info("resuming at step %d", resumed)
    # Numbers after the checkpoint were computed by steps that will be repeated.
    self.dir.forget_after(-1 if resumed is None else resumed, self.counters["evaluated"])
    summary = self._summary(trainable, frozen, backbone, fingerprint, resumed)
    return state, frozen, summary

  def _start_prompt(self, backbone: Mapping[str, Any]) -> dict[str, Any]:
    return self.config.model.start_prompt(backbone, self.config.start_seed)

  def _new_state(self, trainable: Any) -> TrainState:
    self.transformation = self.config.optimizer.build(trainable)
    return new_state(trainable, self.transformation)

  def _make_step(self) -> Callable:
    config = self.config
    term = None if config.distillation is None else config.distillation.term(
      self.module, self.teachers)
    return make_train_step(self.module, self.split, config.optimizer, self.transformation,
                           config.loss, config.start_seed, term)

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
                  "share": trees.count(trainable) / (trees.count(trainable) + trees.count(frozen)),
                  "sliced_stacks": self.split.sliced_stacks()},
      "frozen": {"parameters": trees.count(frozen), "bytes": trees.num_bytes(frozen)},
      "backbone": {"from": config.model.initial_checkpoint_path, "fingerprint": fingerprint},
      "data": {"rows": self.data.examples_per_epoch, "long_inputs": self.data.report.long_inputs,
               "long_targets": self.data.report.long_targets, "by_task": self._counts(),
               "epochs": config.train_steps / max(self.data.steps_per_epoch, 1)},
      "resumed_at": resumed, "started_in": str(pathlib.Path.cwd()), **environment(config.seed)}

  def _counts(self) -> dict[str, dict[str, Any]]:
    """Task -> split -> rows, and how many were left out or lose their end."""
    found = {self.task_names[name]: {"train": report.counts()}
             for name, report in self.data.reports.items()}
    if self.evaluator is not None and self.config.eval_settings is not None:
      for name, report in self.evaluator.reports.items():
        found[name][self.config.eval_settings.split] = report.counts()
    if len(found) == 1:
      # Users know a task of their own files by MIXTURE_OR_TASK_NAME.
      (counts,) = found.values()
      return {self.config.task.name: counts}
    return found

  def _compile(self, state: TrainState, frozen: Any, summary: dict[str, Any]) -> Any:
    began = time.time()
    batch = self._device_batch(int(state.step))
    places = jax.tree.map(lambda leaf: leaf.sharding, state), self.partitioner.replicated
    compiled = self.partitioner.jit(self._make_step(), donate_argnums=0, out_shardings=places
                                    ).lower(state, frozen, batch).compile()
    host_memory.return_unused_memory()
    summary["seconds"] = {"to_first_step": time.time() - self.started,
                          "compile": time.time() - began}
    return compiled

  def _read(self, pending: list[tuple[int, Any]], began: float) -> None:
    """One host sync for all the steps since the last one; stops at the first bad number."""
    values = jax.device_get([metrics for _, metrics in pending])
    for (step, _), metrics in zip(pending, values, strict=True):
      self._check_metrics(step, metrics)
    self.counters["waiting"] += [{name: value.tolist() for name, value in metrics.items()}
                                 for metrics in values]
    self.counters["seconds"] += time.time() - began

  def _check_metrics(self, step: int, metrics: dict[str, Any]) -> None:
    if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
      raise self._diverged(f"The loss or its gradient is not finite at step {step}",
                           f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']}")

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
    mean = self._means(step, waiting)
    mean["steps_per_second"] = num_steps / max(time.time() - began, 1e-9)
    mean["tokens_per_second"] = self._tokens_per_step() * mean["steps_per_second"]
    self.dir.log(step, "train", mean)
    progress.show(step, mean)

  def _means(self, step: int, waiting: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([m[name] for m in waiting])) for name in waiting[0]}

  def _tokens_per_step(self) -> int:
    lengths = self.config.task.feature_lengths
    positions = lengths["inputs"] + lengths["targets"] + self.config.model.placement().size
    return self.config.batch_size * positions

  def _evaluate(self, state: TrainState, frozen: Any, step: int, progress: Progress) -> None:
    result = self.evaluator(state.trainable, frozen, self.split)
    self.counters["evaluated"] = step
    self.dir.log(step, "validation", result.metrics)
    progress.evaluated(step, result.metrics)
    if self._is_better(self.counters, result, step):
      self.best = result

  def _is_better(self, record: dict[str, Any], result: Result, step: int) -> bool:
    """Whether a prompt's result is better than its best one, which `record` then remembers."""
    # What is no number is worse than any, and equal to itself.
    score = [value if math.isfinite(value) else -math.inf
             for value in self.selection.score(result.metrics)]
    if record["score"] is not None and score <= record["score"]:
      record["worse"] += 1
      return False
    record |= {"score": score, "best_step": step, "worse": 0}
    return True

  def _write_best(self, state: TrainState) -> None:
    if "prompt" in state.trainable:
      self._write_prompt(state.trainable["prompt"])

  def _write_prompt(self, trained: Any, folder: str = "") -> None:
    prompt = self.module.prompt
    params = hosts.fetch(trees.join(trained, self.checkpoints.constants.get("prompt", {})))
    model = self.config.model
    self.dir.write_prompt(trees.flatten(jax.device_get(prompt.fold(params))), {
      "method": type(prompt.served()).__name__, "task": self.config.task.name,
      "prompt_ids": self.prompt_ids, "template": model.template or placement.FRONT,
      "vocabulary": vocabularies.fingerprint(model.vocabulary),
      "checkpoint": model.initial_checkpoint_path}, folder)

  def _keep_best(self, state: TrainState) -> None:
    if self.counters["best_step"] is None:  # Without evaluations the last is the best.
      self._write_best(state)
    elif self.counters["best_step"] == int(state.step):
      # The checkpoint first: it says which step the prompt beside it is of (`trained_model.py`).
      self.checkpoints.save(state, self.counters, best=True)
      self._write_best(state)

  def _save(self, state: TrainState) -> None:
    # A resume repeats what comes before the last state is saved, and makes the best one of it. With
    # the best one first, it could find one that comes after its own state, and no older one.
    self.dir.plot()
    self.checkpoints.save(state, self.counters)
    self._keep_best(state)

  def _finish(self, state: TrainState, frozen: Any, step: int, interrupted: bool,
              summary: dict[str, Any]) -> Outcome:
    state = self._best_state(state, frozen, interrupted)
    params = self.split.merge(state.trainable, frozen)
    trains_backbone = any(path.startswith("backbone/") for path in self.split.trained)
    if trains_backbone:
      self._write_backbone(params["backbone"], int(state.step))
    summary |= {"steps": step, "interrupted": interrupted,
                "stopped_early": step < self.config.train_steps and not interrupted,
                **self._results()}
    summary["seconds"] = summary.get("seconds", {}) | {"steps": self.counters["seconds"],
                           "total": time.time() - self.started}
    self.dir.write_summary(summary)
    return Outcome(params, self.best, step, interrupted, summary)

  def _best_state(self, state: TrainState, frozen: Any, interrupted: bool) -> TrainState:
    """The best evaluation's, or the last without any; evaluated, if this process has not yet."""
    if self.counters["best_step"] is not None:
      state, _ = self.checkpoints.restore(state, best_step=self.counters["best_step"])
    else:
      self._write_best(state)
    if self.best is None and self.evaluator is not None and not interrupted:
      self.best = self.evaluator(state.trainable, frozen, self.split)
    return state

  def _results(self) -> dict[str, Any]:
    """What the summary says of the best evaluation."""
    return {"best_step": self.counters["best_step"],
            "best": None if self.best is None else self.best.metrics}

  def _write_backbone(self, params: Mapping[str, Any], step: int) -> None:
    config, params = self.config, hosts.fetch(params)
    if not hosts.is_first():
      return
    backbone_files.save(
      pathlib.Path(config.model_dir) / "backbone", params, config.model.backbone,
      vocabulary=vocabularies.fingerprint(config.model.vocabulary),
      about={"from": config.model.initial_checkpoint_path, "task": config.task.name, "step": step,
             "corpus": self.corpus}, dtype=config.export_dtype)
