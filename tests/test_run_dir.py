"""MODEL_DIR: whose it is, what is written, what a resume forgets."""

import concurrent.futures
import dataclasses
import errno
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from prompt_tuning import disk, run_dir
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompts.combined import Combined
from prompt_tuning.prompts.initializers import ClassLabels, Uniform
from prompt_tuning.prompts.lora import Lora
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_dir import RunDir, describe, environment

CONFIG = T5Config(vocab_size=20, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12,
                  num_encoder_layers=2, num_decoder_layers=3)
SETTINGS = {"seed": 0, "train_steps": 8, "optimizer": {"class": "Adafactor", "learning_rate": 0.3},
            "task": {"name": "toy", "cache_dir": "/a"}, "eval_settings": {"batch_size": 2}}


@pytest.fixture
def run(tmp_path):
  """A claimed folder that holds a number."""
  made = RunDir(str(tmp_path / "run"))
  made.claim(SETTINGS, "corpus")
  made.log(3, "train", {"loss": 2.5})
  yield made
  made.close()


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket/run"])
def test_a_bucket_is_no_folder(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  error = error_of(RunDir, path)
  assert error.what == "MODEL_DIR is an address, not a folder of this machine"
  for write in (lambda: disk.write_text(pathlib.Path(path) / "x", ""),
                lambda: disk.new_folder(pathlib.Path(path)).__enter__()):
    assert "is an address" in error_of(write).what
  assert list(tmp_path.iterdir()) == []


def test_a_windows_drive_or_a_colon_is_no_address(tmp_path):
  for name in ("c:/x", "a b:/x", str(tmp_path / "run:1")):
    disk.check_local(name, "MODEL_DIR")


def test_settings_that_a_kind_of_run_fixes(tmp_path):
  for fixed, allowed in (((), True), (("train_steps",), False)):
    made = RunDir(str(tmp_path / "-".join(("run", *fixed))), fixed)
    made.claim(SETTINGS, "corpus")
    made.log(0, "train", {"loss": 1.0})
    if allowed:
      made.claim(changed(train_steps=9), "corpus")
    else:
      error = error_of(made.claim, changed(train_steps=9), "corpus")
      assert "train_steps was 8, is now 9" in error.found and "train_steps" not in error.wanted
    made.close()


def test_writers_of_one_file_at_once(tmp_path):
  """Each writes it whole, and the last one stays."""
  path = tmp_path / "results.csv"
  texts = [str(i) * 5000 for i in range(4)]

  def write(text):
    for _ in range(50):
      disk.write_text(path, text)
      assert path.read_text() in texts

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(write, texts))
  assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def changed(**changes):
  return SETTINGS | changes


def error_of(function, *args) -> UserError:
  with pytest.raises(UserError) as caught:
    function(*args)
  return caught.value


def full_disk(*args, **kwargs):
  raise OSError(errno.ENOSPC, "No space left on device")


def test_new_and_empty_folders_are_claimed(tmp_path):
  for name in ("new/inside", "empty"):
    if name == "empty":
      (tmp_path / name).mkdir()
    RunDir(str(tmp_path / name)).claim(SETTINGS, "corpus")
    assert json.loads((tmp_path / name / "settings.json").read_text())["seed"] == 0


def test_checking_writes_nothing(tmp_path):
  RunDir(str(tmp_path / "new")).check(SETTINGS)
  assert not (tmp_path / "new").exists()


def test_files_and_other_folders_are_refused(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  error = error_of(RunDir(str(tmp_path)).claim, SETTINGS, "")
  assert error.what == "MODEL_DIR holds something that is not a run"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]
  error = error_of(RunDir(str(tmp_path / "notes.txt")).claim, SETTINGS, "")
  assert error.what == "MODEL_DIR is not a folder"


def test_the_same_run_may_come_back_with_other_steps_periods_and_places(run):
  again = RunDir(str(run.path))
  again.claim(changed(train_steps=99, eval_period=3, task=SETTINGS["task"] | {"cache_dir": "/b"},
                      eval_settings={"batch_size": 64}), "corpus")
  assert json.loads((run.path / "settings.json").read_text())["train_steps"] == 99


@pytest.mark.parametrize("changes, found", [
  ({"seed": 1}, "seed was 0, is now 1"),
  ({"optimizer": SETTINGS["optimizer"] | {"learning_rate": 0.1}},
   "optimizer.learning_rate was 0.3, is now 0.1"),
  ({"task": {"name": "other", "cache_dir": "/a"}}, "task.name was 'toy', is now 'other'")])
def test_another_run_is_refused_by_the_setting_that_differs(run, changes, found):
  error = error_of(RunDir(str(run.path)).claim, changed(**changes), "corpus")
  assert error.what == "MODEL_DIR holds another run"
  assert error.found == f"{run.path}: {found}"
  assert "train_steps" in error.wanted and "task.cache_dir" in error.wanted
  assert "MODEL_DIR" in error.fix


@pytest.mark.parametrize("method", [
  lambda config: SoftPrompt(config, 3),
  lambda config: Combined(config, {"soft": SoftPrompt(config, 3), "lora": Lora(config)})])
def test_another_remat_resumes_whatever_holds_the_backbones_settings(tmp_path, method):
  def settings(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return describe({"model": {"backbone": config, "prompt": method(config)}})

  made = RunDir(str(tmp_path / "run"))
  made.claim(settings(), "corpus")
  made.log(0, "train", {"loss": 1.0})
  made.close()
  RunDir(str(made.path)).claim(settings(remat="full"), "corpus")
  for fixed, changes in ((("model.backbone.remat",), {}), ((), {"remat": "full", "mlp_dim": 13})):
    error = error_of(RunDir(str(made.path), fixed).claim, settings(**changes), "corpus")
    assert error.what == "MODEL_DIR holds another run" and "model.prompt." in error.found


def claim_twice(folder, first, second, fixed=()):
  made = RunDir(str(folder / "run"), fixed)
  made.claim(first, "corpus")
  made.log(0, "train", {"loss": 1.0})
  made.close()
  made.claim(second, "corpus")


def test_more_steps_of_a_schedule_that_ends_at_them(tmp_path):
  first, second = ({"train_steps": steps, "optimizer": {"learning_rate": {"total_steps": steps}}}
                   for steps in (100, 200))
  error = error_of(claim_twice, tmp_path, first, second)
  assert "total_steps was 100, is now 200" in error.found and "train_steps" not in error.wanted
  assert "falls until TRAIN_STEPS" in error.fix


def test_pieces_of_a_batch_may_change_where_there_is_no_dropout(tmp_path):
  one, two = ({"loss": {"num_microbatches": pieces}} for pieces in (1, 2))
  claim_twice(tmp_path / "a", one, two)
  error = error_of(claim_twice, tmp_path / "b", one, two, ("loss.num_microbatches",))
  assert "loss.num_microbatches was 1" in error.found


def test_an_absolute_path_of_the_same_file_is_the_same_setting(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("a.tsv", "b.tsv"):
    (tmp_path / name).write_text("")
  first = {"task": {"source": {"train_file": "a.tsv"}}}
  claim_twice(tmp_path / "same", first, {"task": {"source": {
    "train_file": str(tmp_path / "a.tsv")}}})
  error = error_of(claim_twice, tmp_path / "other", first, {"task": {"source": {
    "train_file": str(tmp_path / "b.tsv")}}})
  assert "train_file was 'a.tsv'" in error.found


def test_teachers_that_have_changed_are_another_run(tmp_path):
  made = RunDir(str(tmp_path / "run"))
  # It was started before their fingerprint was kept.
  made.claim(SETTINGS, "corpus")
  made.log(0, "train", {"loss": 1.0})
  made.close()
  made.claim(changed(teachers="one"), "corpus")
  made.claim(changed(teachers="one"), "corpus")
  error = error_of(made.check, changed(teachers="two"))
  assert error.what == "The teachers of the run in MODEL_DIR have changed"
  assert error.found == f"{made.path}: fingerprint two" and error.wanted == "fingerprint one"


def test_changed_data_are_another_run(run):
  error = error_of(RunDir(str(run.path)).claim, SETTINGS, "other")
  assert error.what == "The data of the run in MODEL_DIR has changed"
  assert "fingerprint other" in error.found and error.wanted == "fingerprint corpus"


def test_a_backbone_that_has_changed_is_an_error(run):
  run.check_backbone("tiny", "new")  # The run has not said yet what it starts from.
  run.write_summary({"backbone": {"from": "tiny", "fingerprint": "old"}})
  run.check_backbone("tiny", "old")
  error = error_of(run.check_backbone, "tiny", "new")
  assert error.what == "The backbone of the run in MODEL_DIR has changed"
  assert error.found == f"{run.path}: 'tiny' has fingerprint new"
  assert error.wanted == "fingerprint old" and "new --gin.MODEL_DIR" in error.fix


def test_a_backbone_may_change_before_the_first_number(tmp_path):
  empty = RunDir(str(tmp_path))
  empty.claim(SETTINGS, "corpus")
  empty.write_summary({"backbone": {"from": "tiny", "fingerprint": "old"}})
  empty.check_backbone("tiny", "new")


def test_a_run_killed_while_it_claimed_its_folder_may_come_back(tmp_path):
  (tmp_path / "settings.0a1b2c3d.partial.json").write_text("{")
  RunDir(str(tmp_path)).claim(SETTINGS, "corpus")
  assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_run_that_stopped_before_its_first_number_protects_nothing(tmp_path):
  RunDir(str(tmp_path)).claim(SETTINGS, "corpus")
  RunDir(str(tmp_path)).claim(changed(seed=1), "other")
  assert json.loads((tmp_path / "settings.json").read_text())["seed"] == 1


def test_metrics_are_kept_to_the_bit(run):
  run.log(4, "validation", {"loss": 0.1 + 0.2, "accuracy": 1 / 3})
  lines = (run.path / "metrics.csv").read_text().splitlines()
  assert lines[0] == "step,split,metric,value"
  assert lines[1:3] == ["3,train,loss,2.5", f"4,validation,loss,{0.1 + 0.2!r}"]
  assert run.metrics()[-1] == {"step": 4, "split": "validation", "metric": "accuracy",
                               "value": 1 / 3}


def test_a_resume_forgets_what_it_will_compute_again(run):
  for step in (4, 8):
    run.log(step, "train", {"loss": 1 / step})
    run.log(step, "validation", {"loss": 1 / step})
  before = (run.path / "metrics.csv").read_text().splitlines()
  run.forget_after(4, evaluated=4)
  assert (run.path / "metrics.csv").read_text().splitlines() == before[:4]
  run.forget_after(4, evaluated=0)  # stopped at step 4 before its evaluation
  assert (run.path / "metrics.csv").read_text().splitlines() == before[:3]
  run.forget_after(-1, evaluated=-1)
  assert run.metrics() == []


def test_half_a_line_is_left_out(run):
  with (run.path / "metrics.csv").open("a") as file:
    file.write("4,train,lo")
  assert [row["step"] for row in run.metrics()] == [3]
  run.forget_after(3, 0)
  run.log(4, "train", {"loss": 1.0})
  assert [row["step"] for row in run.metrics()] == [3, 4]


def test_events_are_read_by_tensorflow(run):
  run.log(4, "validation", {"accuracy": 0.75, "loss": float("nan")})
  run.close()
  (path,) = run.path.glob("events.out.tfevents.*")
  events = [tf.compat.v1.Event.FromString(record.numpy())
            for record in tf.data.TFRecordDataset(str(path))]
  found = [(event.step, value.tag, value.simple_value) for event in events
           for value in event.summary.value]
  assert found == [(3, "train/loss", 2.5), (4, "validation/accuracy", 0.75)]
  assert all(event.wall_time > 1e9 for event in events)


def test_a_resume_keeps_the_events_of_before_and_hides_what_it_will_log_again(run):
  run.log(4, "train", {"loss": 1.0})
  run.log(6, "train", {"loss": 0.5})
  run.close()
  again = RunDir(str(run.path))  # Within the same second: the file's name is another one.
  again.forget_after(4, evaluated=0)
  again.log(4, "validation", {"loss": 2.0})
  again.close()
  events = [tf.compat.v1.Event.FromString(record.numpy())
            for path in sorted(run.path.glob("events.out.tfevents.*"))
            for record in tf.data.TFRecordDataset(str(path))]
  starts = [event.step for event in events if event.HasField("session_log")]
  assert starts == [0, 5]  # TensorBoard drops what came before a start, from its step on.
  assert [event.step for event in events if event.HasField("summary")] == [3, 4, 6, 4]


def test_loss_png_is_a_picture(run):
  for step in (4, 8):
    run.log(step, "train", {"loss": 1 / step})
    run.log(step, "validation", {"loss": 1 / step, "accuracy": step / 8})
  run.plot()
  with Image.open(run.path / "loss.png") as image:
    image.verify()
    assert image.format == "PNG" and 600 < image.width < 3000 and 300 < image.height < 2000
  with Image.open(run.path / "loss.png") as image:
    assert len(np.unique(np.asarray(image.convert("L")))) > 20
  assert not list(run.path.glob("*partial*"))


def test_a_prompt_is_written_whole_and_in_float32(run):
  table = np.arange(6, dtype=np.float64).reshape(2, 3) / 7
  run.write_prompt({"embedding": table}, {})
  read = np.load(run.path / "prompt.npy")
  assert read.dtype == np.float32 and np.array_equal(read, table.astype(np.float32))
  assert not list(run.path.glob("*partial*"))


@pytest.mark.parametrize("write, name", [
  (lambda run: run.write_summary({"new": 1}), "summary.json"),
  (lambda run: run.write_config("new"), "config.gin"),
  (lambda run: run.write_prompt({"embedding": np.zeros((1, 2))}, {}), "prompt.npy"),
  (lambda run: run.write_prompt({"a": np.zeros((1, 2))}, {}), "prompt.safetensors"),
  (lambda run: run.plot(), "loss.png")])
def test_a_full_disk_is_an_error_and_the_old_file_stays(run, monkeypatch, write, name):
  (run.path / name).write_bytes(b"old")
  monkeypatch.setattr(disk.os, "replace", full_disk)
  monkeypatch.setattr("prompt_tuning.plots.draw_curves", full_disk)
  error = error_of(write, run)
  assert error.what == f"No space is left while saving {name}"
  assert str(run.path) in error.found and "run the same command again" in error.fix
  assert (run.path / name).read_bytes() == b"old"


def test_a_full_disk_while_logging(run, monkeypatch):
  monkeypatch.setattr(run_dir.pathlib.Path, "open", full_disk)
  error = error_of(run.log, 4, "train", {"loss": 1.0})
  assert error.what == "No space is left while saving metrics.csv"


def test_a_place_that_takes_no_files(run, tmp_path):
  (tmp_path / "file").write_text("")
  error = error_of(RunDir(str(tmp_path / "file" / "run")).claim, {}, "corpus")
  assert error.what == "MODEL_DIR cannot be written to" and "--gin.MODEL_DIR" in error.fix
  assert str(tmp_path / "file" / "run") in error.found
  (run.path / "summary.json").mkdir()
  error = error_of(run.write_summary, {})
  assert error.what == "The disk does not take summary.json" and str(run.path) in error.found


def test_text_is_replaced_in_one_step(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  disk.write_text(path, "old")
  with monkeypatch.context() as patch:
    patch.setattr(disk.os, "replace", full_disk)
    with pytest.raises(OSError):
      disk.write_text(path, "new")
  assert path.read_text() == "old"
  disk.write_text(path, "new")
  assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_description_tells_settings_apart_and_is_json():
  one = describe({"model": SoftPrompt(CONFIG, 3), "many": (1, None)})
  assert json.loads(json.dumps(one)) == one
  assert one["model"]["class"] == "SoftPrompt" and one["model"]["length"] == 3
  assert one["model"]["initializer"] == {"class": "Uniform", "scale": 0.5}
  assert not {"parent", "name"} & one["model"].keys()
  assert describe(Uniform()) != describe(ClassLabels(("a", "b")))
  assert describe(CONFIG) != describe(dataclasses.replace(CONFIG, mlp_dim=13))


def test_the_environment_names_versions_and_device():
  found = environment(7)
  assert found["seed"] == 7 and found["devices"] == 4 and found["device"].startswith("cpu")
  assert {"jax", "optax", "seqio", "prompt-tuning"} <= found["versions"].keys()
