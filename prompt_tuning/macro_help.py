"""The macros of a command and of the gin files that are named with it, for its `--help`.

Reads the files and imports nothing of what they name.
"""

from collections.abc import Sequence

from prompt_tuning import config, gin_files
from prompt_tuning.gin_files import Macro

EVERY_COMMAND = "commands/model.gin"


def describe(command: str, named: Sequence[str], search_paths: Sequence[str] = ()) -> str:
  """Of each macro its value, the file that sets it, the fields that read it; the unset ones first.

  Args:
    command: one that takes gin files.
    named: those of its command line; of their rivals the higher rank wins, as in a run.

  Raises:
    UserError: a file does not exist, is not gin, or disagrees with another of its rank.
  """
  own = f"commands/{command}.gin"
  files = [own if own in gin_files.shipped_names() else EVERY_COMMAND, *named]
  settings = gin_files.merge(config.read_files(files, search_paths))
  readers: dict[str, list[str]] = {}
  for setting in settings.values():
    for reference in gin_files.references(setting.value):
      if isinstance(reference, Macro) and reference != config.REQUIRED:
        readers.setdefault(reference.name, []).append(setting.key)
  names = readers.keys() | {key for key, setting in settings.items() if not setting.parameter}
  values = {name: settings[name] for name in names
            if name in settings and settings[name].value != config.REQUIRED}
  rows = [f"  {name} = "
          + (f"{values[name].value!r} ({values[name].source.label})" if name in values
             else "must be given")
          + f"\n      -> {', '.join(readers.get(name, ['nothing here']))}"
          for name in sorted(names, key=lambda name: (name in values, name))]
  return "\n".join(["macros of " + ", ".join(files) + ":", *rows])
