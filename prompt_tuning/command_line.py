"""A parsed command line, and what a subcommand is; nothing heavy is imported."""

import argparse
import ast
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from prompt_tuning import config, macro_help
from prompt_tuning.errors import UserError
from prompt_tuning.native_logs import quiet_imports

# The commands that can take a run's own settings.
_OF_RUNS = ("eval", "eval_prompts", "infer", "merge")


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

    With a run's MODEL_DIR and no gin file, `eval`, `infer` and `merge` take its own settings; with
    `--prompt`, those of the first run that it names.
    """
    files = list(self.options.gin_file)
    if not files and command in _OF_RUNS:
      files = _run_settings(self.bindings, self.prompts())
    with quiet_imports():
      config.load([f"commands/{command}.gin", *files], self._prompt_bindings() + self.bindings,
                  self.options.gin_search_paths)

  def meant_elsewhere(self, command: str, message: str) -> str:
    """What to say of paths in a message that a run's settings mean from another folder; or ""."""
    if command not in _OF_RUNS or self.options.gin_file:
      return ""
    for settings in map(pathlib.Path, _run_settings(self.bindings, self.prompts())):
      summary = settings.with_name("summary.json")
      start = json.loads(summary.read_text()).get("started_in") if summary.is_file() else None
      texts = set(re.findall(r"'([^'\n]+)'", settings.read_text(encoding="utf-8")))
      if start and any(text in message and not os.path.exists(text)
                       and os.path.exists(os.path.join(start, text)) for text in texts):
        return (f"the run in {settings.parent} was started in {start}: its relative paths begin "
                "there")
    return ""

  def _prompt_bindings(self) -> list[str]:
    if not self.prompts():
      return []
    # A run's own settings name its MODEL_DIR.
    own = [] if self.options.gin_file else ["MODEL_DIR = None"]
    return [f"PROMPTS = {tuple(self.prompts())!r}", *own]

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


def _run_settings(bindings: Sequence[str], prompts: Sequence[tuple[str, str]]) -> list[str]:
  """The config.gin of the run that `--gin.MODEL_DIR` or a `--prompt` names, if there is one."""
  for _, source in prompts:
    for folder in (pathlib.Path(source), *pathlib.Path(source).parents[:3]):
      if (folder / "config.gin").is_file():
        return [str((folder / "config.gin").absolute())]
  values = [b.partition(" = ")[2] for b in bindings if b.startswith("MODEL_DIR = ")]
  try:
    folder = pathlib.Path(ast.literal_eval(values[-1]))
  except (IndexError, ValueError, SyntaxError, TypeError):
    return []
  settings = folder / "config.gin"
  if not settings.is_file():
    found = "a folder without config.gin" if folder.is_dir() else "no such folder"
    raise UserError("MODEL_DIR holds no run", found=f"{folder} ({found})",
                    wanted="the MODEL_DIR of a `prompt-tuning train` command",
                    fix="correct the path, or give the gin files of the model")
  return [str(settings.absolute())]
