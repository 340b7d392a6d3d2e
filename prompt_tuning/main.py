"""The `prompt-tuning` command.

Nothing heavy is imported before a subcommand runs, so `--help` answers at once. A mistake of the
user's is printed without a traceback (`--debug` shows it). Exit codes: 0 done; 1 a run of a sweep
failed; 2 a mistake of the user's; 3 another host of the run is gone; 75 told to stop, and saved, so
that the same command resumes; 130 interrupted from the keyboard.
"""

import os
import sys
import traceback
from collections.abc import Sequence

from prompt_tuning import command_line, config, host_memory, hosts
from prompt_tuning.command_line import Arguments
from prompt_tuning.commands import COMMANDS
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.native_logs import quiet_environment

USER_MISTAKE, INTERRUPTED = 2, 130
# The commands that run steps.
COMPUTES = ("train", "eval", "infer", "attribute", "demo", "design", "autoprompt", "recover",
            "sweep")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; the exit code."""
  given = list(sys.argv[1:] if argv is None else argv)
  quiet_environment()
  if not {"", os.curdir, os.getcwd()} & set(sys.path):
    # Modules of tasks lie where the command runs, and `python -m` finds them there. Last, so that
    # no file of the folder stands for a package.
    sys.path.append(os.getcwd())
  if argv is None and given and given[0] in COMPUTES:
    host_memory.keep_freed_memory()
  return hosts.end(_guarded(given))


def _guarded(given: list[str]) -> int:
  try:
    with hosts.told():
      return _run(given)
  except UserError as error:
    if "--debug" in given:
      traceback.print_exc()
    else:
      print(error, file=sys.stderr)
    return USER_MISTAKE
  except KeyboardInterrupt:
    print("Interrupted.", file=sys.stderr)
    return INTERRUPTED
  except BrokenPipeError:
    # The reader of standard output has gone: nothing more can be written there, at exit neither.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except SystemExit as stop:  # argparse, after --help
    return stop.code if isinstance(stop.code, int) else 0
  except Exception:
    if hosts.count() == 1:
      raise
    traceback.print_exc()
    return 1


def _run(given: list[str]) -> int:
  parser, parsers = command_line.parsers(COMMANDS)
  if not given:
    parser.print_help(sys.stderr)
    return USER_MISTAKE
  name = given[0]
  if name not in COMMANDS:
    if name in ("-h", "--help"):
      parser.parse_args(["--help"])
    raise UserError("There is no such command", found=name,
                    wanted="prompt-tuning " + "|".join(COMMANDS) + ", or --help",
                    fix=nearest(name, COMMANDS))
  command = COMMANDS[name]
  bindings, rest = config.split_gin_flags(given[1:]) if command.takes_gin else ([], given[1:])
  if command.takes_gin and not {"-h", "--help"}.isdisjoint(rest):
    print(parsers[name].format_help() + command_line.help_of_macros(name, rest))
    return 0
  options, unknown = parsers[name].parse_known_args(rest)
  if unknown:
    flags = [flag for action in parsers[name]._actions for flag in action.option_strings]
    flag = unknown[0].split("=")[0]
    raise UserError(f"`prompt-tuning {name}` does not take {flag}", found=" ".join(unknown),
                    wanted=f"a flag that `prompt-tuning {name} --help` lists",
                    fix=nearest(flag, flags + (["--gin.NAME=VALUE"] if command.takes_gin else [])))
  arguments = Arguments(options, bindings)
  try:
    return command.run(arguments)
  except UserError as error:
    note = arguments.meant_elsewhere(name, str(error))
    if not note:
      raise
    raise UserError(error.what, found=error.found, wanted=error.wanted,
                    fix=f"{error.fix}; {note}") from error
