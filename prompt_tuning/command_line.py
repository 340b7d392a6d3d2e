"""A parsed command line, and what a subcommand is; nothing heavy is imported."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from prompt_tuning import config, macro_help, run_settings
from prompt_tuning.errors import UserError
from prompt_tuning.gin_files import Source
from prompt_tuning.native_logs import quiet_imports


@dataclasses.dataclass(frozen=True)
class Arguments:
  """A parsed command line.

  Attributes:
    options: of argparse.
    bindings: the `--gin.NAME=VALUE`s as gin text.
  """

  options: argparse.Namespace
  bindings: list[str]

  def load(self, command: str) -> None:
    """Loads `commands/<command>.gin`, and what the user named.

    Where no gin file says the model, `eval`, `infer` and `merge` take the settings of the run in
    MODEL_DIR; with `--prompt`, those of the first run that it names.
    """
    run = self._run(command)
    prompts = [f"PROMPTS = {tuple(self.prompts())!r}"] if self.prompts() else []
    with quiet_imports():
      config.load([f"commands/{command}.gin", *self.options.gin_file], prompts + self.bindings,
                  self.options.gin_search_paths, run)

  def meant_elsewhere(self, command: str, message: str) -> str:
    """What to say of paths in a message that a run's settings mean from another folder; or ""."""
    run = self._run(command)
    return "" if run is None else run_settings.meant_elsewhere(run, message)

  def _run(self, command: str) -> Source | None:
    """The settings of the run that a command reads, where no gin file says the model."""
    if command not in run_settings.COMMANDS:
      return None
    files = config.read_files(self.options.gin_file, self.options.gin_search_paths)
    return run_settings.find(command, files, self.bindings, self.prompts())

  def prompts(self) -> list[tuple[str, str]]:
    """The (name, source) pairs of `--prompt NAME=SOURCE`."""
    pairs = []
    for text in getattr(self.options, "prompt_pairs", []):
      name, _, source = text.partition("=")
      if not name or not source:
        raise UserError("--prompt is not NAME=SOURCE", found=text,
                        wanted="a task's name, and a prompt's file, a MODEL_DIR, "
                        "MODEL_DIR/members, or none", fix="--prompt sst2=runs/sst2/prompt.npy")
      pairs.append((name, source))
    return pairs


@dataclasses.dataclass(frozen=True)
class Command:
  """Attributes:
    help: one line.
    run: what it does; the exit code.
    flags: adds its own arguments.
    takes_gin: it has a configuration.
  """

  help: str
  run: Callable[[Arguments], int]
  flags: Callable[[argparse.ArgumentParser], None] | None = None
  takes_gin: bool = True


class Parser(argparse.ArgumentParser):
  """argparse, with our kind of error."""

  def error(self, message: str) -> None:
    raise UserError("The command line cannot be read", found=message,
                    wanted=self.format_usage().strip(), fix=f"see `{self.prog} --help`")


def parsers(commands: Mapping[str, Command]) -> tuple[Parser, dict[str, Parser]]:
  """The parser of the whole command line, and that of each subcommand."""
  parser = Parser(prog="prompt-tuning", description="Soft prompts for a frozen T5.",
                   epilog="`prompt-tuning COMMAND --help` lists a command's flags.")
  group = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
  found = {}
  for name, command in commands.items():
    gin = ("--gin.NAME=VALUE overrides one setting of the gin files; repeatable. --help beside "
           "--gin_file=... lists their macros.")
    sub = found[name] = group.add_parser(name, help=command.help, description=command.help,
                                         allow_abbrev=False,
                                         epilog=gin if command.takes_gin else None)
    if command.takes_gin:
      config.add_flags(sub)
    else:
      sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if command.flags is not None:
      command.flags(sub)
  return parser, found


def help_of_macros(command: str, flags: Sequence[str]) -> str:
  """What `--help` adds of the gin files that stand beside it; without one, nothing."""
  parser = Parser(add_help=False, allow_abbrev=False)
  config.add_flags(parser)
  options, _ = parser.parse_known_args(list(flags))
  if not options.gin_file:
    return ""
  return "\n" + macro_help.describe(command, options.gin_file, options.gin_search_paths)
