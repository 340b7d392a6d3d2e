"""zarr arrays as tensorstore writes them, in parts; chunks that are missing, wrong or bombs."""

import gzip
import json
import zlib

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from damage import survives
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import parts

from prompt_tuning.checkpoints import zarr_arrays
from prompt_tuning.checkpoints.storage import Store
from prompt_tuning.checkpoints.zarr_arrays import GZIP, ZSTANDARD, ZarrArray
from prompt_tuning.checkpoints.zstandard_frames import decoded_bound
from prompt_tuning.errors import UserError

VALUES = np.random.default_rng(0).standard_normal((11, 7)).astype(np.float32)
ZEROS = {"chunks": [4096], "shape": [4096], "dtype": "|u1", "zarr_format": 2, "order": "C",
         "fill_value": None, "filters": None}


def spec(folder, chunks, compressor, shape, dtype="float32"):
  return {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/a/"}, "dtype": dtype,
          "metadata": {"chunks": chunks, "shape": shape, "compressor": compressor}}


def save(folder, values, chunks, compressor):
  ts.open(spec(folder, chunks, compressor, list(values.shape), values.dtype.name), create=True,
          delete_existing=True).result().write(values).result()


def by_hand(folder, metadata, **chunks: bytes):
  (folder / "a").mkdir()
  (folder / "a/.zarray").write_text(json.dumps(metadata))
  for name, content in chunks.items():
    (folder / "a" / name.strip("_")).write_bytes(content)
  return Store(str(folder))


@pytest.mark.parametrize("compressor", [None, GZIP, ZSTANDARD, {"id": "zlib", "level": 3}],
                         ids=["raw", "gzip", "zstd", "zlib"])
@pytest.mark.parametrize("chunks", [[11, 7], [3, 7], [4, 3], [20, 10]])
def test_parts(tmp_path, compressor, chunks):
  save(tmp_path, VALUES, chunks, compressor)
  array = ZarrArray(Store(str(tmp_path)), "a")
  for index in parts(VALUES.shape, np.random.default_rng(1)):
    assert np.array_equal(array.read(index), VALUES[index])
  assert np.array_equal(array.read(), VALUES)


@pytest.mark.parametrize("values", [np.asarray(5, np.int32), np.zeros(3, np.float32),
                                    np.arange(4).astype(ml_dtypes.bfloat16)])
@pytest.mark.parametrize("compressor", [GZIP, ZSTANDARD], ids=["gzip", "zstd"])
def test_what_we_write_tensorstore_reads(tmp_path, values, compressor):
  details = zarr_arrays.write({"driver": "file", "path": f"{tmp_path}/"}, "a", values, compressor)
  assert details["shape"] == list(values.shape)
  kvstore = {"driver": "file", "path": f"{tmp_path}/a/"}
  found = ts.open({"driver": "zarr", "kvstore": kvstore,
                   "fill_missing_data_reads": False}).result().read().result()
  assert found.dtype == values.dtype and found.tobytes() == values.tobytes()
  assert ZarrArray(Store(str(tmp_path)), "a").read().tobytes() == values.tobytes()


def test_chunks_divide_the_array():
  assert zarr_arrays.chunk_shape((32128, 4096), 4, 2**26) == (4016, 4096)
  assert zarr_arrays.chunk_shape((2, 2**25), 4, 2**26) == (1, 2**24)
  assert zarr_arrays.chunk_shape((), 4, 2**26) == () and (
    zarr_arrays.chunk_shape((0, 3), 4, 2**26) == (1, 3))


def test_a_chunk_that_is_missing(tmp_path):
  save(tmp_path, VALUES, [3, 7], GZIP)
  (tmp_path / "a/2.0").unlink()
  array = ZarrArray(Store(str(tmp_path)), "a")
  assert np.array_equal(array.read((slice(0, 6), slice(None))), VALUES[:6])
  with pytest.raises(UserError, match="a/2.0: this part of the array is missing"):
    array.read()


@pytest.mark.parametrize("change, why", [
  ({"shape": [2**41]}, "not those of an array"), ({"shape": [-1]}, "not those of an array"),
  ({"shape": [True]}, "not those of an array"), ({"shape": [2, 2]}, "not those of an array"),
  ({"chunks": [0]}, "not those of an array"), ({"chunks": [2**34]}, "larger than the array"),
  ({"shape": [2**34]}, "are more than"),
  ({"dtype": "|O"}, "is none of"), ({"dtype": [["x", "<f4"]]}, "unhashable"),
  ({"compressor": {"id": "blosc"}}, "none of gzip"), ({"order": "F"}, "order C"),
  ({"filters": [{"id": "pickle"}]}, "no filters"), ({"zarr_format": 3}, "zarr_format 2"),
  ({"dimension_separator": "../"}, "dimension_separator"), ({"shape": "ab"}, "")])
def test_metadata_that_is_refused(tmp_path, change, why):
  with pytest.raises(UserError, match="zarr array, version 2") as caught:
    ZarrArray(by_hand(tmp_path, ZEROS | change), "a")
  assert why in caught.value.found


def test_an_enormous_shape_ends_at_its_first_chunk(tmp_path):
  store = by_hand(tmp_path, ZEROS | {"shape": [2**31]}, _0=bytes(4096))
  found = survives(lambda: ZarrArray(store, "a").read())
  assert isinstance(found, UserError) and "a/524287" in found.found


@pytest.mark.parametrize("compressor, content", [
  ("gzip", gzip.compress(bytes(2**27))), ("zlib", zlib.compress(bytes(2**27))),
  ("gzip", gzip.compress(bytes(4095))), ("gzip", gzip.compress(bytes(4096))[:-9]), ("gzip", b""),
  ("zstd", b""), ("zstd", b"\x28\xb5\x2f\xfd"), (None, bytes(4097)), (None, bytes(4095))],
  # A gzip stream holds the time it was written at: its bytes are no name.
  ids=["gzip_bomb", "zlib_bomb", "gzip_short", "gzip_cut", "gzip_empty", "zstd_empty", "zstd_cut",
       "raw_long", "raw_short"])
def test_bombs_and_chunks_of_another_size(tmp_path, compressor, content):
  store = by_hand(tmp_path, ZEROS | {"compressor": compressor and {"id": compressor}}, _0=content)
  found = survives(lambda: ZarrArray(store, "a").read())
  assert isinstance(found, UserError) and "a/0" in found.found


def zstandard(content: bytes) -> bytes:
  """One frame, made by tensorstore."""
  context = ts.Context()
  values = np.frombuffer(content, np.uint8)
  ts.open({"driver": "zarr", "kvstore": {"driver": "memory"}, "dtype": "uint8",
           "store_data_equal_to_fill_value": True,
           "metadata": {"shape": [len(content)], "chunks": [len(content)],
                        "compressor": ZSTANDARD}},
          create=True, context=context).result().write(values).result()
  store = ts.KvStore.open({"driver": "memory"}, context=context).result()
  return bytes(store.read("0").result().value)


def test_a_zstandard_bomb(tmp_path):
  # 64 MiB of zeros, in a chunk that has to have 4 kB.
  content = zstandard(bytes(2**26))
  assert len(content) < 2**14
  store = by_hand(tmp_path, ZEROS | {"compressor": ZSTANDARD}, _0=content)
  found = survives(lambda: ZarrArray(store, "a").read())
  assert isinstance(found, UserError) and "up to 67," in found.found


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(min_size=1, max_size=3000), st.builds(
  lambda x, n: x * n, st.binary(min_size=1, max_size=3), st.integers(1, 300_000))))
def test_the_bound_of_a_frame_holds(content):
  frame = zstandard(content)
  assert len(content) <= decoded_bound(frame) <= len(content) + 2**17
  for cut in (1, len(frame) // 2, len(frame) - 5):
    with pytest.raises(ValueError):
      decoded_bound(frame[:cut])
  with pytest.raises(ValueError, match="after its end"):
    decoded_bound(frame + b"x")


@pytest.mark.parametrize("name", ["../b", "/etc", "a/../../b", "", "x\0y"])
def test_names_that_lead_out(tmp_path, name):
  save(tmp_path / "model", VALUES, [11, 7], GZIP)
  with pytest.raises(UserError, match="which is not in it"):
    Store(str(tmp_path / "model")).read(name)


def test_links_that_lead_out(tmp_path):
  save(tmp_path / "model", VALUES, [11, 7], GZIP)
  (tmp_path / "secret").write_text("secret")
  (tmp_path / "model/a/0.1").symlink_to("0.0")
  Store(str(tmp_path / "model"))
  (tmp_path / "model/a/0.2").symlink_to(tmp_path / "secret")
  with pytest.raises(UserError, match="a/0.2 is a link to .*/secret"):
    Store(str(tmp_path / "model"))
