"""The embedded corpus: made of a small fake library, and of what is really installed."""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import docstrings, near_duplicates

SOURCE = '''
"""Module text is not a docstring of a function."""
import does_not_exist  # reading must not import

def area(width, *, height=2, **rest):
  """Compute the area of
  a rectangle.

  Uses `width` and :class:`~other.Height`.

      >>> area(2)
      4

  ```
  code = 1
  ```

  Notes
  -----
  Nothing else matters here.
  """

if True:
  async def later(a, /, b, *c):
    """Wait for a and then for b."""

class Shape(Base):
  r"""A shape with a \\name and corners."""
  def __init__(self, corners, name=None):
    """Make it."""
  @classmethod
  def regular(cls, corners):
    """Make a shape with equal sides."""
    def inner():
      """This one is hidden inside a function."""
  class Corner:
    """A corner of this very shape."""

def _undone():
  """TODO: document what this function does."""
'''


@pytest.fixture
def library(tmp_path):
  root = tmp_path / "lib"
  (root / "tests").mkdir(parents=True)
  (root / "__init__.py").write_text(SOURCE)
  (root / "tests" / "x.py").write_text(SOURCE.replace("rectangle", "circle"))
  (root / "thing_test.py").write_text(SOURCE.replace("rectangle", "circle"))
  (root / "broken.py").write_text('def (:\n  """A docstring in a broken file."""')
  (root / "copy.py").write_text(SOURCE)
  return root


def test_rows(library):
  rows = docstrings.build({"lib": [library]})
  assert [(row.qualname, row.kind, row.signature) for row in rows] == [
    ("area", "function", "area(width, height, **rest)"),
    ("later", "function", "later(a, b, *c)"),
    ("Shape", "class", "Shape(corners, name)"),
    ("Shape.regular", "method", "regular(corners)"),
    ("Shape.Corner", "class", "Corner()")]
  area = rows[0]
  assert area.first_line == "Compute the area of a rectangle."
  assert area.body == "Uses width and other.Height.\nNotes\nNothing else matters here."
  assert area.docstring == f"{area.first_line}\n{area.body}"
  assert (area.library, area.module) == ("lib", "lib")
  assert {row.split for row in rows} == {docstrings.split_of("lib")}


def test_nothing_is_imported_or_run(library):
  assert "does_not_exist" not in sys.modules
  (library / "evil.py").write_text('raise SystemExit\ndef f():\n  """A docstring that is read."""')
  assert any(row.module == "lib.evil" for row in docstrings.build({"lib": [library]}))


def jaccard(left, right):
  sets = [set(itertools.pairwise(itertools.pairwise(itertools.pairwise(text.split()))))
          for text in (left, right)]
  return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_duplicates_against_all_pairs():
  random = np.random.default_rng(0)
  words = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(20) for j in range(20)]
  texts = [" ".join(random.choice(words, 60)) for _ in range(60)]
  for index in range(40):  # copies with up to 12 words changed
    copy = texts[index].split()
    for place in random.choice(60, index % 13, replace=False):
      copy[place] = "changed"
    texts.append(" ".join(copy))
  kept: list[int] = []
  for index, text in enumerate(texts):
    if all(jaccard(text, texts[other]) < near_duplicates.SIMILAR for other in kept):
      kept.append(index)
  assert 60 < len(kept) < 100
  assert near_duplicates.first_of_each(texts) == kept


def test_near_duplicates_of_short_texts():
  assert near_duplicates.first_of_each(["a b", "A, b!", "a c", "", "a b"]) == [0, 2, 3]
  assert near_duplicates.first_of_each([]) == []


def test_splits_are_shares_of_modules():
  splits = [docstrings.split_of(f"package.module_{index}") for index in range(4000)]
  for split, percent in docstrings.HELD_OUT_PERCENT.items():
    # Binomial with n = 4000: four standard deviations.
    assert abs(splits.count(split) / 40 - percent) < 4 * (percent * (100 - percent) / 4000) ** 0.5
  assert docstrings.split_of("numpy.linalg") == docstrings.split_of("numpy.linalg")


@pytest.fixture
def small(monkeypatch, tmp_path, library):
  monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(docstrings, "locations", lambda: {"lib": [library]})
  docstrings._load.cache_clear()
  yield tmp_path / "cache"
  docstrings._load.cache_clear()


def test_cache(small, library):
  built = docstrings.corpus()
  (file,) = small.iterdir()
  docstrings._load.cache_clear()
  for path in library.rglob("*.py"):
    path.unlink()
  assert docstrings.corpus() == built and len(built.docstrings) == 5
  file.write_bytes(file.read_bytes()[:40])
  docstrings._load.cache_clear()
  with pytest.raises(UserError, match="docstring cache .* cannot be read\n(.*\n)*.*delete"):
    docstrings.corpus()


def test_fingerprint_follows_the_text(small, library, monkeypatch, tmp_path):
  before = docstrings.corpus().fingerprint
  (library / "__init__.py").write_text(SOURCE.replace("corners", "edges"))
  monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "other"))
  assert docstrings.corpus().fingerprint != before


def test_cache_that_cannot_be_written(small, monkeypatch):
  small.write_text("a file where the folder should be")
  with pytest.raises(UserError, match="cannot be written\n(.*\n)*.*PROMPT_TUNING_CACHE"):
    docstrings.corpus()


def test_processes_may_build_at_once(tmp_path, library):
  code = ("import sys, pathlib\nfrom prompt_tuning.tasks import docstrings\n"
          "docstrings.locations = lambda: {'lib': [pathlib.Path(sys.argv[1])]}\n"
          "print(docstrings.corpus().fingerprint)")
  environment = {"PROMPT_TUNING_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin"}
  running = [subprocess.Popen([sys.executable, "-c", code, str(library)], env=environment,
                              stdout=subprocess.PIPE, text=True) for _ in range(3)]
  prints = {process.communicate()[0] for process in running}
  assert len(prints) == 1 and prints != {""}
  assert len(list((tmp_path / "cache").iterdir())) == 1


def test_missing_library(monkeypatch):
  monkeypatch.setitem(docstrings.LIBRARIES, "no_such_library", "no-such-distribution")
  with pytest.raises(UserError, match="no_such_library, which is not installed\n(.*\n)*"
                                      ".*pip install no-such-distribution"):
    docstrings.versions()


def test_the_installed_corpus(monkeypatch):
  corpus = docstrings.corpus()
  rows = corpus.docstrings
  assert len(rows) > 20_000 and {row.library for row in rows} == set(docstrings.LIBRARIES)
  assert sum(len(row.docstring) for row in rows) > 8_000_000
  modules = {}
  for row in rows:
    assert modules.setdefault(row.module, row.split) == row.split
  assert len({(row.first_line, row.body) for row in rows}) == len(rows)
  assert rows[0].library == "numpy"
  docstrings._load.cache_clear()
  # Another process reads what the first has made; no library's source is opened again.
  monkeypatch.delattr(docstrings, "build")
  assert docstrings.corpus() == corpus


def test_folders_are_found_without_import():
  code = ("import sys\nfrom prompt_tuning.tasks import docstrings\n"
          "found = docstrings.locations()\ndocstrings.versions()\n"
          "print(sorted(set(found) & set(sys.modules) - {'numpy'}), len(found))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout.strip() == f"[] {len(docstrings.LIBRARIES)}", done.stderr
  assert all(path.is_dir() for paths in docstrings.locations().values() for path in paths)
  assert isinstance(docstrings.locations()["numpy"][0], pathlib.Path)
