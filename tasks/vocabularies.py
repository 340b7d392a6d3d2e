"""Vocabularies: the shipped one (`tiny`), T5's or any other SentencePiece file, and bytes.

`load` gives the seqio vocabulary that tasks are built with; `load_light` the same ids through the
sentencepiece package alone, for code that must not import TensorFlow. A SentencePiece file has 100
sentinels above its pieces, `<extra_id_0>` being the highest id, as in T5 (32,000 pieces:
`<extra_id_0>` = 32099). They are added to a file without them, such as T5's `cc_all.32000`; mT5's
file and T5's `cc_all.32000.100extra` end with them, and get none. `bytes` is ByT5's: id = byte + 3
and no ids of their own for sentinels: they are the last bytes counting down (`<extra_id_0>` = 258).
"""

import functools
import hashlib
import importlib.resources
import pathlib
from collections.abc import Iterable
from typing import Any

import sentencepiece

from prompt_tuning.errors import UserError

NUM_SENTINELS = 100
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BYTE_OFFSET = 3
TABLE_MULTIPLE = 128
# Names in models/*.gin of vocabularies that are not shipped: whose, and a repository with the file.
NOT_SHIPPED = {"t5": ("T5", "google/t5-v1_1-small"), "mt5": ("mT5", "google/mt5-small")}


def path_of(name: str) -> pathlib.Path:
  """The SentencePiece file behind a vocabulary's name.

  Raises:
    UserError: there is no such file.
  """
  if name == "tiny":
    return pathlib.Path(str(importlib.resources.files("prompt_tuning"))
                        ) / "pretrained" / "tiny" / "sentencepiece.model"
  path = pathlib.Path(name)
  if path.is_file():
    return path
  if name in NOT_SHIPPED:
    whose, repository = NOT_SHIPPED[name]
    raise UserError(f"{whose}'s vocabulary is not shipped", found=f"VOCABULARY = {name!r}",
                    wanted="the path of its SentencePiece file",
                    fix=f"`hf download {repository} spiece.model --local-dir .`, then "
                    "VOCABULARY = 'spiece.model' (docs/checkpoints.md, \"Vocabulary\")")
  raise UserError(f"no vocabulary {name!r}", found="neither a known name nor a file here",
                  wanted="'tiny', 'bytes', or the path of a SentencePiece model",
                  fix="correct the path; docs/checkpoints.md, \"Vocabulary\", says where T5's and "
                  "mT5's files are")


def load(name: str) -> Any:
  """The `seqio.Vocabulary` of `tiny`, `bytes` or the path of a SentencePiece model.

  Raises:
    UserError: there is no such file, it is not a SentencePiece model with T5's special ids, or it
      holds other sentinels than T5's.
  """
  import seqio

  if name == "bytes":
    return seqio.ByteVocabulary()
  light = load_light(name)  # its errors are clear, seqio's are not
  assert isinstance(light, _PieceTokenizer)
  return seqio.SentencePieceVocabulary(str(path_of(name)), extra_ids=light.num_added)


def check_table(name: str, vocab_size: int, rows: int) -> None:
  """Refuses a vocabulary that leaves more of an embedding table unused than padding explains.

  For checkpoints that do not say which vocabulary they have: T5's 32,100 ids have a table of 32,128
  rows, mT5's 250,100 one of 250,112, ByT5's 259 one of 384.

  Raises:
    UserError: it is another model's.
  """
  if not vocab_size <= rows < vocab_size + TABLE_MULTIPLE:
    raise UserError("The vocabulary does not fit the checkpoint",
                    found=f"{vocab_size:,} ids in {name!r}, the last {NUM_SENTINELS} of them "
                    f"sentinels; {rows:,} rows in the embedding table",
                    wanted=f"{max(rows - TABLE_MULTIPLE + 1, 1):,} to {rows:,} ids",
                    fix="set VOCABULARY to the SentencePiece file that belongs to the checkpoint, "
                    "or to 'bytes' for ByT5")


def short_id(name: str) -> str:
  """A few characters that stand for a vocabulary's content in the names of tasks."""
  if name in ("tiny", "bytes"):
    return name
  return hashlib.sha256(path_of(name).read_bytes()).hexdigest()[:8]


def fingerprint(name: str) -> str:
  """16 hex digits over a vocabulary's content: what a checkpoint records and checks."""
  return fingerprint_of(None if name == "bytes" else path_of(name).read_bytes())


def fingerprint_of(model: bytes | None) -> str:
  """As `fingerprint`, of a SentencePiece model's content; None: bytes.

  The model without its sentinels, so that both of T5's files are one vocabulary.
  """
  content = b"bytes" if model is None else model.replace(_sentinel_pieces(), b"")
  return hashlib.sha256(content).hexdigest()[:16]


class Tokenizer:
  """Text <-> ids without TensorFlow; the ids equal those of `load(name)`.

  Attributes:
    vocab_size: pieces and sentinels.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID
  vocab_size: int

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without the end. `<extra_id_N>` at the start of a word is that sentinel."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Text up to the first end of the sequence; padding and virtual (negative) ids are left out."""
    raise NotImplementedError

  def piece(self, token: int) -> str:
    """How one id is written, e.g. `▁the`, `<extra_id_7>`, `</s>`."""
    raise NotImplementedError

  def sentinel(self, number: int) -> int:
    """The id of `<extra_id_number>`: the highest id, counting down."""
    if not 0 <= number < NUM_SENTINELS:
      raise UserError(f"there is no sentinel {number}", found=number,
                      wanted=f"0 to {NUM_SENTINELS - 1}", fix="use fewer or longer noise spans")
    return self.vocab_size - 1 - number


def real_ids(ids: Iterable[int]) -> list[int]:
  """The ids up to the first end of the sequence, without padding and virtual tokens."""
  kept = []
  for token in map(int, ids):
    if token == EOS_ID:
      break
    if token > PAD_ID:
      kept.append(token)
  return kept


class _PieceTokenizer(Tokenizer):
  """A SentencePiece model with sentinels above its pieces.

  Attributes:
    num_added: how many of them its file lacks.
  """

  def __init__(self, processor: sentencepiece.SentencePieceProcessor, num_added: int):
    self._processor = processor
    self.vocab_size = processor.get_piece_size()
    self.num_added = num_added

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    # A backbone's table is padded above the vocabulary: such ids have no text.
    known = [token if token < self.vocab_size else UNK_ID for token in real_ids(ids)]
    return self._processor.decode(known)

  def piece(self, token: int) -> str:
    if not 0 <= token < self.vocab_size:
      return f"<id_{token}>"
    piece = self._processor.id_to_piece(token)
    return piece.removeprefix("▁") if token >= self.vocab_size - NUM_SENTINELS else piece


@functools.cache
def _sentinel_pieces() -> bytes:
  """`▁<extra_id_99>` ... `▁<extra_id_0>` as a part of a serialised SentencePiece model.

  Protocol buffers are merged by joining their bytes, and `pieces` is field 1 of the model. A piece
  is its text (field 1), its score (field 2, a float) and its type (field 3, 4 = user-defined).
  """
  added = b""
  for number in reversed(range(NUM_SENTINELS)):
    text = f"▁<extra_id_{number}>".encode()
    piece = bytes([0x0A, len(text)]) + text + b"\x15" + bytes(4) + b"\x18\x04"
    added += bytes([0x0A, len(piece)]) + piece
  return added


def _has_sentinels(processor: sentencepiece.SentencePieceProcessor, path: pathlib.Path) -> bool:
  """Whether a model ends with the sentinels; False: it holds none.

  Raises:
    UserError: it holds only some, or has them elsewhere or in another order.
  """
  size = processor.get_piece_size()
  names = [f"<extra_id_{number}>" for number in reversed(range(NUM_SENTINELS))]
  ending = processor.id_to_piece(list(range(max(size - NUM_SENTINELS, 0), size)))
  if [piece.removeprefix("▁") for piece in ending] == names:
    return True
  ids = {processor.piece_to_id(piece) for name in names for piece in (name, f"▁{name}")}
  if there := sorted(ids - {processor.unk_id()}):
    first, last = (f"{processor.id_to_piece(token)} = {token}" for token in (there[0], there[-1]))
    raise UserError(f"{path} holds other sentinels than T5's",
                    found=f"{len(there)} of them, {first} to {last}, of {size:,} pieces",
                    wanted=f"none, or the last {NUM_SENTINELS} pieces {names[0]} ... {names[-1]}",
                    fix="use the file as it was before sentinels were added: T5's are added when "
                    "it is loaded")
  return False


class _ByteTokenizer(Tokenizer):
  """ByT5's ids; text that holds a sentinel cannot be told from text that holds its byte."""

  vocab_size = 256 + BYTE_OFFSET

  def encode(self, text: str) -> list[int]:
    return [byte + BYTE_OFFSET for byte in text.encode("utf-8")]

  def decode(self, ids: Iterable[int]) -> str:
    values = [token - BYTE_OFFSET for token in real_ids(ids)]
    return bytes(v for v in values if 0 <= v < 256).decode("utf-8", errors="ignore")

  def piece(self, token: int) -> str:
    if 0 <= token < BYTE_OFFSET:
      return ("<pad>", "</s>", "<unk>")[token]
    byte = token - BYTE_OFFSET
    return chr(byte) if 32 < byte < 127 else f"<byte_{byte:02x}>" if 0 <= byte < 256 else (
      f"<id_{token}>")


@functools.lru_cache(maxsize=8)
def load_light(name: str) -> Tokenizer:
  """The `Tokenizer` of `tiny`, `bytes` or the path of a SentencePiece model.

  Raises:
    UserError: as `load`.
  """
  if name == "bytes":
    return _ByteTokenizer()
  path = path_of(name)
  try:
    model = path.read_bytes()
    if not model:
      raise RuntimeError("it is empty")  # sentencepiece takes that for no model
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  except (RuntimeError, OSError) as error:
    raise UserError(f"{path} cannot be read as a vocabulary", found=str(error).strip(),
                    wanted="a SentencePiece model", fix="fetch the file again") from error
  ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
  if ids != (PAD_ID, EOS_ID, UNK_ID):
    raise UserError(f"{path} has other special ids than T5",
                    found=f"pad, eos, unk = {ids}", wanted=f"{(PAD_ID, EOS_ID, UNK_ID)}",
                    fix="train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1")
  if _has_sentinels(processor, path):
    return _PieceTokenizer(processor, num_added=0)
  processor = sentencepiece.SentencePieceProcessor(model_proto=model + _sentinel_pieces())
  return _PieceTokenizer(processor, num_added=NUM_SENTINELS)
