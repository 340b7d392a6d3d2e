"""What the dotted names in gin files stand for: modules, classes and their fields.

A file may use only the modules that it imports itself; a `--gin.` override may use those of every
loaded file. So a symbol must mean the same module in all of them.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.gin_files import T5X_NAMES, Reference, Setting, Source


def resolve(sources: Sequence[Source], overrides: Source) -> dict[str, Any]:
  """Imports what the files import, and makes each source's selectors canonical, in place.

  One class may be named in several ways (`prompts.SoftPrompt`, `soft.SoftPrompt`); the first name
  becomes that of all, so that settings of one field share one key.

  Returns:
    Canonical selector -> class or function.

  Raises:
    UserError: a module, class or field that does not exist, or an ambiguous symbol.
  """
  symbols = _import_all(sources)
  targets: dict[str, Any] = {}
  for source in sources:
    own = {line.symbol: symbols[line.symbol] for line in source.imports}
    source.settings = [_resolve_setting(s, own, targets) for s in source.settings]
  overrides.settings = [_resolve_setting(s, symbols, targets) for s in overrides.settings]
  return targets


def parameters(target: Any) -> Mapping[str, inspect.Parameter]:
  """What a class or function can be configured with."""
  return inspect.signature(target).parameters


def _import_all(sources: Sequence[Source]) -> dict[str, ModuleType]:
  symbols: dict[str, ModuleType] = {}
  for source in sources:
    for line in source.imports:
      try:
        importlib.import_module(line.module)
      except ImportError as error:
        is_its_own = error.name is None or line.module.startswith(error.name)
        fix = f"install {error.name}"
        if is_its_own:
          fix = nearest(line.module, _siblings(line.module))
          if error.name == line.module.partition(".")[0]:
            fix += "; a module of yours: run the command in its folder, or add that to PYTHONPATH"
        raise UserError(f"{source.label} line {line.line} cannot import {line.module}",
                        found=error, wanted="a module that can be imported", fix=fix) from None
      module = importlib.import_module(line.target)
      if symbols.setdefault(line.symbol, module) is not module:
        raise UserError(f"{line.symbol!r} is imported as two different modules",
                        found=f"{symbols[line.symbol].__name__}, and {line.target} in "
                        f"{source.label} line {line.line}", wanted="one meaning for a symbol",
                        fix=f"write `{line.text} as another_name` in one of the files")
  return symbols


def _siblings(module: str) -> list[str]:
  parent = module.rpartition(".")[0]
  try:
    folders = importlib.import_module(parent).__path__ if parent else None
  except (ImportError, AttributeError):
    return []
  prefix = f"{parent}." if parent else ""
  return [prefix + info.name for info in pkgutil.iter_modules(folders)]


def _resolve_setting(setting: Setting, symbols: Mapping[str, ModuleType],
                     targets: dict[str, Any]) -> Setting:

  def canonical(selector: str) -> str:
    target = _target(selector, symbols, setting)
    for name, known in targets.items():
      if known is target:
        return name
    targets[selector] = target
    return selector

  def convert(value: Any) -> Any:
    if isinstance(value, Reference):
      return dataclasses.replace(value, selector=canonical(value.selector))
    if isinstance(value, dict):
      return {convert(key): convert(item) for key, item in value.items()}
    return type(value)(map(convert, value)) if isinstance(value, list | tuple) else value

  if not setting.parameter:
    return dataclasses.replace(setting, value=convert(setting.value))
  selector = canonical(setting.selector)
  known = parameters(targets[selector])
  is_open = any(p.kind is p.VAR_KEYWORD for p in known.values())
  if setting.parameter not in known and not is_open:
    raise UserError(f"{selector} has no field {setting.parameter!r}", found=setting,
                    wanted=f"a field of {selector}", fix=nearest(setting.parameter, known))
  return dataclasses.replace(setting, selector=selector, value=convert(setting.value))


def _target(selector: str, symbols: Mapping[str, ModuleType], setting: Setting) -> Any:
  head, *rest = selector.split(".")
  if head not in symbols:
    classes = [f"{name}.{member}" for name, module in symbols.items()
               for member in _members(module)]
    parts = [*selector.split("."), setting.parameter]
    close = next((T5X_NAMES[part] for part in parts if part in T5X_NAMES),
                 nearest(selector, classes))
    raise UserError(f"Unknown module {head!r}", found=setting,
                    wanted="module.Class.field, of a module that the gin file imports",
                    fix=nearest(head, symbols) if close.startswith("choose") else close)
  target: Any = symbols[head]
  for depth, name in enumerate(rest):
    if not hasattr(target, name):
      prefix = ".".join([head, *rest[:depth]])
      raise UserError(f"{prefix} has no {name!r}", found=setting, wanted=f"a member of {prefix}",
                      fix=nearest(name, _members(target)))
    target = getattr(target, name)
  if inspect.ismodule(target) or not callable(target):
    raise UserError(f"{selector} is not a class or function", found=setting,
                    wanted="module.Class.field = value", fix=nearest(
                      selector, [f"{selector}.{member}" for member in _members(target)]))
  return target


def _members(target: Any) -> list[str]:
  return [name for name, member in getattr(target, "__dict__", {}).items()
          if not name.startswith("_") and (callable(member) or inspect.ismodule(member))]
