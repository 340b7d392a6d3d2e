"""What the documents tell people to type exists."""

import re
from pathlib import Path

import pytest

from prompt_tuning import config, gin_files
from prompt_tuning.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"),
                    *ROOT.glob("prompt_tuning/pretrained/*/*.md")])


def joined(path):
  """The text, with lines that end in a backslash joined to the next."""
  return path.read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_gin_files_exist(path):
  text = joined(path)
  # What a run writes is there once the document's own command has made the run.
  runs = {f"{folder}/config.gin" for folder in re.findall(r"--gin\.MODEL_DIR=(\S+)", text)}
  for name in set(re.findall(r"--gin_file=(\S+\.gin)", text)) - runs:
    assert gin_files.find(name).is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_subcommands_exist(path):
  named = set(re.findall(r"prompt-tuning ([a-z]+) ", joined(path)))
  assert named <= set(COMMANDS), named - set(COMMANDS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
  for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
    assert (path.parent / target).exists(), target


def test_the_readme_shows_the_two_commands_first():
  block = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1]
  assert "make demo" in block and "make test" in block


def test_the_readme_command_for_own_data_loads(tmp_path):
  command = next(line for line in joined(ROOT / "README.md").splitlines()
                 if line.startswith("prompt-tuning train") and "your_data" in line)
  words = re.findall(r"""(?:[^\s"]|"[^"]*")+""", command)
  flags = [word.replace('"', "") for word in words if word.startswith("--gin.")]
  names = [word.split("=", 1)[1] for word in words if word.startswith("--gin_file=")]
  config.load(["commands/train.gin", *names], config.split_gin_flags(flags)[0])
