"""Folders of the Hugging Face hub: `hf://owner/name@revision` -> a folder on this machine.

huggingface_hub keeps them under HF_HUB_CACHE, where a snapshot's files are links to blobs beside
it. With HF_HUB_OFFLINE=1 only that cache is looked at. Otherwise the hub is asked, and when it does
not answer that is an error: what is cached may be another version.
"""

import pathlib
import re
from collections.abc import Callable, Sequence

from prompt_tuning.checkpoints.leaves import inside
from prompt_tuning.disk import first_line
from prompt_tuning.errors import UserError

SCHEME = "hf://"
_REFERENCE = re.compile(r"hf://([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")


def folder(path: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> pathlib.Path:
  """The folder that a path names: itself, or a snapshot of the hub's that is fetched if need be.

  Args:
    choose: names of a repository's files -> those to fetch.

  Raises:
    UserError: not a reference; no such repository or revision; the hub does not answer;
      offline, and it is not in the cache.
  """
  if not path.startswith(SCHEME):
    return pathlib.Path(path)
  found = _REFERENCE.fullmatch(path)
  if not found or ".." in path:
    raise UserError("This is not a reference to the Hugging Face hub", found=path,
                    wanted="hf://owner/name or hf://owner/name@revision",
                    fix="e.g. hf://google/t5-v1_1-small@main")
  # Here, because it takes a tenth of a second that nothing else needs.
  import huggingface_hub
  from huggingface_hub import constants
  name, revision = found[1], found[2]
  try:
    if constants.is_offline_mode():
      return pathlib.Path(huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=["*config.json"], local_files_only=True))
    files = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
    return pathlib.Path(huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=list(choose(files)) or ["config.json"]))
  except Exception as error:  # The client's own kinds, the HTTP library's, and the system's.
    offline = "HF_HUB_OFFLINE=1: only the cache is looked at" if constants.is_offline_mode() else (
      f"from {constants.ENDPOINT}")
    raise UserError("The repository cannot be had from the Hugging Face hub",
                    found=f"{path}, {offline}: {type(error).__name__}: {first_line(error)}",
                    wanted="a repository and revision that can be read",
                    fix="correct the name; log in with `hf auth login` where it is gated; set "
                    "HF_HUB_OFFLINE=1 to use what is cached, 0 to fetch it") from error


def cached_file(path: str, name: str) -> pathlib.Path | None:
  """A file of the folder that a path names; of the hub's only if it is cached: nothing is asked."""
  reference = _REFERENCE.fullmatch(path)
  if not reference:
    file = pathlib.Path(path) / name
    return file if file.is_file() else None
  import huggingface_hub  # as in `folder`
  try:
    there = huggingface_hub.try_to_load_from_cache(reference[1], name, revision=reference[2])
  except ValueError:  # No name of a repository: `folder` says so.
    return None
  return pathlib.Path(there) if isinstance(there, str) else None


def file_in(folder: pathlib.Path, name: str) -> pathlib.Path:
  """`leaves.inside`, where the links of a hub's snapshot may lead to the blobs of its repository.

  Raises:
    UserError: it leads elsewhere.
  """
  path = folder / name
  repository = folder.absolute().parent.parent
  if (folder.absolute().parent.name == "snapshots" and path.is_symlink()
      and re.fullmatch(r"[\w.-]+", name)):
    blobs = (repository / "blobs").resolve()
    if path.resolve().parent == blobs and blobs.parent == repository.resolve():
      return path
  return inside(folder, name)
