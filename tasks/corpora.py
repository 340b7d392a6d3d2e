"""Plain text as a task source: one paragraph a line, a blank line between documents.

Files may be gzipped (`.gz`) and many (globs). A row is `{"text": ...}`: one paragraph, or, with
`join_words`, successive paragraphs of one document joined until they hold that many words, so
that chunks cut from them (`denoising.py`) are full; no row crosses a document's end.
"""

import dataclasses
import glob
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.lines import lines
from prompt_tuning.tasks.spec import TaskSpec


def expand(patterns: Sequence[str]) -> tuple[pathlib.Path, ...]:
  """Globs and paths -> the files, sorted within a pattern, each once.

  Raises:
    UserError: a pattern matches no file.
  """
  found: dict[pathlib.Path, None] = {}
  for pattern in patterns:
    matches = sorted(glob.glob(str(pattern), recursive=True))
    if not matches:
      raise UserError(f"no file matches {str(pattern)!r}", found="nothing there",
                      wanted="a text file, or a glob such as 'corpus/*_train.txt.gz'",
                      fix=f"check the path; relative paths start at {pathlib.Path.cwd()}")
    found.update((pathlib.Path(match), None) for match in matches)
  return tuple(found)


def documents(path: pathlib.Path) -> Iterator[tuple[str, ...]]:
  """The paragraphs of each document of a file.

  Raises:
    UserError: as `lines`, and where the file holds no text.
  """
  paragraphs: list[str] = []
  is_empty = True
  for _, line in lines(path):
    if line.strip():
      paragraphs.append(line.strip())
      is_empty = False
    elif paragraphs:
      yield tuple(paragraphs)
      paragraphs = []
  if paragraphs:
    yield tuple(paragraphs)
  if is_empty:
    raise UserError(f"{path} is empty", found="no paragraph", wanted="one paragraph a line",
                    fix="leave the file out, or put text into it")


def joined(paragraphs: Iterable[str], words: int) -> Iterator[str]:
  """Successive paragraphs joined by a space until each piece holds `words` words (last: fewer)."""
  piece: list[str] = []
  count = 0
  for paragraph in paragraphs:
    piece.append(paragraph)
    count += len(paragraph.split())
    if count >= words:
      yield " ".join(piece)
      piece, count = [], 0
  if piece:
    yield " ".join(piece)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles:
  """A task source over text files.

  Attributes:
    files: split -> paths or globs.
    join_words: None: a row is a paragraph; else paragraphs of a document are joined up to it.
  """

  files: Mapping[str, Sequence[str]]
  join_words: int | None = None

  def __post_init__(self):
    if not self.files or not all(self.files.values()):
      raise UserError("a text corpus has a split without files", found=dict(self.files),
                      wanted="at least one file a split", fix="name files, or drop the split")
    if self.join_words is not None and self.join_words < 1:
      raise UserError("join_words is not a number of words", found=self.join_words,
                      wanted="1 or more, or None", fix="try 400")
    object.__setattr__(self, "files", {split: tuple(map(str, patterns))
                                       for split, patterns in self.files.items()})

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.files)

  def rows(self, split: str) -> Iterator[dict[str, str]]:
    for path in expand(self.files[split]):
      for paragraphs in documents(path):
        pieces = paragraphs if self.join_words is None else joined(paragraphs, self.join_words)
        for text in pieces:
          yield {"text": text}

  def fingerprint(self) -> str:
    """Hash of the files' bytes, not of their names."""
    digest = hashlib.sha256(repr(self.join_words).encode())
    for split in self.splits:
      digest.update(split.encode())
      for path in expand(self.files[split]):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def text_targets(row: Mapping[str, str]) -> dict[str, str]:
  """What a denoising objective starts from: the whole text, as targets."""
  return {"targets": row["text"]}


def text_spec(name: str, files: Mapping[str, Sequence[str]], objective: object, *,
              join_words: int | None = 400) -> TaskSpec:
  """A denoising task over text files: `files` are split -> paths or globs."""
  return TaskSpec(name=name, source=TextFiles(files=files, join_words=join_words),
                  to_text=text_targets, labels=None, metrics=(), objective=objective,
                  description=f"{type(objective).__name__} over {len(files)} splits of text files")
