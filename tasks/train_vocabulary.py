"""Trains the shipped SentencePiece vocabulary: unigram pieces, T5's special ids.

`python -m prompt_tuning.tasks.train_vocabulary --output sentencepiece.model --files 'c/*_train*'`

pad 0, eos 1, unk 2, no bos, as T5's own. Sentinels are not in the file: they are added above the
pieces when it is loaded (`vocabularies.py`). The text is a fixed share of docstrings (train split
only) and the rest from the files; spaces and line ends are collapsed to one space.
"""

import argparse
import io
import itertools
import pathlib
import random
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import corpora, docstrings

MAX_CHARACTERS = 1000
# How often a word that must become one piece is added to the text: more than a rare piece has.
WORD_COUNT = 3000
# Every printable ASCII character gets a piece, however rare: code and formulas need them all.
ASCII = "".join(chr(code) for code in range(33, 127))


def train(sentences: Iterable[str], *, size: int, words: Sequence[str] = (),
          num_threads: int = 2) -> bytes:
  """A serialised SentencePiece model of `size` pieces, each of `words` being one of them.

  The words (class labels) are added to the text until they are frequent: a user-defined symbol
  would instead also cut every longer word that starts with one.

  Raises:
    UserError: the text is too small for the size, or a word did not become one piece.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain(sentences, list(words) * WORD_COUNT), model_writer=model,
      model_type="unigram", vocab_size=size, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
      character_coverage=0.9999, required_chars=ASCII, normalization_rule_name="nmt_nfkc",
      byte_fallback=False, num_threads=num_threads, minloglevel=1)
  except RuntimeError as error:
    raise UserError(f"no vocabulary of {size} pieces can be made from this text", found=error,
                    wanted="more text, or another size", fix="change --size, or add files"
                    ) from error
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  cut = [word for word in words if len(processor.encode(word)) != 1]
  if cut:
    raise UserError("some words did not become one piece", found=", ".join(cut),
                    wanted="one piece each", fix="ask for more pieces, or for fewer words")
  return model.getvalue()


def sample(texts: Iterable[str], characters: int, seed: int) -> list[str]:
  """Pieces of the texts, at most MAX_CHARACTERS each, drawn until `characters` are reached."""
  pieces = [piece for text in texts for piece in _cut(text)]
  random.Random(seed).shuffle(pieces)
  total = 0
  for count, piece in enumerate(pieces):
    total += len(piece)
    if total > characters:
      return pieces[:count]
  return pieces


def _cut(text: str) -> Iterator[str]:
  words, length = [], 0
  for word in text.split():
    if words and length + len(word) > MAX_CHARACTERS:
      yield " ".join(words)
      words, length = [], 0
    words.append(word)
    length += len(word) + 1
  if words:
    yield " ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--files", nargs="*", default=[], help="text files, as corpora.py reads them")
  parser.add_argument("--size", type=int, default=4000, help="pieces, sentinels not counted")
  parser.add_argument("--characters", type=int, default=24_000_000)
  parser.add_argument("--docstring_share", type=float, default=0.25)
  parser.add_argument("--words", nargs="*", default=[], help="words that must be one piece")
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args(arguments)

  share = given.docstring_share if given.files else 1.0
  embedded = (docstring.docstring for docstring in docstrings.corpus().docstrings
              if docstring.split == "train")
  sentences = sample(embedded, int(share * given.characters), given.seed)
  if given.files:
    paragraphs = (paragraph for path in corpora.expand(given.files)
                  for document in corpora.documents(path) for paragraph in document)
    sentences += sample(paragraphs, int((1 - share) * given.characters), given.seed)
  given.output.parent.mkdir(parents=True, exist_ok=True)
  given.output.write_bytes(train(sentences, size=given.size, words=given.words))
  print(f"{given.output}: {given.size} pieces from {len(sentences)} lines, "
        f"{sum(map(len, sentences))} characters")


if __name__ == "__main__":
  main()
