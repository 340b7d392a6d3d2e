"""Task rows -> seqio tasks: `MIXTURE_OR_TASK_NAME` and `MIXTURE_OR_TASK_MODULE` end here.

A task of our table is built when it is first asked for, once a vocabulary: as `name` for the
shipped vocabulary, `name__<id>` for others. A user's module may instead register seqio tasks and
mixtures of its own under any name. Examples of a built task have

  inputs, targets                            int32 ids that end with EOS, not trimmed
  inputs_pretokenized, targets_pretokenized  texts (not with a denoising objective)
  extras                                     what metrics want besides (`metrics.pack_extras`)
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.tasks import denoising, metrics, table, variants, vocabularies
from prompt_tuning.tasks.few_shot import LEFT_OUT
from prompt_tuning.tasks.spec import MixtureSpec, Proportional, TaskSpec

DEFAULT_VOCABULARY = "tiny"

# What each seqio name of ours was built from: another spec under the same name is an error.
_built: dict[str, TaskSpec | MixtureSpec] = {}
# (name, variant, split) -> what was lost, of the splits that this process has read to their end.
_lost: dict[tuple[str, str, str], dict[str, int]] = {}


def resolve(name: str | TaskSpec | MixtureSpec, *, module: str | None = None,
            vocabulary: str = DEFAULT_VOCABULARY, cached_dirs: Sequence[str] = (),
            leading_sentinel: bool = False) -> seqio.Task | seqio.Mixture:
  """The seqio task or mixture behind a name, or built from a row.

  Args:
    name: of our table, or registered with seqio by `module`; or a row itself.
    module: a Python module to import first, so that it can register tasks.
    vocabulary: for our rows (`vocabularies.py`); a user's own task brings its own.
    cached_dirs: where `seqio_cache_tasks` has put tasks.
    leading_sentinel: as `build` takes it; for our rows.

  Raises:
    UserError: the module cannot be found, nothing has this name, or a user's own task cannot have
      sentinels.
  """
  seqio.add_global_cache_dirs(
    [folder for folder in cached_dirs if folder not in seqio.get_global_cache_dirs()])
  if module:
    _import(module)
  if not isinstance(name, str) or table.has(name):
    return build(name, vocabulary=vocabulary, leading_sentinel=leading_sentinel)
  registered = _of_users()
  if name in registered and leading_sentinel:
    raise UserError(f"{name!r} brings its own preprocessors", found="LEADING_SENTINEL = True",
                    wanted="a task that `prompt-tuning tasks` lists",
                    fix="add the sentinel in the task's preprocessors")
  if name in registered:
    return seqio.get_mixture_or_task(name)
  raise UserError(
    f"there is no task or mixture {name!r}", found=name,
    wanted="a name that `prompt-tuning tasks` lists, or that MIXTURE_OR_TASK_MODULE registers",
    fix=nearest(name, {*table.names(), *registered}))


def knows(name: str, module: str | None = None) -> bool:
  """Whether a name is of our table, or registered with seqio by a user's `module`.

  Raises:
    UserError: the module cannot be found.
  """
  if module:
    _import(module)
  return table.has(name) or name in _of_users()


def _of_users() -> set[str]:
  return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()} - set(_built)


def build(row: str | TaskSpec | MixtureSpec, *, vocabulary: str = DEFAULT_VOCABULARY,
          leading_sentinel: bool = False) -> seqio.Task | seqio.Mixture:
  """The seqio task of a row, registered; the same call gives the same task.

  Args:
    row: the row, or its name in the table.
    vocabulary: as `vocabularies.load` takes it.
    leading_sentinel: put `<extra_id_0>` ahead of every target (the "span corruption + sentinel"
      setting of Lester et al. 2021, for a backbone whose outputs always start with one).
  """
  row = table.spec(row) if isinstance(row, str) else row
  if isinstance(row, MixtureSpec):
    for task in row.tasks:
      build(task, vocabulary=vocabulary, leading_sentinel=leading_sentinel)
    return mixture(row.name, row.rates, vocabulary, own_tasks={t.name: t for t in row.tasks},
                   leading_sentinel=leading_sentinel, variant=row.variant)
  name = _registered_name(row.name, vocabulary, leading_sentinel, row.variant)
  if _built.get(name) == row:
    return seqio.TaskRegistry.get(name)
  _forget_another_place(name, row)
  _check_free(name, row.name)
  feature = seqio.Feature(vocabulary=vocabularies.load(vocabulary), add_eos=True)
  task = seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(functools.partial(_dataset, row), splits=row.source.splits),
    preprocessors=_preprocessors(row, leading_sentinel),
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=_postprocess,
    metric_fns=[metrics.bind(metric, row.labels) for metric in row.metrics])
  _built[name] = row
  return task


def mixture(name: str, rates: Mapping[str, float | Proportional],
            vocabulary: str = DEFAULT_VOCABULARY, *,
            own_tasks: Mapping[str, TaskSpec] | None = None,
            leading_sentinel: bool = False, variant: str = "") -> seqio.Mixture:
  """A seqio mixture of our tasks, registered; the same call gives the same one."""
  row = MixtureSpec(name=name, rates=dict(rates), tasks=tuple((own_tasks or {}).values()),
                    variant=variant)
  registered = _registered_name(name, vocabulary, leading_sentinel, variant)
  if _built.get(registered) == row:
    return seqio.MixtureRegistry.get(registered)
  _forget_another_place(registered, row)
  _check_free(registered, name)
  parts = [(build((own_tasks or {}).get(task, task), vocabulary=vocabulary,
                  leading_sentinel=leading_sentinel).name,
            functools.partial(_rate, rate) if isinstance(rate, Proportional) else rate)
           for task, rate in rates.items()]
  result = seqio.MixtureRegistry.add(registered, parts)
  _built[registered] = row
  return result


def _rate(rate: Proportional, task: seqio.Task) -> float:
  return rate.rate(_training_examples(task.name, _built[task.name].source.fingerprint()))


@functools.cache
def _training_examples(registered: str, fingerprint: str) -> int:
  """Examples of the training split, by reading it once."""
  del fingerprint  # a part of the cache's key
  return sum(1 for _ in _built[registered].examples("train"))


def row_of(registered: str) -> TaskSpec | None:
  """The row that a registered seqio task was built from; None for a user's own task."""
  row = _built.get(registered)
  return row if isinstance(row, TaskSpec) else None


def lost(registered: str, split: str) -> dict[str, int] | None:
  """What was lost when this process last read the split.

  `unusable`, rows that no example could be made of; `short_contexts`, rows with fewer solved
  examples in front than FEW_SHOT. None: it has not read it (seqio's offline cache was read), or the
  task is a user's own.
  """
  row = row_of(registered)
  return None if row is None else _lost.get((row.name, row.variant, split))


def _registered_name(name: str, vocabulary: str, leading_sentinel: bool, variant: str) -> str:
  name += f"__{variant}" if variant else ""
  name += "" if vocabulary == DEFAULT_VOCABULARY else f"__{vocabularies.short_id(vocabulary)}"
  return name + ("__sentinel" if leading_sentinel else "")


def _forget_another_place(registered: str, row: TaskSpec | MixtureSpec) -> None:
  """The same data under another DATA_DIR takes the place of what was built before."""
  before = _built.get(registered)
  if before is not None and type(before) is type(row) and (
      variants.without_place(before) == variants.without_place(row)):
    is_mixture = isinstance(row, MixtureSpec)
    (seqio.MixtureRegistry if is_mixture else seqio.TaskRegistry).remove(registered)
    del _built[registered]
    _training_examples.cache_clear()


def _check_free(registered: str, name: str) -> None:
  if registered in seqio.TaskRegistry.names() or registered in seqio.MixtureRegistry.names():
    raise UserError(f"two different tasks are called {name!r}",
                    found=f"{registered} is registered already", wanted="one task a name",
                    fix="rename yours")


def _import(module: str) -> None:
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name is None or not (module + ".").startswith(error.name + "."):
      raise  # the module is there; something that it imports is not
    raise UserError(f"MIXTURE_OR_TASK_MODULE {module!r} cannot be imported", found=str(error),
                    wanted="a module in this folder or on Python's path",
                    fix="run the command in the module's folder, install it, or add its folder to "
                    "PYTHONPATH (PYTHONPATH=path/to/folder prompt-tuning ...)") from error


def _dataset(row: TaskSpec, split: str, shuffle_files: bool = False,
             seed: int | None = None) -> tf.data.Dataset:
  """Texts of a split, in the source's order: who trains permutes the indexed cache instead."""
  del shuffle_files, seed
  keys = ("targets",) if row.objective is not None else ("inputs", "targets", "extras")

  def texts():
    left_out: list[str] = []
    short_contexts = 0
    for example in row.examples(split, left_out):
      short_contexts += example.get(LEFT_OUT, 0) > 0
      # Only evaluation asks for them: beside every training example they would be many.
      extras = "" if split == "train" else metrics.pack_extras(example)
      yield {key: {**example, "extras": extras}[key] for key in keys}
    _lost[row.name, row.variant, split] = {
      "unusable": len(left_out), "short_contexts": short_contexts}

  return tf.data.Dataset.from_generator(
    texts, output_signature={key: tf.TensorSpec([], tf.string) for key in keys})


def _postprocess(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
                 ) -> str | metrics.Target:
  """For seqio's own evaluation, which T5X uses: targets with their extras."""
  if not is_target or example is None:
    return text
  return metrics.Target.parse(*(_text(example.get(key, other)) for key, other in (
    ("targets_pretokenized", text), ("extras", ""))))


def _text(value: bytes | str) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _preprocessors(row: TaskSpec, leading_sentinel: bool) -> list[Any]:
  steps: list[Any] = [
    functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=row.objective is None),
    seqio.CacheDatasetPlaceholder()]  # seqio_cache_tasks keeps what is made so far
  if row.objective is not None:
    steps.append(functools.partial(denoising.denoise, objective=row.objective))
  if leading_sentinel:
    steps.append(denoising.add_leading_sentinel)
  return [*steps, seqio.preprocessors.append_eos]
