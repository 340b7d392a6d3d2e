"""Mixtures: rates by formula, streams of several hosts, and what is refused."""

import dataclasses

import numpy as np
import pytest

from prompt_tuning.data import TrainData
from prompt_tuning.errors import UserError
from prompt_tuning.tasks import mixtures, registry
from prompt_tuning.tasks.spec import MixtureSpec, Proportional, TaskSpec


@dataclasses.dataclass(frozen=True)
class Numbers:
  count: int
  splits: tuple[str, ...] = ("train",)

  def rows(self, split):
    return iter({"inputs": f"{self.count} {i}", "targets": "x"} for i in range(self.count))

  def fingerprint(self):
    return str(self.count)


def mixture(name, rate):
  tasks = tuple(TaskSpec(name=f"{name}_{count}", source=Numbers(count), to_text=dict, labels=None,
                         metrics=("accuracy",)) for count in (4, 16, 36))
  return registry.build(MixtureSpec(name=name, tasks=tasks, rates={
    task.name: rate for task in tasks}), vocabulary="bytes")


@pytest.mark.parametrize("cap,temperature,expected", [
  (None, 1, (4, 16, 36)), (20, 1, (4, 16, 20)), (None, 2, (2, 4, 6)), (16, 2, (2, 4, 4))])
def test_rates_follow_the_examples(cap, temperature, expected):
  mixed = mixture(f"mix_{cap}_{temperature}", Proportional(cap=cap, temperature=temperature))
  assert sorted(mixed.get_rate(task) for task in mixed.tasks) == pytest.approx(expected)


def test_hosts_are_disjoint_and_a_resume_goes_on(tmp_path):
  mixed = mixture("mix_hosts", Proportional())
  settings = {"lengths": {"inputs": 8, "targets": 3}, "batch_size": 4, "seed": 1,
              "cache_dir": tmp_path}
  whole = TrainData(mixed, **settings)
  hosts = [TrainData(mixed, **settings, host_index=i, host_count=2) for i in range(2)]
  rows = []
  for step in range(14):  # 56 rows: an epoch of all three tasks
    batch = whole.at(step)["encoder_input_tokens"]
    parts = [host.at(step)["encoder_input_tokens"] for host in hosts]
    np.testing.assert_array_equal(np.concatenate(parts), batch)
    rows += map(tuple, batch.tolist())
  assert len(set(rows)) == 56
  late = TrainData(mixed, **settings).at(13)["encoder_input_tokens"]
  np.testing.assert_array_equal(late, batch)


@pytest.mark.parametrize("settings,message", [
  ({"tasks": "mr"}, "names no tasks"), ({"tasks": ["mr", "mr"]}, "names no tasks"),
  ({"tasks": ["mr"], "rates": "equl"}, "(?s)MIXTURE_RATES is unknown.*did you mean 'equal'"),
  ({"tasks": ["mr"], "rates": {"glue_rte": 1}}, "(?s)different tasks.*glue_rte, mr")])
def test_mistakes(settings, message):
  with pytest.raises(UserError, match=message):
    mixtures.TaskMixture(**settings)
  with pytest.raises(UserError, match="temperature of a mixture is not positive"):
    Proportional(temperature=0)


def test_equal_and_given_rates():
  assert mixtures.TaskMixture(tasks=["a", "b"], rates="equal").spec().rates == {"a": 1, "b": 1}
  assert mixtures.TaskMixture(tasks=["a"], rates={"a": 3}).spec().rates == {"a": 3}
