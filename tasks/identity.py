"""What tells the data of one seqio task from another's: the key of its token caches, and of a run.

A source is described by its files (names, sizes, times) and by its functions; a function by its
code, its arguments, and what it uses of its own top-level package. What a function reads when it is
called (a file, a database) leaves no trace here.
"""

import dataclasses
import functools
import hashlib
import inspect
import os
import pathlib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import vocabularies

_FEATURES = ("inputs", "targets")
_DEPTH = 6
_PLAIN = (str, bytes, int, float, complex, type(None), re.Pattern, pathlib.PurePath)


def of_task(task: seqio.Task, splits: Sequence[str], *, with_source: bool,
            use_cached: bool = False) -> str:
  """All that the tokens of these splits depend on, the same text in another process.

  Args:
    with_source: the source too; False: its text has a fingerprint of its own.
    use_cached: seqio's offline cache is read, instead of the source.
  """
  parts: dict[str, Any] = {
    "offline": _offline_files(task) if use_cached else None,
    "features": [(vocabulary(task.output_features[name].vocabulary),
                  task.output_features[name].add_eos)
                 for name in _FEATURES if name in task.output_features],
    "preprocessors": [describe(each) for each in task.preprocessors]}
  if with_source and not use_cached:
    parts["source"] = [_source(task.source, split) for split in splits]
  return repr(parts)


def vocabulary(value: seqio.Vocabulary) -> str:
  """What tells two vocabularies apart: kind, sizes and, for SentencePiece, the model itself."""
  model = getattr(value, "sp_model", None)
  parts = (type(value).__name__, value.vocab_size, value.extra_ids, value.eos_id,
           hashlib.sha256(model).hexdigest() if model else None)
  return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()


def check_vocabulary(task: seqio.Task, name: str) -> None:
  """Whether a user's task has the ids of VOCABULARY, in which the model is asked and read.

  A vocabulary that only passes ids on is not asked; sentinels may be left out.

  Raises:
    UserError: it has others.
  """
  for feature in _FEATURES:
    if feature not in task.output_features:
      continue
    own = task.output_features[feature].vocabulary
    if isinstance(own, seqio.PassThroughVocabulary) or _has_same_ids(own, name):
      continue
    raise UserError(f"The {feature} of {task.name!r} are tokenised with another vocabulary",
                    found=f"{type(own).__name__} of {own.vocab_size} ids",
                    wanted=f"the ids of VOCABULARY = {name!r}",
                    fix="give the task vocabularies.load(VOCABULARY) of prompt_tuning.tasks, or "
                    "set VOCABULARY to the task's")


def _has_same_ids(own: seqio.Vocabulary, name: str) -> bool:
  if isinstance(own, seqio.SentencePieceVocabulary) and name != "bytes":
    return (vocabularies.fingerprint_of(own.sp_model) == vocabularies.fingerprint(name)
            or vocabulary(own) == vocabulary(vocabularies.load(name)))
  if type(own) is seqio.ByteVocabulary or isinstance(own, seqio.SentencePieceVocabulary):
    return type(own) is seqio.ByteVocabulary and name == "bytes"
  # What else users write can only be tried.
  text = "The quick brown fox (1969): naïve, 17 % — \"yes\"."
  return list(own.encode(text)) == vocabularies.load_light(name).encode(text)


def describe(value: object) -> str:
  """A function's code, arguments and globals as text that is the same in another process."""
  return _describe(value, _DEPTH, set())


def _source(source: seqio.DataSource, split: str) -> tuple[Any, ...]:
  kind = type(source)
  about = (split, describe(kind) if kind.__module__.startswith("seqio.") else
           _of_class(kind, set()), describe(vars(source)))
  if isinstance(source, seqio.TfdsDataSource):
    loader = source.tfds_dataset
    # A name without a version stands for the newest one.
    name = loader.builder.info.full_name if loader.tfds_splits is None else (
      loader.resolved_tfds_name(split))
    return *about, name
  if isinstance(source, seqio.FunctionDataSource):
    return about  # its shards are names of splits
  return *about, [_file(path) for path in source.list_shards(split)]


def _file(path: str) -> tuple[str, int, int] | str:
  try:
    status = tf.io.gfile.stat(path)
  except tf.errors.NotFoundError:
    return path  # who reads it says that it is missing
  return path, status.length, status.mtime_nsec


def _offline_files(task: seqio.Task) -> list[Any]:
  """seqio's files: another folder, or written again, is other data."""
  if not task.cache_dir:
    return []
  return [_file(os.path.join(task.cache_dir, name))
          for name in sorted(tf.io.gfile.listdir(task.cache_dir))]


def _describe(value: Any, depth: int, seen: set[int]) -> str:
  if not depth:
    return type(value).__name__
  parts: list[Any]
  if isinstance(value, functools.partial):
    parts = [value.func, *value.args, *sorted(value.keywords.items())]
  elif inspect.ismethod(value):
    parts = [value.__func__, value.__self__]
  elif inspect.isclass(value):
    return f"{value.__module__}.{value.__qualname__}"
  elif _function(value) is not None:
    return _of_function(value, seen)
  elif inspect.iscode(value):
    parts = [value.co_code, *value.co_names, *value.co_consts]
  elif isinstance(value, (tuple, list)):
    parts = list(value)
  elif isinstance(value, (set, frozenset)):
    # Sets print in an order that differs from process to process, objects with their address.
    parts = sorted(value, key=repr)
  elif isinstance(value, Mapping):
    parts = sorted(value.items(), key=lambda item: repr(item[0]))
  else:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
  return f"({', '.join(_describe(part, depth - 1, seen) for part in parts)})"


def _function(value: Any) -> types.FunctionType | None:
  """The Python function within decorators such as `functools.wraps` and `functools.cache`."""
  inner = inspect.unwrap(value) if callable(value) else None
  return inner if isinstance(inner, types.FunctionType) else None


def _of_function(value: Any, seen: set[int]) -> str:
  inner = _function(value)
  assert inner is not None
  name = f"{inner.__module__}.{inner.__qualname__}"
  if id(inner) in seen:
    return name
  seen.add(id(inner))
  parts = [name, inner.__code__, inner.__defaults__, inner.__kwdefaults__,
           *sorted(inspect.getclosurevars(inner).nonlocals.items())]
  described = [_describe(part, _DEPTH, seen) for part in parts]
  found = {each: inner.__globals__[each] for each in _names(inner.__code__)
           if each in inner.__globals__}
  described += [f"{each}={_of_global(found[each], inner.__module__, _DEPTH, seen)}"
                for each in sorted(found)]
  return f"({', '.join(described)})"


def _of_class(value: type, seen: set[int]) -> str:
  functions = [] if id(value) in seen else [
    each for _, each in sorted(vars(value).items()) if _function(each) is not None]
  seen.add(id(value))
  return f"({_describe(value, 1, seen)}, {', '.join(_of_function(f, seen) for f in functions)})"


def _names(code: types.CodeType) -> Iterator[str]:
  """What the code and the functions within it (which `inspect.getclosurevars` leaves out) name."""
  yield from code.co_names
  for each in code.co_consts:
    if inspect.iscode(each):
      yield from _names(each)


def _of_global(value: Any, module: str, depth: int, seen: set[int]) -> str:
  """Functions and classes of the same package, and plain values; of all else what it is called.

  Other objects may print their state, which changes as a process goes on.
  """
  if not depth:
    return type(value).__name__
  inner = _function(value)
  if inner is not None or inspect.isclass(value):
    home = str((inner or value).__module__)
    if home.partition(".")[0] == module.partition(".")[0]:
      return _of_class(value, seen) if inner is None else _of_function(value, seen)
    return f"{home}.{(inner or value).__qualname__}"
  if isinstance(value, _PLAIN):
    return repr(value)
  if isinstance(value, functools.partial):
    value = (value.func, value.args, value.keywords)
  elif dataclasses.is_dataclass(value):
    value = (type(value).__name__, vars(value) if hasattr(value, "__dict__") else {})
  if isinstance(value, Mapping):
    value = sorted(value.items(), key=lambda item: repr(item[0]))
  elif isinstance(value, (set, frozenset)):
    value = sorted(value, key=repr)
  if isinstance(value, (tuple, list)):
    return f"({', '.join(_of_global(part, module, depth - 1, seen) for part in value)})"
  return type(value).__name__ if not inspect.ismodule(value) else value.__name__
