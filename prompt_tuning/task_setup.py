"""From a `TaskConfig` to the seqio task, and what its caches depend on."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.tasks import identity, registry, table, vocabularies
from prompt_tuning.tasks.few_shot import Room
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec
from prompt_tuning.token_cache import TokenCache


@dataclasses.dataclass(frozen=True)
class TaskSetup:
  """A task, ready to be read.

  Attributes:
    task: the seqio task or mixture.
    parts: its seqio tasks by name.
    rows: our table's row behind each part; None for tasks that a user registered with seqio.
    stochastic: names of the parts whose preprocessors draw random numbers.
    fingerprint: of all sources' text; of a user's seqio tasks, of what `tasks/identity.py` tells.
    order: the parts' names to users, as the mixture has them; seqio sorts its own by name.
  """

  task: Any
  parts: Mapping[str, Any]
  rows: Mapping[str, TaskSpec | None]
  stochastic: tuple[str, ...]
  fingerprint: str
  order: tuple[str, ...] = ()

  @property
  def names(self) -> dict[str, str]:
    """seqio's name of each part -> the name that users know it by."""
    return {name: name if row is None else row.name for name, row in self.rows.items()}

  @property
  def spec(self) -> TaskSpec | None:
    """The row of a single task of ours."""
    return next(iter(self.rows.values())) if len(self.rows) == 1 else None

  def check_prompt(self, prompt: Any, caches: Mapping[str, TokenCache],
                   tokenizer: vocabularies.Tokenizer, *, leading_sentinel: bool,
                   label_smoothing: float = 0.0) -> None:
    """Whether a method can write the targets of every part.

    Args:
      prompt: a `PromptMethod`, or None.
      caches: the rows of each part.

    Raises:
      UserError: it cannot.
    """
    if prompt is None:
      return
    for name, known_as in self.names.items():
      prompt.check_task(known_as, _targets(self.rows[name], caches[name], tokenizer),
                        leading_sentinel=leading_sentinel, label_smoothing=label_smoothing)


def set_up(config: TaskConfig, vocabulary: str) -> TaskSetup:
  """Resolves names, imports modules, registers with seqio; reads no row but for the fingerprint.

  Raises:
    UserError: there is no such task or module, it cannot be varied as wanted, or a user's own
      task has another vocabulary.
  """
  row = config.name if config.source is None else config.source.spec()
  if config.variant.changed:
    row = varied(config, row, vocabulary)
  task = registry.resolve(row, module=config.module, vocabulary=vocabulary,
                          cached_dirs=config.cached_dirs,
                          leading_sentinel=config.leading_sentinel)
  tasks = list(task.tasks) if hasattr(task, "tasks") else [task]  # a mixture has tasks
  rows = {each.name: registry.row_of(each.name) for each in tasks}
  for each in tasks:
    if rows[each.name] is None:
      identity.check_vocabulary(each, vocabulary)
  stochastic = tuple(name for name, row in rows.items()
                     if (config.stochastic if row is None else row.objective is not None))
  known = sorted({
    identity.of_task(each, each.splits, with_source=True, use_cached=config.use_cached)
    if rows[each.name] is None else rows[each.name].source.fingerprint() for each in tasks})
  fingerprint = hashlib.sha256("".join(known).encode()).hexdigest()[:16]
  setup = TaskSetup(task, {each.name: each for each in tasks}, rows, stochastic, fingerprint)
  spec = table.spec(row) if isinstance(row, str) and table.has(row) else row
  known_as = list(setup.names.values())
  given = list(spec.rates) if isinstance(spec, MixtureSpec) else known_as
  return dataclasses.replace(setup, order=tuple(
    given if sorted(given) == sorted(known_as) else known_as))


def splits(config: TaskConfig, vocabulary: str) -> dict[str, tuple[str, ...]]:
  """The splits of the task, or of each task of a mixture; reads no data of the table's tasks.

  Raises:
    UserError: as `set_up`.
  """
  row = config.name if config.source is None else config.source.spec()
  if config.variant.changed:
    row = varied(config, row, vocabulary)
  if isinstance(row, str) and not table.has(row):
    task = registry.resolve(row, module=config.module)
    return {each.name: tuple(each.splits)
            for each in (task.tasks if hasattr(task, "tasks") else [task])}
  row = table.spec(row) if isinstance(row, str) else row
  if not isinstance(row, MixtureSpec):
    return {row.name: tuple(row.source.splits)}
  own = {task.name: task for task in row.tasks}
  return {name: tuple((own.get(name) or table.spec(name)).source.splits) for name in row.rates}


def varied(config: TaskConfig, row: str | TaskSpec | MixtureSpec,
           vocabulary: str) -> TaskSpec | MixtureSpec:
  """The row of a task, with the variant that the configuration asks for.

  Raises:
    UserError: a task that a user registered with seqio, or a setting that does not fit.
  """
  if isinstance(row, str) and not table.has(row):
    raise UserError(f"{row!r} is no task of the table: it cannot be varied",
                    found="settings of Variant: " + ", ".join(config.variant.changed),
                    wanted="a task that `prompt-tuning tasks` lists",
                    fix="leave these settings out, or correct the name")
  row = table.spec(row) if isinstance(row, str) else row
  own = {task.name: task for task in row.tasks} if isinstance(row, MixtureSpec) else {}
  rates = row.rates if isinstance(row, MixtureSpec) else ()
  parts = {name: own.get(name) or table.spec(name) for name in rates}
  return config.variant.apply(row, parts, Room(vocabulary=vocabulary,
                                               length=config.feature_lengths["inputs"]))


def _targets(row: TaskSpec | None, cache: TokenCache,
             tokenizer: vocabularies.Tokenizer) -> Iterator[tuple[str, tuple[int, ...]]]:
  """The labels, or the different targets that the rows have: text and ids without their end."""
  if row is not None and row.labels is not None:
    yield from ((label, tuple(tokenizer.encode(label))) for label in row.labels)
    return
  seen = set()
  for i in range(len(cache)):
    ids = tuple(cache.ids("targets", i).tolist())
    if ids not in seen:
      seen.add(ids)
      own = ids[:-1] if ids[-1:] == (tokenizer.eos_id,) else ids
      yield tokenizer.decode(own), own
