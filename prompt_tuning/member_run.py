"""The training loop of many prompts at once: each is judged, kept and left on its own.

A run of M prompts leaves what a run of one does, of the best one, and besides:

  members.csv            a row a prompt: seed, learning rate, start, best step and its metrics
  members/<i>/           prompt i at its own best step
  metrics.csv            splits `train/<i>` and `validation/<i>`; `train` and `validation` are means
  summary.json           mean and standard deviation, the ensembles, the rates
  learning_rates.png     where rates differ

A prompt that runs out of patience is judged no more; one whose numbers are not finite any more is
left as it was, and out of the mean. The run goes on as long as one is left. A run of its own would
have ended at that step, with the same best prompt.
"""

import dataclasses
import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.evaluate import Result
from prompt_tuning.members import (
  Member,
  check_different,
  choose,
  make_members_step,
  mean_and_deviation,
  member_of,
  new_members_state,
  stack,
)
from prompt_tuning.progress import Progress
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.task_setup import TaskSetup
from prompt_tuning.train_config import TrainConfig
from prompt_tuning.train_loop import Trainer
from prompt_tuning.train_state import TrainState

log = logging.getLogger(__name__)


class _OwnRows:
  """Batches `[M, B, ...]`: of every member its own."""

  def __init__(self, parts: Sequence[Any]):
    self._parts = parts
    self.report, self.reports = parts[0].report, parts[0].reports
    self.caches = parts[0].caches
    self.steps_per_epoch = parts[0].steps_per_epoch
    self.examples_per_epoch = parts[0].examples_per_epoch

  def at(self, step: int) -> dict[str, np.ndarray]:
    batches = [part.at(step) for part in self._parts]
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

  def close(self) -> None:
    for part in self._parts:
      part.close()


class MembersTrainer(Trainer):
  """`Trainer` for `TrainConfig.members`. State and metrics have the member axis in front."""

  def __init__(self, config: TrainConfig, operative_config: str):
    self.members = config.prompts()
    super().__init__(config, operative_config)
    # `diverged`: the first step whose numbers were not finite.
    self.counters["members"] = [
      {"score": None, "best_step": None, "worse": 0, "metrics": None, "diverged": None}
      for _ in self.members]
    self.results: list[Result | None] = [None] * len(self.members)
    # Each member as it was at its own best step.
    self.kept: TrainState | None = None

  @property
  def records(self) -> list[dict[str, Any]]:
    return self.counters["members"]

  def _model(self, member: Member) -> ModelConfig:
    model = self.config.model
    if member.initializer is None:
      return model
    return dataclasses.replace(model, prompt=model.prompt.clone(initializer=member.initializer))

  def _check_starts(self) -> None:
    for each in self.members:
      self._model(each).check_prompt_start()

  def _batches(self, setup: TaskSetup) -> Any:
    # Without an order and noise of its own a member's rows are those of all.
    self._rows_differ = self.config.members.own_rows and (
      self.config.task.shuffle or bool(setup.stochastic))
    if not self.config.members.own_rows:
      return super()._batches(setup)
    return _OwnRows([self._train_data(setup, each.seed) for each in self.members])

  def _device_batch(self, step: int) -> Any:
    axis = int(self.config.members.own_rows)
    return self.partitioner.put_batch(self.data.at(step), axis)

  def _tokens_per_step(self) -> int:
    return len(self.members) * super()._tokens_per_step()

  def _start_prompt(self, backbone: Mapping[str, Any]) -> dict[str, Any]:
    starts = [self._model(each).start_prompt(backbone, each.seed) for each in self.members]
    check_different(self.members, starts,
                    seeds_matter=self._rows_differ or self.module.has_dropout)
    # What is frozen is one for all.
    constants = {path: leaf for path, leaf in trees.flatten(starts[0]).items()
                 if trees.is_constant(path)}
    return trees.join(stack(starts), trees.unflatten(constants))

  def _new_state(self, trainable: Any) -> TrainState:
    return new_members_state(trainable, self.config.optimizer)

  def _make_step(self) -> Any:
    config = self.config
    return make_members_step(self.module, self.split, config.optimizer, config.loss, self.members,
                             own_rows=config.members.own_rows, at_once=config.members.at_once)

  def _start(self) -> tuple[TrainState, Any, dict[str, Any]]:
    state, frozen, summary = super()._start()
    step = self.checkpoints.latest_step(best=True)
    if step is not None and summary["resumed_at"] is not None:
      self.kept, _ = self.checkpoints.restore(state, best_step=step)
    summary["members"] = len(self.members)
    return state, frozen, summary

  def _check_metrics(self, step: int, metrics: dict[str, Any]) -> None:
    is_finite = metrics.pop("is_finite")
    for i, record in enumerate(self.records):
      if record["diverged"] is None and not is_finite[i]:
        record["diverged"] = step
        log.warning("prompt %d: its numbers are not finite after step %d; it is left as it was", i,
                    step)
    if all(record["diverged"] is not None for record in self.records):
      raise self._diverged(f"The loss, its gradient or a parameter of every prompt is not finite "
                           f"at step {step}", f"losses {metrics['loss'].tolist()}")

  def _means(self, step: int, waiting: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = {name: np.mean([m[name] for m in waiting], axis=0) for name in waiting[0]}
    rows = []
    for i, record in enumerate(self.records):
      if record["diverged"] is None:
        rows.append({name: float(value[i]) for name, value in values.items()})
        self.dir.log(step, f"train/{i}", rows[-1])
    return mean_and_deviation(rows)[0]

  def _goes_on(self, record: Mapping[str, Any]) -> bool:
    patience = self.config.patience
    return record["diverged"] is None and (patience is None or record["worse"] < patience)

  def _evaluation_is_due(self, step: int) -> bool:
    return super()._evaluation_is_due(step) and any(map(self._goes_on, self.records))

  def _is_out_of_patience(self) -> bool:
    return not any(map(self._goes_on, self.records))

  def _evaluate(self, state: TrainState, frozen: Any, step: int, progress: Progress) -> None:
    found = []
    for i, record in enumerate(self.records):
      if not self._goes_on(record):
        continue
      result = self.evaluator(member_of(state.trainable, i), frozen, self.split)
      found.append(result.metrics)
      self.dir.log(step, f"validation/{i}", result.metrics)
      if self._is_better(record, result, step):
        record["metrics"] = result.metrics
        self.results[i] = result
    self.counters["best_step"] = self.records[self._best()]["best_step"]
    mean, _ = mean_and_deviation(found)
    self.counters["evaluated"] = step
    self.dir.log(step, "validation", mean)
    progress.evaluated(step, mean)

  def _best(self) -> int:
    """The member with the best score, the first of equals."""
    best = 0
    for i, record in enumerate(self.records):
      if record["score"] > self.records[best]["score"]:
        best = i
    return best

  def _keep_best(self, state: TrainState) -> None:
    improved = np.array([record["best_step"] == int(state.step) for record in self.records])
    if not improved.any():
      return
    parts = state.trainable, state.opt_state
    # Copies: the next step overwrites the state.
    parts = jax.tree.map(jnp.copy, parts) if self.kept is None else choose(
      improved, parts, (self.kept.trainable, self.kept.opt_state))
    self.kept = TrainState(jnp.copy(state.step), *parts)
    for i in np.flatnonzero(improved):
      self._write_prompt(member_of(self.kept.trainable["prompt"], i), f"members/{i}")
    self._write_prompt(member_of(self.kept.trainable["prompt"], self._best()))
    self.checkpoints.save(self.kept, self.counters, best=True)

  def _best_state(self, state: TrainState, frozen: Any, interrupted: bool) -> TrainState:
    if not interrupted:
      for i, result in enumerate(self.results):
        if result is None:
          own = member_of(self.kept.trainable, i)
          self.results[i] = self.evaluator(own, frozen, self.split)
    self.best = self.results[self._best()]
    return self.kept.replace(trainable=member_of(self.kept.trainable, self._best()))

  def _results(self) -> dict[str, Any]:
    """The table, the figure, and what the summary says."""
    records, best = self.records, self._best()
    rows = [{"member": i, "seed": each.seed, "learning_rate": each.learning_rate,
             "init": _name(each.initializer, self.config.model.prompt),
             "best_step": record["best_step"], "diverged": record["diverged"], **record["metrics"]}
            for i, (each, record) in enumerate(zip(self.members, records, strict=True))]
    self.dir.write_table("members.csv", list(rows[0]), rows)
    selection = self.selection
    by_rate: dict[float, list[float]] = {}
    for row in rows:
      by_rate.setdefault(row["learning_rate"], []).append(selection.value(row))
    if len(by_rate) > 1:
      self.dir.plot_learning_rates([row["learning_rate"] for row in rows],
                                   [selection.value(row) for row in rows], selection.name)
    mean, deviation = mean_and_deviation(
      [record["metrics"] for record in records if record["diverged"] is None])
    complete = [result for result in self.results if result is not None]
    return {"best_step": records[best]["best_step"], "best": records[best]["metrics"],
            "best_member": best, "table": rows, "mean": mean, "standard_deviation": deviation,
            "ensembles": (self.evaluator.ensembles(complete)
                          if len(complete) == len(records) else {}),
            "learning_rates": [
              {"rate": rate, selection.name: statistics.fmean(values), "prompts": len(values)}
              for rate, values in sorted(by_rate.items())] if len(by_rate) > 1 else []}


def _name(initializer: Any, prompt: Any) -> str:
  return repr(getattr(prompt, "initializer", "") if initializer is None else initializer)
