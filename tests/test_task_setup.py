"""Which prompt of a bank belongs to which task."""

from prompt_tuning.run_config import TaskConfig
from prompt_tuning.task_setup import set_up
from prompt_tuning.tasks.mixtures import TaskMixture

LENGTHS = {"inputs": 16, "targets": 8}


def test_tasks_are_numbered_as_the_mixture_names_them():
  """seqio sorts its mixtures' tasks; teachers and users count as MIXTURE_TASKS does."""
  names = ["docstring_match", "docstring_kind_seen", "docstring_library"]
  for given in (names, names[::-1]):
    setup = set_up(TaskConfig(name="mixture", feature_lengths=LENGTHS,
                              source=TaskMixture(tasks=given, name="ordered_mixture")), "tiny")
    assert list(setup.order) == given and set(setup.names.values()) == set(names)


def test_a_task_is_its_own_order():
  setup = set_up(TaskConfig(name="docstring_library", feature_lengths=LENGTHS), "tiny")
  assert setup.order == ("docstring_library",)
