"""Every pair of formats that can carry the same content, through the command, to the bit."""

import dataclasses

import numpy as np
import pytest
from sources import CONFIG, TIED, assert_equal, reader

from prompt_tuning.checkpoints import formats, loading, prompt_files
from prompt_tuning.main import main

BACKBONES = ("ours", "t5x", "t5x_scanned", "t5x_orbax", "t5x_orbax_scanned", "hf")
PROMPTS = {"npz": "prompt.npz", "npy": "prompt.npy", "t5x": "encoder.prompt.prompt.prompt",
           "peft": "adapter"}


def convert(source, destination, form: str) -> str:
  to, _, scanned = form.partition("_scanned")
  flags = ["--layout", "stacked"] if form.endswith("_scanned") else (
    ["--layout", "unstacked"] if to.startswith("t5x") else [])
  assert main(["convert", str(source), str(destination), "--to", to, *flags]) == 0
  assert formats.detect(str(destination)).name == to
  return str(destination)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["t5_1_1", "t5_1_0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("first", BACKBONES)
def test_backbones(tmp_path, capsys, config, dtype, first):
  start = reader(config, dtype)
  formats.formats()["ours"].write(str(tmp_path / "start"), start, config=config,
                                  metadata={"vocabulary": ""})
  one = convert(tmp_path / "start", tmp_path / "one", first)
  assert_equal(formats.detect(one).open(one), start)
  for second in BACKBONES:
    two = convert(one, tmp_path / f"two_{second}", second)
    found = formats.detect(two).open(two)
    assert_equal(found, start)
    assert found.config == dataclasses.replace(config, scan_layers=found.config.scan_layers)
    assert loading.check(two, config, None)
  capsys.readouterr()


@pytest.mark.parametrize("second", PROMPTS)
@pytest.mark.parametrize("first", PROMPTS)
def test_prompts(tmp_path, capsys, first, second):
  values = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
  np.save(tmp_path / "start.npy", values)
  one, two = tmp_path / "one" / PROMPTS[first], tmp_path / "two" / PROMPTS[second]
  assert main(["convert", str(tmp_path / "start.npy"), str(one)]) == 0
  assert main(["convert", str(one), str(two)]) == 0
  found = prompt_files.read(str(two))
  assert found.format == second and found.values.tobytes() == values.tobytes()
  capsys.readouterr()


@pytest.mark.parametrize("name", ["sst2", "mrpc", "rte"])
def test_the_released_prompts(tmp_path, capsys, shared_data, name):
  released = shared_data / "t5x/pretrained_prompts/t5_1_1_lm100k_base" / f"{name}.npy"
  where = released
  for form, file in PROMPTS.items():
    assert main(["convert", str(where), str(tmp_path / form / file)]) == 0
    where = tmp_path / form / file
  assert main(["convert", str(where), str(tmp_path / "back.npy")]) == 0
  assert (tmp_path / "back.npy").read_bytes() == released.read_bytes()
  capsys.readouterr()


def test_the_real_t5x_checkpoint_through_every_format(tmp_path, capsys, shared_data):
  where = shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3"
  start = formats.detect(str(where)).open(str(where))
  for form in BACKBONES:
    where = convert(where, tmp_path / form, form)
  assert_equal(formats.detect(where).open(where), start)
  capsys.readouterr()
