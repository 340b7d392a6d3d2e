"""Tasks over the embedded docstrings (`docstrings.py`): the rows of the table that ship with it.

Texts are cut to a number of words and marks (`shorten`), not of tokens: 95 of 100 inputs of the
classification tasks then have at most 96 tokens of the shipped vocabulary. Targets are not cut;
rows whose first line is long are left out instead.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from prompt_tuning.tasks import corpora
from prompt_tuning.tasks.docstrings import SPLITS, Docstring, corpus
from prompt_tuning.tasks.objectives import PrefixLM, SpanCorruption
from prompt_tuning.tasks.spec import TaskSpec

Row = dict[str, str]

LIBRARY_LABELS = ("numpy", "scipy", "jax", "tensorflow", "keras", "flax", "matplotlib", "orbax")
SEEN_LIBRARIES = ("numpy", "scipy", "jax", "tensorflow", "keras")
UNSEEN_LIBRARIES = ("flax", "optax", "matplotlib", "orbax", "grain", "seqio")

# TensorFlow alone has as many docstrings as all others together: no class gets more rows than this.
MOST_OF_A_CLASS = {"train": 1500, "validation": 120, "test": 120}
INPUT_UNITS = 60
MAX_TARGET_WORDS = 20
MIN_BODY_WORDS = 12
JOIN_WORDS = 400

# Words with one of these anywhere in them are masked ...
_NAMES = ("numpy", "scipy", "jax", "jnp", "tensorflow", "keras", "flax", "optax", "matplotlib",
          "orbax", "seqio", "pyplot", "tfds", "nnx")
# ... and words that are one of these, or have one as a part between underscores and digits.
_ALIASES = frozenset(("np", "tf", "plt", "mpl", "mlab", "pylab", "lax", "linen", "ocp", "absl",
                      "grain", "tflite"))
MASK = "library"
_CAPITAL_PREFIX = re.compile(r"(TF|Tf|NP|Np|Mpl)[A-Z]")


def mask_libraries(text: str) -> str:
  """Replaces every word that holds a library's name or alias (`tf`, `np`, ...) by `library`."""
  return re.sub(r"\w+", lambda match: MASK if names_library(match[0]) else match[0], text)


@functools.lru_cache(maxsize=1 << 16)
def names_library(word: str) -> bool:
  """Whether a word gives its library away: `tf`, `jnp`, `NumPyArray`, `tf_function`, `TFRecord`."""
  lower = word.lower()
  return (any(name in lower for name in _NAMES) or bool(_CAPITAL_PREFIX.match(word))
          or not _ALIASES.isdisjoint(re.split(r"[\W\d_]+", lower)))


_UNIT = re.compile(r"[^\W\d_]+|\d|_|[^\w\s]")


def shorten(text: str, units: int) -> str:
  """The start of a text: so many words, digits and marks; spaces are collapsed."""
  text = " ".join(text.split())
  for count, match in enumerate(_UNIT.finditer(text), start=1):
    if count == units:
      return text[:match.end()]
  return text


def stable_hash(*parts: str) -> int:
  """The same on every machine and in every process, unlike `hash`."""
  return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


@dataclasses.dataclass(frozen=True)
class DocstringSource:
  """A task source over the corpus.

  Attributes:
    view: the docstrings of one split -> rows, in a fixed order.
    libraries: only these, or all.
    splits: the ones that the task has.
  """

  view: Callable[[str, Sequence[Docstring]], Iterable[Row]]
  libraries: tuple[str, ...] | None = None
  splits: tuple[str, ...] = SPLITS

  def rows(self, split: str) -> Iterator[Row]:
    chosen = [docstring for docstring in corpus().docstrings
              if docstring.split == split
              and (self.libraries is None or docstring.library in self.libraries)]
    yield from self.view(split, chosen)

  def fingerprint(self) -> str:
    """Hash of the corpus, of the settings, and of this file, which makes rows of it."""
    settings = f"{corpus().fingerprint} {self.view.__name__} {self.libraries} {self.splits}"
    return hashlib.sha256(settings.encode() + _own_source()).hexdigest()[:16]


@functools.cache
def _own_source() -> bytes:
  return pathlib.Path(__file__).read_bytes()


def texts(row: Row) -> Row:
  """Views make the texts of both features themselves."""
  return {"inputs": row["inputs"], "targets": row["targets"]}


def _row(docstring: Docstring, inputs: str, targets: str) -> Row:
  return {"library": docstring.library, "module": docstring.module,
          "qualname": docstring.qualname, "inputs": inputs, "targets": targets}


def _shuffled(rows: Iterable[Row], salt: str = "") -> list[Row]:
  return sorted(rows, key=lambda row: stable_hash(
    salt, row["module"], row["qualname"], row["inputs"]))


def _balanced(split: str, rows: Iterable[Row]) -> list[Row]:
  """At most MOST_OF_A_CLASS rows with each target, in a fixed random order."""
  classes: dict[str, list[Row]] = {}
  for row in _shuffled(rows):
    classes.setdefault(row["targets"], []).append(row)
  # Shuffled once more: a class that was not cut short must not be rarer at the start.
  return _shuffled((row for members in classes.values()
                    for row in members[:MOST_OF_A_CLASS[split]]), salt="order")


def library_view(split: str, docstrings: Sequence[Docstring]) -> list[Row]:
  """Masked docstring -> the library it is from."""
  rows = (_row(d, shorten(d.docstring, INPUT_UNITS), d.library) for d in docstrings)
  chosen = _balanced(split, (row for row in rows if len(row["inputs"].split()) >= MIN_BODY_WORDS))
  return [{**row, "inputs": mask_libraries(row["inputs"])} for row in chosen]


def summary_view(split: str, docstrings: Sequence[Docstring]) -> list[Row]:
  """Body -> first line."""
  del split
  return _shuffled(_row(d, shorten(d.body, INPUT_UNITS), d.first_line)
                   for d in docstrings if _has_summary(d))


def _has_summary(docstring: Docstring) -> bool:
  return (len(docstring.body.split()) >= MIN_BODY_WORDS
          and len(docstring.first_line.split()) <= MAX_TARGET_WORDS)


def signature_view(split: str, docstrings: Sequence[Docstring]) -> list[Row]:
  """Name and parameters -> first line; private names are left out."""
  del split
  return _shuffled(
    _row(d, shorten(owner + d.signature, INPUT_UNITS), d.first_line)
    for d in docstrings
    for owner in [d.qualname.rpartition(".")[0] + "." if "." in d.qualname else ""]
    if len(d.first_line.split()) <= MAX_TARGET_WORDS
    and not any(part.startswith("_") for part in d.qualname.split(".")))


def match_view(split: str, docstrings: Sequence[Docstring]) -> list[Row]:
  """First line and body -> `yes` if they are of one docstring; else the line is another's.

  Half of the rows are `no`; their first line is from the same library and split.
  """
  del split
  chosen = [d for d in docstrings if _has_summary(d)]
  lines: dict[str, list[str]] = {}
  for docstring in chosen:
    lines.setdefault(docstring.library, []).append(docstring.first_line)
  rows = []
  for docstring in chosen:
    number = stable_hash("match", docstring.module, docstring.qualname)
    is_match = number % 2 == 0
    others = [] if is_match else lines[docstring.library]
    first_line = docstring.first_line
    for step in range(len(others)):
      first_line = others[(number // 2 + step) % len(others)]
      if first_line != docstring.first_line:
        break
    inputs = f"summary: {first_line} text: {shorten(docstring.body, INPUT_UNITS // 2)}"
    rows.append(_row(docstring, inputs, "yes" if first_line == docstring.first_line else "no"))
  return _shuffled(rows)


def kind_view(split: str, docstrings: Sequence[Docstring]) -> list[Row]:
  """Docstring -> `function` or `class`; methods are left out."""
  return _balanced(split, (_row(d, shorten(d.docstring, INPUT_UNITS), d.kind)
                           for d in docstrings if d.kind != "method"))


def text_view(split: str, docstrings: Sequence[Docstring]) -> Iterator[Row]:
  """Running text: the docstrings of a module one after another, in pieces of JOIN_WORDS words."""
  del split
  modules: dict[str, list[str]] = {}
  for docstring in docstrings:
    modules.setdefault(docstring.module, []).append(docstring.docstring)
  for paragraphs in modules.values():
    for text in corpora.joined(paragraphs, JOIN_WORDS):
      yield {"text": text}


RUNNING_TEXT = DocstringSource(text_view)


def _classification(name: str, view: Callable, labels: tuple[str, ...], description: str,
                    **source: tuple[str, ...]) -> TaskSpec:
  return TaskSpec(name=name, source=DocstringSource(view, **source), to_text=texts, labels=labels,
                  metrics=("accuracy", "macro_f1"), description=description)


def _generation(name: str, view: Callable, description: str) -> TaskSpec:
  return TaskSpec(name=name, source=DocstringSource(view), to_text=texts, labels=None,
                  metrics=("rouge", "bleu", "token_f1"), description=description)


def _denoising(name: str, objective: object, description: str) -> TaskSpec:
  return TaskSpec(name=name, source=RUNNING_TEXT, to_text=corpora.text_targets, labels=None,
                  metrics=(), objective=objective, description=description)


ROWS = (
  _classification("docstring_library", library_view, LIBRARY_LABELS,
                  "which library a docstring is from, its names masked",
                  libraries=LIBRARY_LABELS),
  _classification("docstring_match", match_view, ("yes", "no"),
                  "does this text belong to this first line"),
  _classification("docstring_kind_seen", kind_view, ("function", "class"),
                  "function or class; domain shift: libraries trained on",
                  libraries=SEEN_LIBRARIES),
  _classification("docstring_kind_unseen", kind_view, ("function", "class"),
                  "function or class; domain shift: other libraries, for evaluation only",
                  libraries=UNSEEN_LIBRARIES, splits=("validation", "test")),
  _generation("docstring_summary", summary_view, "a docstring's text to its first line"),
  _generation("docstring_signature", signature_view, "name and parameters to the first line"),
  _denoising("docstring_span_corruption", SpanCorruption(), "T5's span corruption of docstrings"),
  _denoising("docstring_prefix_lm", PrefixLM(), "continue docstrings, as in LM adaptation"),
)
