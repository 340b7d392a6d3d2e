"""Tasks: rows of a table, built into seqio tasks when they are used (`registry.py`).

This package itself imports neither seqio nor TensorFlow.
"""

from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec
from prompt_tuning.tasks.table import add, describe, examples, names, num_rows, spec

__all__ = ["MixtureSpec", "TaskSpec", "add", "describe", "examples", "names", "num_rows", "spec"]
