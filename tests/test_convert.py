"""`prompt-tuning convert`: what it prints, refuses, writes, verifies, and leaves after a kill."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import fake_bucket
import msgpack
import numpy as np
import pytest
from small_models import CONFIG, backbone, save_prompt

from prompt_tuning import convert, trees
from prompt_tuning.checkpoints import backbone as ours
from prompt_tuning.checkpoints import (
  formats,
  loading,
  method_files,
  prompt_files,
  t5x_legacy,
  zarr_arrays,
)
from prompt_tuning.checkpoints.leaves import Leaf, MemoryReader
from prompt_tuning.checkpoints.stacking import in_layout
from prompt_tuning.convert import ConvertConfig
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.main import main
from prompt_tuning.tasks import vocabularies

XXL = T5Config(vocab_size=32128, emb_dim=4096, num_heads=64, head_dim=64, mlp_dim=10240,
               num_encoder_layers=24, num_decoder_layers=24, scan_layers=False)


@pytest.fixture
def source(tmp_path):
  ours.save(tmp_path / "source", backbone(3), CONFIG, vocabulary=vocabularies.fingerprint("bytes"),
            about={})
  return str(tmp_path / "source")


def run(*arguments):
  return main(["convert", *map(str, arguments)])


def same(path, params=None) -> bool:
  reader = loading.find(str(path)).open(str(path))
  found = in_layout(reader, True)
  return trees.differences(trees.unflatten({name: found.read(name) for name in found.leaves}),
                           backbone(3) if params is None else params) == []


@pytest.mark.parametrize("to", ["ours", "t5x", "t5x_orbax", "hf"])
def test_the_command(tmp_path, source, capsys, to):
  assert run(source, tmp_path / "new", "--to", to) == 0
  printed = capsys.readouterr().out
  assert formats.formats()[to].title in printed and "read back and compared" in printed
  assert "token_embedder/embedding" in printed and "mapped" in printed
  assert formats.detect(str(tmp_path / "new")).name == to and same(tmp_path / "new")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]


def test_the_scanned_layout_of_t5x(tmp_path, source):
  assert run(source, tmp_path / "new", "--to", "t5x", "--layout", "stacked") == 0
  names = t5x_legacy.open_checkpoint(str(tmp_path / "new"))._arrays
  assert "encoder/encoder/mlp/wo/kernel" in names and same(tmp_path / "new")
  # What stands in T5X's formats keeps its layout.
  plan = convert.plan(ConvertConfig(source=str(tmp_path / "new"), destination="x", to="t5x_orbax"))
  assert "encoder/layers/mlp/wo/kernel" in plan.source.leaves


def test_another_dtype(tmp_path, source, capsys):
  assert run(source, tmp_path / "new", "--to", "t5x", "--dtype", "bfloat16") == 0
  assert "float32 [16] -> bfloat16 [16]" in capsys.readouterr().out
  half = {k: np.asarray(x).astype(zarr_arrays._DTYPES["bfloat16"])
          for k, x in trees.flatten(backbone(3)).items()}
  assert same(tmp_path / "new", trees.unflatten(half))


def test_a_dry_run_reads_and_writes_nothing(tmp_path, source, capsys):
  weights = pathlib.Path(source) / ours.WEIGHTS
  content = weights.read_bytes()
  header = 8 + int.from_bytes(content[:8], "little")
  weights.write_bytes(content[:header] + bytes(len(content) - header))
  assert run(source, tmp_path / "new", "--to", "t5x", "--dry-run") == 0
  assert "to write" in capsys.readouterr().out
  assert not (tmp_path / "new").exists()


def test_xxl_is_planned_from_its_index_alone(tmp_path, capsys):
  """An index of 44.5 GB, without one of the arrays that it names."""
  entries = {"state/step": 1_100_000}
  for name, leaf in loading.expected_leaves(XXL).items():
    entries[f"target/{name}"] = {
      "driver": "zarr", "dtype": "float32", "metadata": {"shape": list(leaf.shape)},
      "kvstore": {"driver": "gfile", "path": "target." + name.replace("/", ".")}}
  (tmp_path / "checkpoint").write_bytes(
    msgpack.packb({"version": 3, "optimizer": trees.unflatten(entries)}))
  assert run(tmp_path, tmp_path / "new", "--to", "ours", "--dtype", "bfloat16", "--dry-run") == 0
  printed = capsys.readouterr().out
  assert "44.5 GB to read, 22.3 GB to write" in printed and " min on a local disk" in printed


def test_the_destination_is_not_replaced_unasked(tmp_path, source, capsys):
  (tmp_path / "new").mkdir()
  (tmp_path / "new/precious").write_text("x")
  assert run(source, tmp_path / "new", "--to", "t5x") == 2
  assert "The destination exists" in capsys.readouterr().err
  # Not even on request: it is no checkpoint's.
  assert run(source, tmp_path / "new", "--to", "t5x", "--overwrite") == 2
  error = capsys.readouterr().err
  assert "The destination holds other things, which would be lost" in error and "precious" in error
  assert (tmp_path / "new/precious").exists()
  (tmp_path / "new/precious").unlink()
  assert run(source, tmp_path / "new", "--to", "t5x", "--overwrite") == 0
  assert same(tmp_path / "new")


@pytest.mark.parametrize("to, beside", [("ours", "prompt.npy"), ("hf", "tokenizer.json")])
def test_a_checkpoint_is_replaced_and_nothing_beside_it(tmp_path, source, capsys, to, beside):
  for extra in ([], ["--overwrite"]):
    assert run(source, tmp_path / "new", "--to", to, *extra) == 0
  (tmp_path / "new" / beside).write_text("x")
  assert run(source, tmp_path / "new", "--to", to, "--overwrite") == 2
  assert beside in capsys.readouterr().err and (tmp_path / "new" / beside).exists()


@pytest.mark.parametrize("to, words", [("ours", "in the format ours is an address"),
                                       ("hf", "in the format hf is an address")])
def test_a_bucket_is_no_folder(tmp_path, source, capsys, monkeypatch, to, words):
  monkeypatch.chdir(tmp_path)
  assert run(source, "gs://bucket/lm", "--to", to) == 2
  error = capsys.readouterr().err
  assert words in error and "mount the bucket" in error
  assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_in_a_bucket_is_replaced_on_request_and_its_index_goes_first(
    source, capsys, monkeypatch):
  objects = {}
  with fake_bucket.serve(objects) as address:
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    assert run(source, "gs://weights/lm", "--to", "t5x") == 0
    before = dict(objects)
    assert run(source, "gs://weights/lm", "--to", "t5x") == 2
    assert "The destination exists" in capsys.readouterr().err and objects == before
    assert run(source, "gs://weights/lm", "--to", "t5x", "--overwrite") == 0
    assert objects.keys() == before.keys() and list(objects)[-1] == "weights/lm/checkpoint"


def test_names_in_messages_are_those_of_the_command(tmp_path, source, capsys):
  assert run(tmp_path / "nowhere", tmp_path / "new") == 2
  assert "SRC is not a checkpoint" in capsys.readouterr().err
  assert run(source, tmp_path / "out.npz", "--to", "ours") == 2
  assert "A backbone is a folder" in capsys.readouterr().err


def with_more(path, **more):
  flat = trees.flatten(backbone(3)) | {k.replace("__", "/"): x for k, x in more.items()}
  ours.write(str(path), MemoryReader(flat, CONFIG), config=CONFIG, metadata={})
  return str(path)


def test_what_is_dropped_has_to_be_named(tmp_path, capsys):
  path = with_more(tmp_path / "more", encoder__prompt__x=np.ones((3, 16), np.float32))
  assert run(path, tmp_path / "new", "--to", "t5x") == 2
  out, err = capsys.readouterr()
  assert "unused" in out and "encoder/prompt/x" in out
  assert "unused ['encoder/prompt/x'] (1)" in err and "--drop PATTERN" in err
  assert run(path, tmp_path / "new", "--to", "t5x", "--dry-run") == 2
  assert run(path, tmp_path / "new", "--to", "t5x", "--drop", "encoder/prompt/.*") == 0
  assert "dropped" in capsys.readouterr().out and same(tmp_path / "new")


def test_the_size_file_says_what_the_checkpoint_does_not(tmp_path, source, capsys):
  assert run("tiny", tmp_path / "new", "--to", "t5x", "--gin_file=models/tiny.gin") == 0
  capsys.readouterr()
  assert run(source, tmp_path / "x", "--to", "t5x", "--gin_file=models/tiny.gin") == 2
  out, err = capsys.readouterr()
  assert "misshapen" in out and "missing" in out and "are not the model's" in err


def test_a_checkpoint_that_is_no_t5(tmp_path, capsys):
  source = MemoryReader({"kernel": np.ones((2, 3), np.float32)})
  t5x_legacy.write(str(tmp_path / "x"), source, config=CONFIG, metadata={})
  assert run(tmp_path / "x", tmp_path / "new", "--to", "ours") == 2
  assert "does not say which T5 it is" in capsys.readouterr().err


def test_the_vocabulary_is_recorded_and_checked(tmp_path, source, capsys):
  run(source, tmp_path / "t5x", "--to", "t5x")
  assert run(tmp_path / "t5x", tmp_path / "new", "--to", "ours", "--vocabulary", "bytes") == 0
  assert ours.BackboneReader(str(tmp_path / "new")).metadata["vocabulary"] == (
    vocabularies.fingerprint("bytes"))
  assert run(tmp_path / "t5x", tmp_path / "x", "--to", "ours", "--vocabulary", "tiny") == 2
  assert "The vocabulary does not fit the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
  (["--to", "t6x"], "did you mean 't5x'"), (["--to", "mesh_tf"], "no such format to convert to"),
  (["--to", "t5x", "--dtype", "int8"], "not stored in this dtype"),
  (["--to", "t5x", "--layout", "x"], "no such layout"),
  (["--to", "ours", "--layout", "unstacked"], "has one layout"),
  (["--to", "t5x", "--keep_state"], "optimizer state cannot go along"),
  (["--to", "t5x", "--drop", "encoder/.*"], "matches no leaf that is unused")])
def test_mistakes(tmp_path, source, capsys, flags, message):
  assert run(source, tmp_path / "new", *flags) == 2
  assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_source_that_is_nothing(tmp_path, capsys):
  assert run(tmp_path / "no", tmp_path / "new", "--to", "t5x") == 2
  assert "is not a checkpoint" in capsys.readouterr().err


def test_adafactors_state_goes_along_on_request(tmp_path, source):
  run(source, tmp_path / "a", "--to", "t5x")
  reader = t5x_legacy.open_checkpoint(str(tmp_path / "a"))
  state = {"state/param_states/x/v": MemoryArray(np.arange(3, dtype=np.float32))}
  t5x_legacy.write(str(tmp_path / "b"), reader, config=CONFIG, metadata={}, state=state)
  assert run(tmp_path / "b", tmp_path / "c", "--to", "t5x_orbax", "--keep_state") == 0
  assert run(tmp_path / "b", tmp_path / "d", "--to", "t5x_orbax") == 0
  for name, kept in (("c", True), ("d", False)):
    found = loading.find(str(tmp_path / name)).open(str(tmp_path / name))
    assert ("state/param_states/x/v" in found.ignored) is kept


@dataclasses.dataclass
class MemoryArray:
  array: np.ndarray

  @property
  def leaf(self):
    return Leaf(self.array.shape, self.array.dtype)

  def read(self, index=None):
    return self.array


def test_what_was_written_wrong_is_found(tmp_path, source, monkeypatch):
  real = zarr_arrays.write

  def flipped(spec, name, array, *rest):
    return real(spec, name, array + (name.endswith("encoder_norm.scale")), *rest)

  monkeypatch.setattr(zarr_arrays, "write", flipped)
  plan = convert.plan(ConvertConfig(source=source, destination=str(tmp_path / "new"), to="t5x"))
  with pytest.raises(UserError, match=r"is not what was read\n.*encoder_norm/scale \(1\)"):
    convert.run(plan)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_damaged_source_leaves_nothing(tmp_path, source, capsys):
  run(source, tmp_path / "t5x", "--to", "t5x")
  (tmp_path / "t5x/target.token_embedder.embedding/0.0").write_bytes(b"garbage")
  assert run(tmp_path / "t5x", tmp_path / "new", "--to", "hf") == 2
  assert "embedding/0.0" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "t5x"]


KILLED = """
import os, signal, sys
from prompt_tuning import convert
from prompt_tuning.checkpoints import safetensors_file, zarr_arrays
from prompt_tuning.convert import ConvertConfig

to, point, source, destination, overwrite = sys.argv[1:]
plan = convert.plan(ConvertConfig(source=source, destination=destination, to=to,
                                  overwrite=overwrite == "yes"))
target, name = {"write": (convert._Recorded, "read"), "compare": (convert._Recorded, "compare"),
                "before": (os, "rename"), "between": (os, "rename")}[point]
# The writer renames its own folder twice; then the old one makes room, and the new one comes.
count = {"write": 5, "compare": 1, "before": 3, "between": 4}[point]
real, calls = getattr(target, name), []

def killed(*arguments, **more):
  calls.append(1)
  if len(calls) == count:
    os.kill(os.getpid(), signal.SIGKILL)
  return real(*arguments, **more)

setattr(target, name, killed)
convert.run(plan)
"""


@pytest.mark.parametrize("to, point", [("t5x", "write"), ("ours", "write"), ("t5x", "compare"),
                                       ("ours", "before"), ("ours", "between")])
def test_a_kill_leaves_no_half_and_the_next_run_cleans_up(tmp_path, source, to, point):
  destination = tmp_path / "new"
  script = tmp_path / "killed.py"
  script.write_text(textwrap.dedent(KILLED))
  overwrite = point in ("before", "between")
  if overwrite:
    assert run(source, destination, "--to", "t5x") == 0
    (destination / "old").write_text("x")
  done = subprocess.run([sys.executable, script, to, point, source, destination,
                         "yes" if overwrite else "no"], env=dict(os.environ, JAX_PLATFORMS="cpu"),
                        capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  # Nothing, or what was there before; between two renames it lies beside, for the next run.
  kept = tmp_path / "new.old" if point == "between" else destination
  assert (kept / "old").exists() if overwrite else not destination.exists()
  assert run(source, destination, "--to", to, *(["--overwrite"] if overwrite else [])) == 0
  assert same(destination)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.py", "new", "source"]


@pytest.mark.parametrize("name", ["p.npz", "p.npy", "encoder.prompt.prompt.prompt", "adapter"])
def test_prompts(tmp_path, capsys, name):
  table = save_prompt(tmp_path / "prompt.npy")
  assert run(tmp_path / "prompt.npy", tmp_path / name, "--dry-run") == 0
  assert "would be written" in capsys.readouterr().out and not (tmp_path / name).exists()
  assert run(tmp_path / "prompt.npy", tmp_path / name) == 0
  assert "prompt:  float32 [3, 16]" in capsys.readouterr().out
  assert run(tmp_path / name, tmp_path / "back.npy") == 0
  assert np.load(tmp_path / "back.npy").tobytes() == table.tobytes()


def test_a_prompt_brings_what_its_run_recorded(tmp_path, capsys):
  run_folder = tmp_path / "run"
  run_folder.mkdir()
  save_prompt(run_folder / "prompt.npy")
  (run_folder / "settings.json").write_text("{}")
  (run_folder / "summary.json").write_text('{"task": "sst2", "backbone": {"fingerprint": "abc"}}')
  assert run(run_folder / "prompt.npy", tmp_path / "p.npz") == 0
  metadata = prompt_files.read(str(tmp_path / "p.npz")).metadata
  assert (metadata["task"], metadata["backbone"], metadata["prompt_length"]) == ("sst2", "abc", 3)
  capsys.readouterr()


def test_a_prompt_that_is_not_in_front_stays_where_it_says_so(tmp_path, capsys):
  def save(template):
    save_prompt(tmp_path / "prompt.npy")
    (tmp_path / "settings.json").write_text(json.dumps({"model": {"template": template}}))

  save("{inputs}{prompt}")
  for name in ("adapter", "encoder.prompt.prompt.prompt"):
    for flags in ([], ["--dry-run"]):
      assert run(tmp_path / "prompt.npy", tmp_path / name, *flags) == 2
      assert "has prompts in front of the input alone" in capsys.readouterr().err
      assert not (tmp_path / name).exists()
  assert run(tmp_path / "prompt.npy", tmp_path / "p.npz") == 0
  assert prompt_files.read(str(tmp_path / "p.npz")).metadata["template"] == "{inputs}{prompt}"
  capsys.readouterr()
  assert run(tmp_path / "p.npz", tmp_path / "adapter") == 2
  assert run(tmp_path / "p.npz", tmp_path / "array.npy") == 0
  assert "PROMPT_TEMPLATE = '{inputs}{prompt}'" in capsys.readouterr().out
  save("{prompt:1}{prompt:2}{inputs}")
  assert run(tmp_path / "prompt.npy", tmp_path / "adapter") == 0
  capsys.readouterr()


@pytest.mark.parametrize("destination", ["x.npz", "x.npy", "folder"])
def test_the_prompt_of_a_method_is_refused_by_name(tmp_path, capsys, destination):
  file = tmp_path / "mine.safetensors"
  method_files.write(file, {"a": np.zeros((2, 3), np.float32)}, {"method": "Lora"})
  assert run(file, tmp_path / destination) == 2
  error = capsys.readouterr().err
  assert "more than a table of vectors, and no other format holds it" in error
  assert "mine.safetensors, of Lora" in error and "prompt-tuning merge" in error
  assert run(tmp_path / "prompt.safetensors", tmp_path / destination) == 2
  assert "no other format holds it" in capsys.readouterr().err


def test_a_reference_to_the_hub_is_a_backbone_unless_a_prompt_is_asked_for():
  def of(**changes):
    return ConvertConfig(source="hf://a/b", **({"destination": "x"} | changes))

  assert not convert.is_prompt(of()) and not convert.is_prompt(of(to="t5x"))
  assert convert.is_prompt(of(to="peft")) and convert.is_prompt(of(destination="x.npz"))


@pytest.mark.parametrize("flags, message", [
  (["--dtype", "bfloat16"], "A prompt is stored whole"), (["--drop", "x"], "A prompt is stored"),
  (["--to", "t5x_orbax"], "no such format of prompts")])
def test_flags_that_are_not_a_prompts(tmp_path, capsys, flags, message):
  save_prompt(tmp_path / "prompt.npy")
  assert run(tmp_path / "prompt.npy", tmp_path / "new.npz", *flags) == 2
  assert message in capsys.readouterr().err
