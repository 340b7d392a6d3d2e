"""The one error that users see: what happened, what was found, what was wanted, what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A mistake in a setting, a file or a command; the command prints it without a traceback.

  Attributes:
    what: the sentence that names what went wrong.
    found: what was there.
    wanted: what should have been there.
    fix: what the user can do now.
  """

  def __init__(self, what: str, *, found: object, wanted: object, fix: str):
    self.what, self.found, self.wanted, self.fix = what, str(found), str(wanted), fix
    super().__init__(what, self.found, self.wanted, fix)

  def __str__(self) -> str:
    return f"{self.what}\n  found:  {self.found}\n  wanted: {self.wanted}\n  fix:    {self.fix}"


def nearest(name: str, choices: Iterable[str]) -> str:
  """A `did you mean` clause for `name`, or all the choices when none is near."""
  choices = sorted(set(choices))
  close = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
  if close:
    return "did you mean " + " or ".join(repr(c) for c in close) + "?"
  shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
  return f"choose one of: {shown}" if choices else "there is nothing to choose from"
