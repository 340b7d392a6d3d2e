"""The embedded text: docstrings of this package's installed dependencies, read without importing.

Every machine that can run `prompt_tuning` has this text, so the demo and the tests need no
download. `ast` reads the source files; nothing is imported or executed. The corpus depends on the
installed versions, so its `fingerprint()` (a hash of its content) belongs beside every result.

  1. every docstring of a function, class or method: examples, code and underlines taken out,
     spaces collapsed; the first paragraph is the "first line", the rest is the body
  2. exact repeats and near repeats (Jaccard of word shingles) across all libraries are dropped:
     `keras` and `tf.keras`, `jax.numpy` and `numpy` share many; the first library listed keeps it
  3. train, validation and test are split by module: what stands in one file stays together
"""

import ast
import dataclasses
import functools
import gc
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.near_duplicates import first_of_each

# Top-level package -> distribution that installs it. The order decides who keeps a repeated text.
LIBRARIES = {
  "numpy": "numpy",
  "scipy": "scipy",
  "jax": "jax",
  "keras": "keras",
  "flax": "flax",
  "optax": "optax",
  "matplotlib": "matplotlib",
  "orbax": "orbax-checkpoint",
  "grain": "grain",
  "absl": "absl-py",
  "seqio": "seqio",
  "tensorflow_datasets": "tensorflow-datasets",
  "tensorflow": "tensorflow",
}
SPLITS = ("train", "validation", "test")

# Raise it whenever the code below would make other rows from the same libraries.
FORMAT = 1
HELD_OUT_PERCENT = {"validation": 6, "test": 6}
MIN_WORDS = 4
MAX_FIRST_LINE_WORDS = 40

# Old Keras inside TensorFlow: text of one library under the name of another.
FOREIGN = ("tensorflow/python/keras/",)


@dataclasses.dataclass(frozen=True)
class Docstring:
  """One docstring.

  Attributes:
    library, module, qualname: where it stands, e.g. `numpy`, `numpy.ma.core`, `MaskedArray.sum`.
    kind: `function`, `class` or `method`.
    signature: name and parameters, `sum(axis, dtype, out)`.
    first_line: the first paragraph, on one line.
    body: the other paragraphs, one a line; may be empty.
    split: `train`, `validation` or `test`, the same for a whole module.
  """

  library: str
  module: str
  qualname: str
  kind: str
  signature: str
  first_line: str
  body: str
  split: str

  @property
  def docstring(self) -> str:
    return f"{self.first_line}\n{self.body}" if self.body else self.first_line

  def row(self) -> dict[str, str]:
    return {**vars(self), "docstring": self.docstring}


@dataclasses.dataclass(frozen=True)
class Corpus:
  """All docstrings, in a fixed order, and the hash of them."""

  docstrings: tuple[Docstring, ...]
  fingerprint: str


def corpus() -> Corpus:
  """The corpus of the installed libraries: from the disk cache, or built (seconds) and cached.

  The cache is `$PROMPT_TUNING_CACHE`, else `~/.cache/prompt_tuning`.

  Raises:
    UserError: a library is not installed, or the cache cannot be written.
  """
  return _load(str(cache_directory()))


def cache_directory() -> pathlib.Path:
  return pathlib.Path(
    os.environ.get("PROMPT_TUNING_CACHE") or pathlib.Path.home() / ".cache" / "prompt_tuning")


@functools.lru_cache(maxsize=2)
def _load(directory: str) -> Corpus:
  key = hashlib.sha256(json.dumps([FORMAT, versions()]).encode()).hexdigest()[:16]
  path = pathlib.Path(directory) / f"docstrings_{key}.json.gz"
  if path.exists():
    try:
      payload = gzip.decompress(path.read_bytes())
      rows = json.loads(payload)
    except (OSError, EOFError, ValueError) as error:
      raise UserError(f"the docstring cache {path} cannot be read", found=repr(error),
                      wanted="a file that an earlier run wrote", fix=f"delete {path}") from error
  else:
    rows = [dataclasses.astuple(docstring) for docstring in build(locations())]
    payload = json.dumps(rows).encode()
    _write(path, gzip.compress(payload, compresslevel=3, mtime=0))
  return Corpus(docstrings=tuple(Docstring(*row) for row in rows),
                fingerprint=hashlib.sha256(payload).hexdigest()[:16])


def _write(path: pathlib.Path, payload: bytes) -> None:
  """Writes under a private name and renames: a reader sees nothing or the whole file."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
      private = pathlib.Path(folder) / path.name
      private.write_bytes(payload)
      os.replace(private, path)
  except OSError as error:
    raise UserError(f"the docstring cache {path} cannot be written", found=repr(error),
                    wanted="a directory with some megabytes free",
                    fix="set PROMPT_TUNING_CACHE to a directory that can be written") from error


def versions() -> dict[str, str]:
  """Library -> installed version."""
  found = {}
  for package, distribution in LIBRARIES.items():
    try:
      found[package] = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
      # TensorFlow is also published as tensorflow-cpu, tensorflow-macos and more.
      others = importlib.metadata.packages_distributions().get(package)
      if not others:
        raise _not_installed(package) from None
      found[package] = f"{others[0]} {importlib.metadata.version(others[0])}"
  return found


def _not_installed(package: str) -> UserError:
  return UserError(
    f"the docstring tasks read {package}, which is not installed", found="no such package",
    wanted="all of " + ", ".join(LIBRARIES), fix=f"pip install {LIBRARIES[package]}")


def locations() -> dict[str, list[pathlib.Path]]:
  """Library -> its folders. Finding a top-level package does not import it."""
  found = {}
  for package in LIBRARIES:
    package_spec = importlib.util.find_spec(package)
    if package_spec is None or package_spec.submodule_search_locations is None:
      raise _not_installed(package)
    found[package] = [pathlib.Path(root) for root in package_spec.submodule_search_locations]
  return found


def build(folders: Mapping[str, list[pathlib.Path]]) -> list[Docstring]:
  """Reads, cleans, deduplicates and splits the docstrings below `folders`."""
  # Syntax trees hold no cycles, and the collector walks them again and again: without it this
  # takes half the time.
  collects = gc.isenabled()
  gc.disable()
  try:
    rows = [row for library, roots in folders.items() for root in roots
            for row in _of_library(library, root)]
  finally:
    if collects:
      gc.enable()
  kept = first_of_each([f"{row.first_line} {row.body}" for row in rows])
  return [rows[index] for index in kept]


def _of_library(library: str, root: pathlib.Path) -> Iterator[Docstring]:
  for path in sorted(root.rglob("*.py")):
    relative = path.relative_to(root.parent)
    if _is_test(relative) or relative.as_posix().startswith(FOREIGN):
      continue
    text = path.read_text(encoding="utf-8", errors="replace")
    if ('"""' not in text and "'''" not in text) or ("def " not in text and "class " not in text):
      continue  # modules of imports alone: parsing is what takes the time
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
        tree = ast.parse(text)
    except SyntaxError:
      continue  # templates and files for other interpreters are not modules
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    yield from _of_body(tree.body, library=library, module=module, scope=())


def _is_test(path: pathlib.Path) -> bool:
  return (bool({"tests", "test"}.intersection(path.parts)) or path.name.startswith("test_")
          or path.name.endswith(("_test.py", "_tests.py", "_pb2.py")))


def _of_body(body: list[ast.stmt], *, library: str, module: str,
             scope: tuple[str, ...]) -> Iterator[Docstring]:
  for node in body:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      first_line, paragraphs = clean(ast.get_docstring(node) or "")
      words = len(first_line.split())
      if MIN_WORDS <= words <= MAX_FIRST_LINE_WORDS and not first_line.startswith("TODO"):
        is_class = isinstance(node, ast.ClassDef)
        yield Docstring(
          library=library, module=module, qualname=".".join((*scope, node.name)),
          kind="class" if is_class else "method" if scope else "function",
          signature=_signature(node), first_line=first_line, body="\n".join(paragraphs),
          split=split_of(module))
      if isinstance(node, ast.ClassDef):
        yield from _of_body(node.body, library=library, module=module, scope=(*scope, node.name))
    else:
      for block in ("body", "orelse", "finalbody"):
        yield from _of_body(getattr(node, block, []), library=library, module=module, scope=scope)


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
  function = node
  if isinstance(node, ast.ClassDef):
    function = next((item for item in node.body
                     if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if function is None:
      return f"{node.name}()"
  given = function.args
  names = [arg.arg for arg in (*given.posonlyargs, *given.args)]
  names += ["*" + given.vararg.arg] if given.vararg else []
  names += [arg.arg for arg in given.kwonlyargs]
  names += ["**" + given.kwarg.arg] if given.kwarg else []
  return f"{node.name}({', '.join(name for name in names if name not in ('self', 'cls'))})"


def split_of(module: str) -> str:
  """A module's split, from a hash of its name: other modules never change it."""
  bucket = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 100
  for split, percent in HELD_OUT_PERCENT.items():
    if bucket < percent:
      return split
    bucket -= percent
  return "train"


_FENCE = re.compile(r"^```.*?(^```|\Z)", re.MULTILINE | re.DOTALL)
_EXAMPLE = re.compile(r"^[ \t]*>>>.*?(^[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_UNDERLINE = re.compile(r"^[ \t]*([-=~^*#`+_.])\1{2,}[ \t]*$", re.MULTILINE)
_DIRECTIVE = re.compile(r"^[ \t]*\.\. (?:[\w-]+::|_).*$", re.MULTILINE)
_ROLE = re.compile(r":[a-z][a-z:-]*:`~?([^`<]*?)(?: ?<[^`]*>)?`")


def clean(docstring: str) -> tuple[str, list[str]]:
  """A docstring (already dedented) -> its first line and its other paragraphs, each on one line.

  Fenced code, interpreter sessions, heading underlines and directives are taken out;
  `:class:`name`` becomes `name`; backticks go.
  """
  for pattern in (_FENCE, _EXAMPLE, _UNDERLINE, _DIRECTIVE):
    docstring = pattern.sub("", docstring)
  docstring = _ROLE.sub(r"\1", docstring).replace("`", "")
  paragraphs = [" ".join(part.split()) for part in re.split(r"\n[ \t]*\n", docstring)]
  paragraphs = [paragraph for paragraph in paragraphs if any(c.isalpha() for c in paragraph)]
  return (paragraphs[0], paragraphs[1:]) if paragraphs else ("", [])
