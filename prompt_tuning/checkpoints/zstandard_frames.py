"""How large a zstandard frame can become, from its headers alone (RFC 8878, section 3.1).

A frame is a header and blocks of at most 128 KiB decoded each; a block's size in the file can be
four bytes. Counting blocks therefore bounds what a decoder would produce, and decodes nothing.
"""

_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_BLOCK = 128 * 2**10


def decoded_bound(content: bytes) -> int:
  """An upper bound of the decoded size of one frame.

  Raises:
    ValueError: it is not exactly one frame.
  """
  if content[:4] != _MAGIC or len(content) < 6:
    raise ValueError("a chunk is not zstandard")
  descriptor = content[4]
  single_segment = descriptor >> 5 & 1
  size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
  position = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + size_bytes
  bound, last = 0, False
  while not last:
    header = int.from_bytes(content[position:position + 3], "little")
    if position + 3 > len(content):
      raise ValueError("a chunk is truncated")
    last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
    if kind == 3 or size > _MAX_BLOCK:
      raise ValueError("a chunk has a damaged block")
    # Raw and repeated bytes say their decoded size, compressed ones only their own.
    bound += _MAX_BLOCK if kind == 2 else size
    position += 3 + (1 if kind == 1 else size)
  position += 4 if descriptor >> 2 & 1 else 0
  if position != len(content):
    raise ValueError("a chunk is truncated, or has bytes after its end")
  return bound
