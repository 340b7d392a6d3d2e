"""Importing this registers every task and mixture of the table with seqio.

Our commands build a task when it is named; seqio's own tools (`seqio_cache_tasks --module_import
prompt_tuning.tasks.registered`) and T5X (`MIXTURE_OR_TASK_MODULE`) find only what is registered.
PROMPT_TUNING_VOCABULARY says with which vocabulary, as VOCABULARY does; the shipped one by default.
"""

import os

from prompt_tuning.tasks import registry, table

VOCABULARY = "PROMPT_TUNING_VOCABULARY"

NAMES = tuple(
  registry.build(name, vocabulary=os.environ.get(VOCABULARY) or registry.DEFAULT_VOCABULARY).name
  for name in table.names())
