"""The only user of gin: reads gin files, merges them by rank, and fills configuration classes.

Library code has no gin decorators. A gin file says `from __gin__ import dynamic_registration`,
imports modules (`from prompt_tuning import train`), and sets macros (`BATCH_SIZE = 32`) and fields
(`train.TrainConfig.batch_size = %BATCH_SIZE`); `build(TrainConfig)` returns the filled object.

gin lets the file that comes last win, and accepts a misspelt macro or scope in silence. So its
parser reads the files, `gin_files` merges them, whatever their order on the command line:

  commands < models < prompts < inits < runs < papers < user files < `--gin.` overrides

Two files of one rank that set the same thing differently are an error. An included file keeps its
own rank; the file that includes it wins over it, and so may not be of a lower rank. The merged
settings are checked, then handed to gin as one text, and gin's engine builds the objects.
"""

import argparse
import contextlib
import dataclasses
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin
from gin import config_parser

from prompt_tuning.errors import UserError
from prompt_tuning.gin_files import (
  OVERRIDE_RANK,
  RANKS,
  RUN_RANK,
  Import,
  Macro,
  Reference,
  Setting,
  Source,
  check_used,
  find,
  how_to_set,
  merge,
  rank_and_label,
  references,
  shipped_paths,
)
from prompt_tuning.gin_names import parameters, resolve

T = TypeVar("T")
REQUIRED = Macro("gin.REQUIRED")

# Macros whose value is a path.
_PATHS = ("_DIR", "_FILE", "_PATH")


@dataclasses.dataclass
class _Loaded:
  """What `build` looks at before it lets gin construct anything.

  Attributes:
    settings: key -> the setting that won.
    targets: canonical selector -> class or function.
  """

  settings: dict[str, Setting] = dataclasses.field(default_factory=dict)
  targets: dict[str, Any] = dataclasses.field(default_factory=dict)


_loaded = _Loaded()


class _Delegate(config_parser.ParserDelegate):
  """Keeps references and macros as text, so that reading a file imports nothing."""

  def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
    scope, _, selector = scoped_configurable_name.rpartition("/")
    return Reference(scope, selector, evaluate)

  def macro(self, macro_name: str) -> Macro:
    return REQUIRED if macro_name == "REQUIRED" else Macro(macro_name)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds `--gin_file` (repeatable), `--gin_search_paths` (comma-separated) and `--debug`."""
  parser.add_argument("--gin_file", action="append", default=[], metavar="FILE",
                      help="a shipped file such as prompts/soft.gin, or a path; repeatable")
  parser.add_argument("--gin_search_paths", default=[], metavar="FOLDER,...",
                      type=lambda text: [part for part in text.split(",") if part],
                      help="more folders to look for gin files in")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def split_gin_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes the `--gin.NAME=VALUE` arguments out of a command line.

  The value is a gin literal (`4`, `"text"`, `{"inputs": 64}`, `@module.Class()`). A value that is
  none, and starts like a word or a path, is a string: `--gin.MODEL_DIR=/a/b`. So is a lone `-`.

  Returns:
    The bindings as gin text, and the other arguments.

  Raises:
    UserError: no value, a malformed name, or a broken literal.
  """
  bindings, rest = [], []
  for argument in argv:
    if not argument.startswith("--gin."):
      rest.append(argument)
      continue
    name, _, text = argument.removeprefix("--gin.").partition("=")
    if not text.strip():
      raise UserError(f"{argument} has no value", found=argument, wanted="--gin.NAME=VALUE",
                      fix=f"write --gin.{name or 'NAME'}=...; the empty string is '\"\"'")
    _parse_binding(f"{name} = None", f"--gin.{name}")
    bindings.append(f"{name} = {_literal(name, text.strip())}")
  return bindings, rest


def _literal(name: str, text: str) -> str:
  if name.endswith(_PATHS) and re.fullmatch(r"[\d._-]+", text):
    return repr(text)  # A folder may be called by a date or a job's number.
  try:
    _parse_binding(f"{name} = {text}", f"--gin.{name}")
    return text
  except UserError:
    constant = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(text.lower())
    if constant:
      raise UserError(f"--gin.{name} has no gin value", found=text, wanted=constant,
                      fix=f"did you mean --gin.{name}={constant}?") from None
    if re.match(r"\{\w+\}", text):
      raise UserError(f"--gin.{name} has no gin value", found=text,
                      wanted="a text in quotes, of which the shell takes off one pair",
                      fix=f"--gin.{name}=\"{text!r}\"") from None
    if text == "-" or (re.match(r"[A-Za-z_./~]", text) and "\n" not in text):
      return repr(text)
    raise


def load(gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = (),
         run: Source | None = None) -> None:
  """Replaces the configuration by that of the files and bindings.

  Args:
    gin_files: shipped names (`prompts/soft.gin`) or paths; their order does not matter.
    bindings: gin text, `NAME = value` each; they outrank every file, and the last of equals wins.
    search_paths: more folders to look in.
    run: the settings of a run (`read_run`); every file but those of commands/ outranks them.

  Raises:
    UserError: a file, module, class, field, macro or scope that does not exist, a syntax error, or
      two files of one rank that disagree.
  """
  global _loaded
  clear()
  sources = read_files(gin_files, search_paths) + ([] if run is None else [run])
  overrides = Source("the command line", OVERRIDE_RANK)
  for binding in bindings:
    setting = _parse_binding(binding, overrides.label)
    overrides.settings.append(dataclasses.replace(setting, source=overrides, line=0))
  targets = resolve(sources, overrides)
  settings = merge([*sources, overrides])
  if run is not None:
    # A file such as runs/your_data.gin asks for values, and the run has them.
    settings |= {s.key: s for s in run.settings if settings[s.key].value == REQUIRED}
  check_used(settings, _shipped_sources)
  imports = sorted({line.text for source in sources for line in source.imports})
  lines = ["from __gin__ import dynamic_registration", *imports]
  lines += [f"{s.key} = {s.value!r}" for s in settings.values()]
  with _redefinition_allowed():
    gin.parse_config("\n".join(lines))
  _loaded = _Loaded(settings, targets)


def macros_of(gin_files: Sequence[str], search_paths: Sequence[str] = ()) -> set[str]:
  """The macros that files, with what they include, read."""
  return {ref.name for source in read_files(gin_files, search_paths)
          for setting in source.settings for ref in references(setting.value)
          if isinstance(ref, Macro)}


def clear() -> None:
  """Forgets what was loaded."""
  global _loaded
  gin.clear_config()
  _loaded = _Loaded()


def build(cls: type[T]) -> T:
  """An instance of a frozen dataclass or Flax module class, its fields filled from what was loaded.

  A class that no loaded file mentions gets its defaults.

  Raises:
    UserError: a field or macro without a value, all of them named; or what the class itself raises.
  """
  selector = next((name for name, target in _loaded.targets.items() if target is cls), None)
  gaps: list[str] = []
  _collect_gaps(cls, selector or f"{cls.__module__.split('.')[-1]}.{cls.__name__}", (), set(), gaps)
  if gaps:
    known = [key for key, setting in _loaded.settings.items() if not setting.parameter]
    raise UserError(f"{cls.__name__} is not completely configured",
                    found="no value for " + ", ".join(gaps), wanted="a value for each",
                    fix="; ".join(how_to_set(gap, _shipped_sources(), known) for gap in gaps))
  try:
    return _configurable(cls)()
  except UserError as error:
    # gin reraises an anonymous subclass with its own text appended.
    raise UserError(error.what, found=error.found, wanted=error.wanted, fix=error.fix) from None


def operative() -> str:
  """Everything that `build` has used so far, defaults included, as the text of one gin file."""
  return gin.operative_config_str(max_line_length=100).rstrip("\n") + "\n"


def read(path: Path) -> Source:
  """Parses one gin file; imports nothing.

  Raises:
    UserError: it is not UTF-8, or not gin.
  """
  rank, label = rank_and_label(path)
  try:
    text = path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{label} is not a gin file", found=error, wanted="UTF-8 text",
                    fix="name a gin file, or save it as UTF-8") from None
  return _parse(text, label, rank)


def read_run(path: Path, instead: Sequence[str] = ()) -> Source:
  """The settings that a run left in its config.gin, with the rank of such settings.

  Args:
    instead: gin text, `NAME = value` each, that takes the place of the run's own.
  """
  run = dataclasses.replace(read(path), rank=RUN_RANK)
  own = {setting.key: setting for setting in run.settings}
  for binding in instead:
    setting = _parse_binding(binding, run.label)
    own[setting.key] = dataclasses.replace(setting, line=0)
  run.settings = [dataclasses.replace(setting, source=run) for setting in own.values()]
  return run


def _parse(text: str, label: str, rank: int) -> Source:
  source = Source(label, rank)
  try:
    for line in config_parser.ConfigParser(text, _Delegate()):
      if isinstance(line, config_parser.BindingStatement):
        source.settings.append(Setting(line.scope, line.selector, line.arg_name, line.value,
                                       source, line.location.line_num))
      elif isinstance(line, config_parser.IncludeStatement):
        source.includes.append((line.filename, line.location.line_num))
      elif (isinstance(line, config_parser.ImportStatement)
            and line.module != "__gin__.dynamic_registration"):
        is_whole = not line.is_from and not line.alias
        source.imports.append(Import(line.format(), line.bound_name(), line.module,
                                     line.module.split(".")[0] if is_whole else line.module,
                                     line.location.line_num))
  except (SyntaxError, tokenize.TokenError) as error:
    message, location = error.args
    line_number = location[0] if isinstance(error, tokenize.TokenError) else location[1]
    raise UserError(f"{label} line {line_number} is not gin", found=message,
                    wanted="NAME = value, module.Class.field = value, import or include",
                    fix="correct the line; strings need quotes") from None
  return source


def _parse_binding(text: str, label: str) -> Setting:
  settings = _parse(text, label, OVERRIDE_RANK).settings
  if len(settings) != 1:
    raise UserError(f"{label}: not one binding", found=repr(text), wanted="NAME = value",
                    fix="give one --gin.NAME=VALUE for each setting")
  return settings[0]


def read_files(names: Sequence[str], search_paths: Sequence[str]) -> list[Source]:
  """All files with what they include, lowest rank first; each file once; imports nothing.

  Raises:
    UserError: a file that does not exist or is not gin, or files that include each other or one
      that outranks them.
  """
  sources: dict[Path, Source] = {}

  def add(name: str, folders: Sequence[str | Path], including: tuple[Source, ...],
          line: int) -> None:
    path = find(name, folders).resolve()
    source = sources.get(path)
    if source is None:
      source = sources[path] = read(path)
    if source in including:
      raise UserError("gin files include each other", wanted="no cycle", fix="drop one include",
                      found=" -> ".join(s.label for s in (*including, source)))
    if including and source.rank > including[-1].rank:
      raise UserError(f"{including[-1].label} line {line} includes a file that outranks it",
                      found=f"{source.label} ({RANKS[source.rank]})",
                      wanted=f"rank {RANKS[including[-1].rank]} or lower",
                      fix="name both files on the command line instead")
    for outer in including:
      outer.included.add(source)
    for inner, inner_line in source.includes:
      add(inner, [*search_paths, path.parent], (*including, source), inner_line)

  for name in names:
    add(name, search_paths, (), 0)
  return sorted(sources.values(), key=lambda source: (source.rank, source.label))


def _shipped_sources() -> list[Source]:
  return [read(path) for path in shipped_paths()]


def _collect_gaps(target: Any, selector: str, scope: tuple[str, ...],
                  seen: set[tuple[str, tuple[str, ...]]], gaps: list[str]) -> None:
  """Appends the macros and fields without a value that constructing `target` would need."""
  if (selector, scope) in seen:
    return
  seen.add((selector, scope))
  values: dict[str, Any] = {}
  for depth in range(len(scope) + 1):
    prefix = "/".join(scope[:depth])
    values.update({s.parameter: s.value for s in _loaded.settings.values()
                   if s.parameter and (s.scope, s.selector) == (prefix, selector)})

  def visit(value: Any, name: str, scope: tuple[str, ...]) -> None:
    for ref in references(value):
      if isinstance(ref, Reference):
        if ref.evaluate:
          inner = tuple(ref.scope.split("/")) if ref.scope else scope
          _collect_gaps(_loaded.targets[ref.selector], ref.selector, inner, seen, gaps)
      elif ref == REQUIRED or ref.name not in _loaded.settings:
        gap = name if ref == REQUIRED else ref.name
        gaps.extend([gap] * (gap not in gaps))
      elif (ref.name, ()) not in seen:
        seen.add((ref.name, ()))
        # gin evaluates a macro in a scope of the macro's own name.
        visit(_loaded.settings[ref.name].value, ref.name, tuple(ref.name.split("/")))

  for name, parameter in parameters(target).items():
    is_open = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    if name in values:
      visit(values[name], f"{selector}.{name}", scope)
    elif parameter.default is parameter.empty and not is_open:
      gaps.append(f"{selector}.{name}")


def _configurable(cls: type[T]) -> Any:
  """gin's wrapper of a class; one that cannot be imported by name is not recorded by gin."""
  with contextlib.suppress(ValueError):
    return gin.get_configurable(cls)
  if "<locals>" in cls.__qualname__:
    return cls
  with _redefinition_allowed():
    gin.parse_config("from __gin__ import dynamic_registration")
    return gin.external_configurable(cls, module=cls.__module__)


@contextlib.contextmanager
def _redefinition_allowed() -> Iterator[None]:
  """Lets gin take a class again whose module was reloaded."""
  gin.enter_interactive_mode()
  try:
    yield
  finally:
    gin.exit_interactive_mode()
