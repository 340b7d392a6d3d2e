"""seqio names for T5X: what a bank's rows say, and metrics that seqio takes."""

import dataclasses

import numpy as np
import pytest
import seqio
from small_models import CONFIG

from prompt_tuning.errors import UserError
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5x_bridge.datasets import (
  BankFeatureConverter,
  converter_class,
  dataset_name,
)
from prompt_tuning.tasks import table
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec

LENGTHS = {"inputs": 8, "targets": 4}
BANK = SoftPrompt(CONFIG, 3, num_prompts=2)


@dataclasses.dataclass(frozen=True)
class Words:
  """Three rows of one letter."""

  letter: str
  splits: tuple[str, ...] = ("train", "validation")

  def rows(self, split):
    return iter({"inputs": self.letter * n, "targets": "yes"} for n in (1, 2, 3))

  def fingerprint(self):
    return self.letter


@pytest.fixture(scope="module", autouse=True)
def _tasks():
  rows = [TaskSpec(name=f"bridge_{letter}", source=Words(letter), to_text=dict,
                   labels=("yes", "no"), metrics=metrics)
          for letter, metrics in (("a", ("accuracy", "macro_f1")), ("b", ("accuracy",)))]
  for row in rows:
    table.add(row)
  table.add(MixtureSpec(name="bridge_two", tasks=tuple(rows),
                        rates={"bridge_a": 1.0, "bridge_b": 2.0}))


def test_a_task_with_one_metric_keeps_its_name():
  assert dataset_name("bridge_b", "bytes") == "bridge_b__bytes"
  assert converter_class(None) is converter_class(SoftPrompt(CONFIG, 3)) is (
    seqio.EncDecFeatureConverter)


@pytest.mark.parametrize("name", ["bridge_a", "bridge_two"])
def test_several_metrics_become_one_that_seqio_takes(name):
  registered = seqio.get_mixture_or_task(dataset_name(name, "bytes"))
  for task in seqio.get_subtasks(registered):
    assert len(task.metric_fns) == 1
  task = seqio.get_subtasks(registered)[0]
  found = task.metric_fns[0](["yes", "no"], ["yes", "yes"])
  assert found["accuracy"] == 50 or found["accuracy"] == 0.5
  assert {"accuracy", "macro_f1", "not_a_label"} <= found.keys()


def test_rows_of_a_bank_say_which_prompt_is_theirs():
  name = dataset_name("bridge_two", "bytes", prompt=BANK)
  assert name == dataset_name("bridge_two", "bytes", prompt=BANK)
  mixture = seqio.get_mixture_or_task(name)
  parts = seqio.get_subtasks(mixture)
  assert [mixture.get_rate(task) for task in parts] == [1.0, 2.0]
  converter = converter_class(BANK)(pack=False)
  assert isinstance(converter, BankFeatureConverter)
  seen = {}
  # Repeated: the mixture is drawn at random, and stops with its first task otherwise.
  data = seqio.get_dataset(name, LENGTHS, converter, dataset_split="train", shuffle=False,
                           num_epochs=None, seed=0, batch_size=2)
  for batch in data.take(12).as_numpy_iterator():
    assert batch["prompt_ids"].shape == (2, 1) and batch["prompt_ids"].dtype == np.int32
    for row, prompt in zip(batch["encoder_input_tokens"], batch["prompt_ids"], strict=True):
      seen.setdefault(int(prompt[0]), set()).add(int(row[0]))
  # ByT5's ids start after 3 special ones.
  assert seen == {0: {ord("a") + 3}, 1: {ord("b") + 3}}


def test_an_evaluator_takes_a_bank():
  """As T5X makes one: without lengths, each task by itself."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(seqio.evaluation.logging, "warning", lambda *_: None)
    evaluator = seqio.Evaluator(dataset_name("bridge_two", "bytes", prompt=BANK),
                                feature_converter=BankFeatureConverter(pack=False),
                                eval_split="validation")
  assert evaluator.model_feature_shapes["prompt_ids"] == (1,)
  for i, task in enumerate(evaluator.eval_tasks):
    rows = evaluator.cached_model_datasets[task.name].as_numpy_iterator()
    assert {int(row["prompt_ids"][0]) for _, row in rows} == {i}


def test_a_bank_of_another_size_is_an_error():
  with pytest.raises(UserError, match="3 prompts, 2 tasks(.*\n)*.*NUM_PROMPTS=2"):
    dataset_name("bridge_two", "bytes", prompt=SoftPrompt(CONFIG, 3, num_prompts=3))
