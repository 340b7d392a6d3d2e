"""The formats of backbones, and which of them a path holds.

A format's own libraries are loaded when it is asked for: one row here, one file each.
"""

import functools

from prompt_tuning.checkpoints.leaves import Format
from prompt_tuning.errors import UserError, nearest


@functools.cache
def formats() -> dict[str, Format]:
  """By name; the order is that of detection."""
  from prompt_tuning.checkpoints import backbone, hf, mesh_tf, t5x_legacy, t5x_orbax
  rows = (backbone.FORMAT, t5x_orbax.FORMAT, t5x_legacy.FORMAT, hf.FORMAT, mesh_tf.FORMAT)
  return {row.name: row for row in rows}


def detect(path: str) -> Format | None:
  """The format that a path holds, by the names of its files; None: none of them."""
  return next((form for form in formats().values() if form.matches(path)), None)


def writable(name: str) -> Format:
  """The format that `convert --to` names.

  Raises:
    UserError: there is none, or it is only read.
  """
  known = [form.name for form in formats().values() if form.write is not None]
  if name not in known:
    raise UserError("There is no such format to convert to", found=name,
                    wanted="one of " + ", ".join(known), fix=nearest(name, known))
  return formats()[name]

