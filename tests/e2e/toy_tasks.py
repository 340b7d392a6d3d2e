"""In-memory tasks that a run can memorise; MIXTURE_OR_TASK_MODULE of the end-to-end tests."""

import dataclasses
import functools

import seqio
import tensorflow as tf

from prompt_tuning.tasks import table
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec

TEXTS = tuple((f"row {i}", "yes" if i % 4 else "no") for i in range(24))


@dataclasses.dataclass(frozen=True)
class InMemory:
  """A source of our table."""

  splits: tuple[str, ...] = ("train", "validation")

  def rows(self, split):
    return iter({"inputs": text, "targets": label} for text, label in TEXTS)

  def fingerprint(self):
    return "toy"


def to_text(row):
  return dict(row)


def to_opposite(row):
  return row | {"targets": "no" if row["targets"] == "yes" else "yes"}


table.add(TaskSpec(name="toy_labels", source=InMemory(), to_text=to_text, labels=("yes", "no"),
                   metrics=("accuracy",)))
_OPPOSITE = TaskSpec(name="toy_opposite", source=InMemory(), to_text=to_opposite,
                     labels=("yes", "no"), metrics=("accuracy",))
table.add(_OPPOSITE)
table.add(MixtureSpec(name="toy_two", tasks=(table.spec("toy_labels"), _OPPOSITE),
                      rates={"toy_labels": 1.0, "toy_opposite": 1.0}))


def _dataset(split, shuffle_files=False, seed=None):
  return tf.data.Dataset.from_generator(
    lambda: InMemory().rows(split),
    output_signature={name: tf.TensorSpec([], tf.string) for name in ("inputs", "targets")})


def exact(targets, predictions):
  return {"exact": sum(t == p for t, p in zip(targets, predictions, strict=True)) / len(targets)}


if "toy_seqio" not in seqio.TaskRegistry.names():
  _FEATURE = seqio.Feature(vocabulary=seqio.ByteVocabulary(), add_eos=True)
  seqio.TaskRegistry.add(
    "toy_seqio", source=seqio.FunctionDataSource(_dataset, splits=("train", "validation")),
    # Its texts are not kept beside the ids.
    preprocessors=[functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
                   seqio.preprocessors.append_eos],
    output_features={"inputs": _FEATURE, "targets": _FEATURE}, metric_fns=[exact])
