"""The token cache: rows come back as written, and only whole caches are ever opened."""

import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import token_cache
from prompt_tuning.errors import UserError
from prompt_tuning.token_cache import Ragged, TokenCache, write_cache

ROWS = st.lists(st.tuples(st.lists(st.integers(1, 2**31 - 1), max_size=5),
                          st.lists(st.integers(1, 99), max_size=5), st.text(max_size=5)),
                min_size=1, max_size=12)


def chunks_of(rows, chunk_rows):
  for start in range(0, len(rows), chunk_rows):
    part = rows[start:start + chunk_rows]
    chunk = {}
    for index, name in enumerate(("inputs", "targets")):
      ids = [row[index] for row in part]
      chunk[name] = Ragged(np.array(sum(ids, []), np.int32), np.array([len(i) for i in ids]))
      texts = [row[2].encode("utf-8") for row in part]
      chunk[f"{name}_text"] = Ragged(b"".join(texts), np.array([len(t) for t in texts]))
    yield chunk


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, chunk_rows=st.integers(1, 4))
def test_rows_come_back_as_written(tmp_path_factory, rows, chunk_rows):
  cache = write_cache(tmp_path_factory.mktemp("cache") / "task", chunks_of(rows, chunk_rows))
  assert len(cache) == len(rows)
  for row, (inputs, targets, text) in enumerate(rows):
    got = cache[row]
    assert got["inputs"].dtype == np.int32
    assert got["inputs"].tolist() == inputs and got["targets"].tolist() == targets
    assert got["inputs_text"] == got["targets_text"] == text
  assert cache.lengths("targets").tolist() == [len(row[1]) for row in rows]
  assert cache.last_ids("inputs").tolist() == [row[0][-1] if row[0] else 0 for row in rows]
  ids = sum((row[1] for row in rows), [])
  assert cache.id_range("targets") == ((min(ids), max(ids)) if ids else None)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
  def chunks():
    yield from chunks_of([([1], [1], "")], 1)
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError, match="killed"):
    write_cache(tmp_path / "task", chunks())
  assert list(tmp_path.iterdir()) == []


def test_concurrent_writers_of_one_cache_both_get_it(tmp_path):
  barrier = threading.Barrier(2)
  lengths = []

  def write():
    def chunks():
      yield from chunks_of([([7, 1], [1], "seven")], 1)
      barrier.wait(timeout=10)

    lengths.append(len(write_cache(tmp_path / "task", chunks())))

  threads = [threading.Thread(target=write) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert lengths == [1, 1]
  assert [path.name for path in tmp_path.iterdir()] == ["task"]
  assert TokenCache(tmp_path / "task")[0]["inputs_text"] == "seven"


def test_an_empty_source_is_an_error(tmp_path):
  with pytest.raises(UserError, match="There are no examples to tokenise"):
    write_cache(tmp_path / "task", iter(()))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["seven", "seven" * 10**5])
def test_a_full_disk_is_named(tmp_path, monkeypatch, text):
  """Few bytes are refused when the file is closed, many when they are written."""
  monkeypatch.setattr(token_cache, "open", lambda path, mode: open("/dev/full", mode),
                      raising=False)
  with pytest.raises(UserError, match="(?s)could not be written.*No space left.*free some space"):
    write_cache(tmp_path / "task", chunks_of([([7, 1], [1], text)], 1))
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="could not be written"):
    write_cache(tmp_path / "file" / "task", iter(()))


def test_what_the_source_raises_is_no_full_disk(tmp_path):
  def chunks():
    yield from chunks_of([([7, 1], [1], "seven")], 1)
    raise FileNotFoundError(2, "No such file or directory", "train.tsv")

  with pytest.raises(FileNotFoundError, match="train.tsv"):
    write_cache(tmp_path / "task", chunks())
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage,found", [
    (lambda folder: (folder / "inputs.int32").write_bytes(b"\0" * 4), "1 values of inputs"),
    (lambda folder: (folder / "meta.json").unlink(), "FileNotFoundError"),
    (lambda folder: (folder / "meta.json").write_text("{"), "JSONDecodeError"),
    (lambda folder: (folder / "meta.json").write_text(json.dumps(
        {"rows": 9, "lost": None, "texts": ["inputs_text"],
         "id_range": {"inputs": [], "targets": []}})),
     "1 rows of inputs"),
])
def test_a_damaged_cache_is_an_error_that_says_to_delete_it(tmp_path, damage, found):
  write_cache(tmp_path / "task", chunks_of([([7, 1], [1], "seven")], 1))
  damage(tmp_path / "task")
  with pytest.raises(UserError, match=f"(?s)task is damaged.*{found}.*delete .*task"):
    TokenCache(tmp_path / "task")


def test_a_row_outside_the_cache_is_an_index_error(tmp_path):
  cache = write_cache(tmp_path / "task", chunks_of([([7, 1], [1], "seven")], 1))
  for row in (-1, 1):
    with pytest.raises(IndexError):
      cache[row]
