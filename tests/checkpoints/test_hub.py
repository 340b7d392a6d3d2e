"""References to the Hugging Face hub: a cache as its client makes it, and a hub on loopback."""

import hashlib
import http.server
import json
import os
import threading

import hf_folders
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from prompt_tuning.checkpoints import hf, hub, prompt_files
from prompt_tuning.errors import UserError

COMMIT = "a1" * 20
ADAPTER = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "num_transformer_submodules": 1}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, looked at offline."""
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return tmp_path / "hub"


def fill(cache, files: dict[str, bytes], name="owner/name", revision="main"):
  """Puts a repository into the cache: links in a snapshot, to blobs by their hash."""
  repository = cache / f"models--{name.replace('/', '--')}"
  snapshot = repository / "snapshots" / COMMIT
  for folder in (snapshot, repository / "blobs", repository / "refs"):
    folder.mkdir(parents=True, exist_ok=True)
  (repository / "refs" / revision).write_text(COMMIT)
  for file, content in files.items():
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
  return snapshot


def model_files(folder) -> dict[str, bytes]:
  hf_folders.save_golden(folder, "1_1")
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def error_of(path: str) -> UserError:
  with pytest.raises(UserError) as error:
    hub.folder(path, list)
  return error.value


@pytest.mark.parametrize("reference", ["hf://owner/name", "hf://owner/name@main",
                                       f"hf://owner/name@{COMMIT}"])
def test_a_cached_model(tmp_path, cache, reference):
  fill(cache, model_files(tmp_path / "plain"))
  reader, plain = hf.HFReader(reference), hf.HFReader(str(tmp_path / "plain"))
  assert hf.matches(reference) and reader.metadata["from"] == f"{reference} ({COMMIT})"
  assert reader.leaves == plain.leaves and reader.config == plain.config
  for name in ("token_embedder/embedding", "encoder/layers_1/mlp/wo/kernel"):
    np.testing.assert_array_equal(reader.read(name), plain.read(name))


def test_a_file_that_the_cache_has(tmp_path, cache):
  snapshot = fill(cache, {"spiece.model": b"pieces"})
  for reference in ("hf://owner/name", "hf://owner/name@main", str(snapshot)):
    assert hub.cached_file(reference, "spiece.model") == snapshot / "spiece.model"
    assert hub.cached_file(reference, "config.json") is None
  for reference in ("hf://owner/other", "hf://owner/name@v2", "hf://owner/..", "hf://", "tiny",
                    "gs://bucket/checkpoint_1"):
    assert hub.cached_file(reference, "spiece.model") is None


def test_a_cached_adapter_is_a_prompt(tmp_path, cache):
  values = np.arange(6, dtype=np.float32).reshape(2, 3)
  save_file({"prompt_embeddings": values}, tmp_path / "tensors")
  fill(cache, {"adapter_config.json": json.dumps(ADAPTER).encode(),
               "adapter_model.safetensors": (tmp_path / "tensors").read_bytes()}, "me/prompt", "v2")
  np.testing.assert_array_equal(prompt_files.read("hf://me/prompt@v2").values, values)


def test_a_model_is_no_prompt(tmp_path, cache):
  fill(cache, model_files(tmp_path / "plain"))
  with pytest.raises(UserError, match="PROMPT_FILE is not a prompt") as error:
    prompt_files.read("hf://owner/name")
  assert "no prompt is in this folder" in error.value.found


def test_a_snapshots_folder_is_a_checkpoint(tmp_path, cache):
  snapshot = fill(cache, model_files(tmp_path / "plain"))
  assert len(hf.HFReader(str(snapshot)).leaves) == len(hf.HFReader("hf://owner/name").leaves)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_to_other_places_than_the_blobs(tmp_path, cache, name):
  snapshot = fill(cache, model_files(tmp_path / "plain"))
  (snapshot / name).unlink()
  (snapshot / name).symlink_to(tmp_path / "plain" / name)
  with pytest.raises(UserError) as error:
    hf.HFReader("hf://owner/name")
  assert f"it names the file '{name}', which is not in it" in error.value.found


def test_offline_and_not_there(cache):
  for reference in ("hf://owner/none", "hf://owner/name@other"):
    error = error_of(reference)
    assert error.what == "The repository cannot be had from the Hugging Face hub"
    assert "HF_HUB_OFFLINE=1: only the cache is looked at" in error.found
    assert "0 to fetch it" in error.fix


@pytest.mark.parametrize("reference", ["hf://", "hf://a/b/c", "hf://owner/../name", "hf://a b",
                                       "hf://owner/name@", "hf://owner/name@../../x"])
def test_references_that_are_none(cache, reference):
  error = error_of(reference)
  assert error.what == "This is not a reference to the Hugging Face hub"
  assert error.found == reference and "hf://google/t5-v1_1-small@main" in error.fix


def test_a_path_stays_a_path(tmp_path):
  assert hub.folder(str(tmp_path / "hf"), list) == tmp_path / "hf"


@pytest.fixture
def served(tmp_path, cache, monkeypatch):
  """A hub with one repository, on loopback; yields what was asked of it."""
  files = model_files(tmp_path / "plain") | {"pytorch_model.bin": b"never", "README.md": b"never"}
  asked = []

  class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
      pass

    def do_GET(self):  # noqa: N802
      asked.append(self.path)
      path = self.path.split("?")[0]
      if path.startswith("/api/models/owner/name/tree/"):
        content = json.dumps([{"type": "file", "path": name, "size": len(x), "oid": "0" * 40}
                              for name, x in files.items()]).encode()
      elif path.startswith("/api/models/owner/name"):
        content = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode()
      elif path.startswith("/owner/name/resolve/"):
        content = files[path.rsplit("/", 1)[1]]
      else:
        return self.send_error(404)
      self.send_response(200)
      self.send_header("Content-Length", str(len(content)))
      self.send_header("X-Repo-Commit", COMMIT)
      self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
      self.end_headers()
      return self.command == "GET" and self.wfile.write(content)

    do_HEAD = do_GET

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}"
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "ENDPOINT", url)
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                      url + "/{repo_id}/resolve/{revision}/{filename}")
  yield asked
  server.shutdown()
  server.server_close()


@pytest.mark.filterwarnings("ignore")
def test_what_is_read_is_fetched_and_nothing_else(tmp_path, served, monkeypatch):
  reader = hf.HFReader("hf://owner/name")
  assert reader.leaves == hf.HFReader(str(tmp_path / "plain")).leaves
  fetched = {path.rsplit("/", 1)[1] for path in served if "/resolve/" in path}
  assert fetched == {"config.json", "model.safetensors"}
  served.clear()
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  assert hf.HFReader("hf://owner/name").leaves == reader.leaves and not served


@pytest.mark.filterwarnings("ignore")
def test_a_hub_without_the_repository(served):
  error = error_of("hf://owner/none")
  assert error.what == "The repository cannot be had from the Hugging Face hub"
  assert "404" in error.found and "HF_HUB_OFFLINE=1 to use what is cached" in error.fix
