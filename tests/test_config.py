import argparse
import sys

import pytest

from prompt_tuning import config, gin_files
from prompt_tuning.errors import UserError

TOY = """
import dataclasses
from typing import Any
from flax import linen as nn
from prompt_tuning.errors import UserError

@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  size: int
  name: str = "toy"

@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  model: Model
  folder: str
  batch_size: int = 1
  lengths: Any = None
  rates: tuple = (0.1, 0.2)
  def __post_init__(self):
    if self.batch_size < 1:
      raise UserError("batch_size", found=self.batch_size, wanted="1 or more", fix="raise it")

@dataclasses.dataclass(frozen=True)
class Plain:
  a: int = 3

class Prompt(nn.Module):
  length: int = 5
  init: Any = nn.initializers.zeros

def double(x):
  return 2 * x
"""
HEAD = "from __gin__ import dynamic_registration\nimport toy_config as toy\n"
SHIPPED = {
  "models/tiny.gin": HEAD + "toy.Model.size = 8\nVOCABULARY = 'shipped'\n",
  "models/big.gin": HEAD + "toy.Model.size = 64\n",
  "prompts/soft.gin": HEAD + "PROMPT_LENGTH = 5\ntoy.Prompt.length = %PROMPT_LENGTH\n",
  "inits/class_labels.gin": HEAD + "CLASS_LABELS = %gin.REQUIRED\n"
                                   "toy.Train.rates = %CLASS_LABELS\n",
  "runs/run.gin": HEAD + "BATCH_SIZE = 2\nMODEL_DIR = %gin.REQUIRED\ntoy.Train:\n"
                         "  model = @toy.Model()\n  batch_size = %BATCH_SIZE\n"
                         "  folder = %MODEL_DIR\n",
  "papers/table.gin": "include 'runs/run.gin'\ninclude 'models/tiny.gin'\nBATCH_SIZE = 32\n",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
  (tmp_path / "toy_config.py").write_text(TOY)
  monkeypatch.syspath_prepend(tmp_path)
  shipped = tmp_path / "shipped"
  for name, text in SHIPPED.items():
    (shipped / name).parent.mkdir(parents=True, exist_ok=True)
    (shipped / name).write_text(text)
  monkeypatch.setattr(gin_files, "shipped_folder", lambda: shipped)
  (tmp_path / "cwd").mkdir()
  monkeypatch.chdir(tmp_path / "cwd")
  import toy_config
  yield toy_config
  del sys.modules["toy_config"]


@pytest.fixture
def user(tmp_path):
  def write(text, name="mine.gin"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)
  return write


RUN = ["models/tiny.gin", "runs/run.gin"]
DIRECTORY = "MODEL_DIR = '/a'"


def message(files, bindings=(), build=None):
  with pytest.raises(UserError) as caught:
    config.load(files, bindings)
    if build is not None:
      config.build(build)
  assert type(caught.value) is UserError
  return str(caught.value)


def test_builds_nested_dataclasses(toy):
  config.load(RUN, [DIRECTORY])
  built = config.build(toy.Train)
  assert built == toy.Train(model=toy.Model(size=8), folder="/a", batch_size=2)
  assert type(built) is toy.Train and type(built.model) is toy.Model


def test_builds_a_flax_module(toy):
  config.load(["prompts/soft.gin"], ["PROMPT_LENGTH = 7"])
  built = config.build(toy.Prompt)
  assert type(built) is toy.Prompt and built.length == 7 and built.name is None


def test_a_class_that_no_file_mentions_has_its_defaults(toy):
  config.load([], [])
  assert config.build(toy.Plain) == toy.Plain()
  assert "toy_config.Plain.a = 3" in config.operative()


def test_a_class_defined_in_a_function_builds():
  import dataclasses

  @dataclasses.dataclass(frozen=True)
  class Local:
    a: int = 4

  config.load([], [])
  assert config.build(Local) == Local(4)


def test_macro_and_field_overrides_work_alike(toy):
  config.load(RUN, [DIRECTORY, "BATCH_SIZE = 4"])
  assert config.build(toy.Train).batch_size == 4
  config.load(RUN, [DIRECTORY, "toy.Train.batch_size = 5"])
  assert config.build(toy.Train).batch_size == 5


def test_a_reference_to_a_function_is_called_with_its_settings(toy, user):
  mine = user(HEAD + "toy.Plain.a = @toy.double()\ntoy.double.x = 21\n")
  config.load([mine], [])
  assert config.build(toy.Plain).a == 42


def test_order_of_the_files_does_not_matter(toy, user):
  files = [*RUN, "prompts/soft.gin", user("BATCH_SIZE = 9\n")]
  config.load(files, [DIRECTORY])
  first = (config.build(toy.Train), config.operative())
  config.load(files[::-1], [DIRECTORY])
  assert (config.build(toy.Train), config.operative()) == first
  assert first[0].batch_size == 9


def test_ranks_in_order(toy, user):
  shipped = gin_files.shipped_folder()
  for rank, folder in enumerate(gin_files.RANKS[:gin_files.USER_RANK]):
    (shipped / folder).mkdir(exist_ok=True)
    (shipped / folder / "rank.gin").write_text(HEAD + f"toy.Plain.a = {rank}\n")
  files = [f"{folder}/rank.gin" for folder in gin_files.RANKS[:gin_files.USER_RANK]]
  for number in range(1, len(files) + 1):
    config.load(files[:number][::-1], [])
    assert config.build(toy.Plain).a == number - 1
  config.load([user(HEAD + "toy.Plain.a = 50\n"), *files], [])
  assert config.build(toy.Plain).a == 50
  config.load([user(HEAD + "toy.Plain.a = 50\n"), *files], ["toy.Plain.a = 60"])
  assert config.build(toy.Plain).a == 60


def test_files_of_one_rank_that_disagree(toy, user):
  text = message(["models/tiny.gin", "models/big.gin"])
  for part in ("toy.Model.size = 8 (models/tiny.gin line 3)", "= 64 (models/big.gin line 3)"):
    assert part in text
  one, two = user("BATCH_SIZE = 1\n", "one.gin"), user("BATCH_SIZE = 2\n", "two.gin")
  text = message([one, two, *RUN])
  assert one in text and two in text and "BATCH_SIZE = 1" in text and "BATCH_SIZE = 2" in text
  assert "line 1" in message([user("BATCH_SIZE = 1\nBATCH_SIZE = 2\n"), *RUN])


def test_files_of_one_rank_that_agree(toy, user):
  files = [user("BATCH_SIZE = 3\n", "one.gin"), user("BATCH_SIZE = 3\n", "two.gin"), *RUN]
  config.load(files, [DIRECTORY])
  assert config.build(toy.Train).batch_size == 3


def test_one_field_under_two_names_is_one_setting(toy, user):
  one = user("import toy_config\ntoy_config.Plain.a = 1\n", "one.gin")
  two = user(HEAD + "toy.Plain.a = 2\n", "two.gin")
  assert "set twice" in message([one, two])


def test_the_last_override_wins(toy):
  config.load(RUN, [DIRECTORY, "BATCH_SIZE = 4", "BATCH_SIZE = 6"])
  assert config.build(toy.Train).batch_size == 6


def test_includes_keep_their_rank_and_lose_to_the_includer(toy, user):
  config.load(["papers/table.gin"], [DIRECTORY])
  assert config.build(toy.Train).batch_size == 32
  config.load(["papers/table.gin", "runs/run.gin"], [DIRECTORY])
  assert config.build(toy.Train).batch_size == 32
  user("BATCH_SIZE = 5\n", "inner.gin")
  outer = user("BATCH_SIZE = 6\ninclude 'inner.gin'\n", "outer.gin")
  config.load([outer, *RUN], [DIRECTORY])
  assert config.build(toy.Train).batch_size == 6
  inner = str(gin_files.shipped_folder().parent / "inner.gin")
  config.load([inner, outer, *RUN], [DIRECTORY])
  assert config.build(toy.Train).batch_size == 6


def test_bad_includes(toy, user):
  (gin_files.shipped_folder() / "models/bad.gin").write_text("include 'runs/run.gin'\n")
  assert "models/bad.gin line 1 includes a file that outranks it" in message(["models/bad.gin"])
  user("include 'b.gin'\n", "b.gin")
  assert "include each other" in message([user("include 'b.gin'\n", "a.gin")])


def test_a_missing_file_names_its_neighbours(toy):
  text = message(["prompts/sofd.gin"])
  assert "no gin file 'prompts/sofd.gin'" in text and "did you mean 'prompts/soft.gin'?" in text


def test_an_ambiguous_file_name_is_refused(toy, tmp_path):
  (tmp_path / "cwd/models").mkdir()
  (tmp_path / "cwd/models/tiny.gin").write_text(HEAD + "toy.Model.size = 1\n")
  assert "means more than one file" in message(["models/tiny.gin"])
  config.load(["./models/tiny.gin"], [])
  assert config.build(toy.Model).size == 1


def test_search_paths(toy, user, tmp_path):
  user(HEAD + "toy.Plain.a = 8\n", "far.gin")
  config.load(["far.gin"], [], [str(tmp_path)])
  assert config.build(toy.Plain).a == 8


def test_misspelt_macros(toy, user):
  text = message(RUN, ["BATCH_SIEZ = 4"])
  assert "Nothing reads the macro BATCH_SIEZ" in text and "did you mean 'BATCH_SIZE'?" in text
  mine = user("\nBATCH_SIEZ = 4\n")
  assert f"{mine} line 2" in message([*RUN, mine])


def test_names_of_t5x(toy):
  assert "EvalSettings.max_examples" in message(RUN, ["EVAL_STEPS = 4"])
  assert "LAYOUT" in message(RUN, ["partitioning.PjitPartitioner.num_partitions = 4"])


def test_a_text_in_braces_wants_quotes():
  with pytest.raises(UserError) as error:
    config.split_gin_flags(["--gin.INPUTS={sentence}"])
  assert "fix:    --gin.INPUTS=\"'{sentence}'\"" in str(error.value)
  assert config.split_gin_flags(["--gin.INPUTS='{sentence}'"])[0] == ["INPUTS = '{sentence}'"]


def test_a_macro_of_a_shipped_file_that_is_not_loaded(toy):
  assert "add --gin_file=inits/class_labels.gin" in message(RUN, ["CLASS_LABELS = ['a']"])


def test_a_macro_of_another_command(toy):
  (gin_files.shipped_folder() / "commands").mkdir()
  (gin_files.shipped_folder() / "commands/eval.gin").write_text("BEAMS = 1\nSIZE = %BEAMS\n")
  text = message(RUN, ["BEAMS = 4"])
  assert "leave BEAMS out: this command does not use it (used by: eval)" in text


def test_an_override_hides_the_macro_that_it_replaces(toy):
  assert "macro BATCH_SIZE" in message(RUN, ["toy.Train.batch_size = 3", "BATCH_SIZE = 4"])


def test_shipped_files_may_set_what_nothing_reads(toy):
  config.load(["models/tiny.gin"], [])
  assert config.build(toy.Model).size == 8


def test_misspelt_scope(toy, user):
  scoped = HEAD + "toy.Train.model = @train/toy.Model()\ntrain/toy.Model.size = 77\n"
  config.load([*RUN, user(scoped)], [DIRECTORY])
  assert config.build(toy.Train).model.size == 77
  text = message([*RUN, user(scoped)], ["trian/toy.Model.size = 78"])
  assert "scope 'trian'" in text and "did you mean 'train'?" in text


@pytest.mark.parametrize("binding, parts", [
  ("toi.Train.batch_size = 1", ("Unknown module 'toi'", "'toy.Train'")),
  ("toy.Trian.batch_size = 1", ("toy has no 'Trian'", "did you mean 'Train'")),
  ("toy.Train.batch_siz = 1", ("toy.Train has no field 'batch_siz'", "'batch_size'")),
  ("Train.batch_size = 1", ("Unknown module 'Train'", "did you mean 'toy.Train'")),
  ("toy.batch_size = 1", ("toy is not a class or function", "'toy.")),
  ("toy.Train.model = @toy.Modle()", ("toy has no 'Modle'", "did you mean 'Model'")),
])
def test_misspelt_names(toy, binding, parts):
  text = message(RUN, [binding])
  assert all(part in text for part in parts), text
  assert "the command line" in text


def test_bad_imports(toy, user):
  text = message([user("from prompt_tuning import lossez\n")])
  assert "line 1 cannot import prompt_tuning.lossez" in text
  assert "did you mean 'prompt_tuning.losses'" in text
  text = message([user(HEAD, "a.gin"), user("import json as toy\n", "b.gin")])
  assert "'toy' is imported as two different modules" in text and "json" in text
  assert "Unknown module 'toy'" in message(["models/tiny.gin", user("toy.Model.size = 3\n")])


@pytest.mark.parametrize("text, part", [
  ("A = [1,\n", "line"), ("A = 'open\n", "line 1"), ("A ~ 3\n", "line 1"), ("A = 1 2\n", "line 1")])
def test_syntax_errors_name_the_line(toy, user, text, part):
  found = message([user(text)])
  assert "mine.gin" in found and part in found and "is not gin" in found


def test_undecodable_file(toy, tmp_path):
  (tmp_path / "bytes.gin").write_bytes(b"A = '\xff'\n")
  assert "bytes.gin is not a gin file" in message([str(tmp_path / "bytes.gin")])


def test_everything_missing_is_named_with_its_flag(toy):
  text = message(["runs/run.gin"], build=toy.Train)
  assert "--gin.MODEL_DIR=..." in text
  assert "--gin.toy.Model.size=..." in text and "--gin_file=models/tiny.gin" in text
  text = message([*RUN, "inits/class_labels.gin"], [DIRECTORY], build=toy.Train)
  assert "no value for CLASS_LABELS" in text and "--gin.CLASS_LABELS=..." in text


def test_what_is_not_needed_may_be_missing(toy):
  config.load(RUN, [])
  assert config.build(toy.Model).size == 8


def test_a_reference_to_an_undefined_macro(toy):
  text = message(RUN, [DIRECTORY, "toy.Train.batch_size = %BATCH_SIEZ"], build=toy.Train)
  assert "no value for BATCH_SIEZ" in text and "did you mean 'BATCH_SIZE'?" in text


def test_errors_of_the_class_come_out_whole(toy):
  text = message(RUN, [DIRECTORY, "BATCH_SIZE = 0"], build=toy.Train)
  assert text == "batch_size\n  found:  0\n  wanted: 1 or more\n  fix:    raise it"


def test_operative_text_reproduces_the_objects(toy, user):
  lengths = {"inputs": 64, "targets": 8, "text": "it's " * 40}
  mine = user(HEAD + f"toy.Train.lengths = {lengths!r}\nLABELS = ['a', \"b'\"]\n"
              "toy.Train.rates = %LABELS\ntoy.Train.model = %MODEL\nMODEL = @big/toy.Model()\n"
              "big/toy.Model.size = 99\n")
  config.load([*RUN, "prompts/soft.gin", mine], [DIRECTORY, "PROMPT_LENGTH = 6"])
  built = [config.build(cls) for cls in (toy.Train, toy.Prompt, toy.Plain)]
  assert built[0].lengths == lengths and built[0].model.size == 99
  saved = config.operative()
  config.load([user(saved, "config.gin")], [])
  assert [config.build(cls) for cls in (toy.Train, toy.Prompt, toy.Plain)] == built
  assert config.operative() == saved
  config.load([user(saved, "config.gin")], ["MODEL_DIR = '/b'"])
  assert config.build(toy.Train).folder == "/b"


def test_load_replaces_and_clear_forgets(toy):
  config.load(RUN, [DIRECTORY])
  config.load(["models/big.gin"], [])
  assert config.build(toy.Model).size == 64
  config.clear()
  with pytest.raises(UserError, match="Model is not completely configured"):
    config.build(toy.Model)


@pytest.mark.parametrize("text, value", [
  ("4", 4), ("'/a b'", "/a b"), ("/a/b", "/a/b"), ("a-b:c", "a-b:c"), ("1e-3", 1e-3), ("-2", -2),
  ("True", True), ("None", None), ('{"inputs": 64}', {"inputs": 64}), ("[1, 2]", [1, 2]),
  ("it's", "it's"), ("~/x = y", "~/x = y"), ("('a',)", ("a",)),
])
def test_flag_values(toy, text, value):
  bindings, rest = config.split_gin_flags(["train", f"--gin.toy.Plain.a={text}", "--json"])
  assert rest == ["train", "--json"]
  config.load(["models/tiny.gin"], bindings)
  assert config.build(toy.Plain).a == value


@pytest.mark.parametrize("flag, part", [
  ("--gin.A", "--gin.A=..."), ("--gin.A=", "empty string"), ("--gin.A={'x': 1", "is not gin"),
  ("--gin.A=true", "--gin.A=True"), ("--gin.A=2024-01-01/run", "strings need quotes"),
  ("--gin.A B=1", "--gin.A B"), ("--gin.A=1\nB = 2", "not one binding"),
])
def test_bad_flags(flag, part):
  with pytest.raises(UserError) as caught:
    config.split_gin_flags([flag])
  assert part in str(caught.value)


def test_add_flags():
  parser = argparse.ArgumentParser()
  config.add_flags(parser)
  parsed = parser.parse_args(["--gin_file=a", "--gin_file=b", "--gin_search_paths=x,y", "--debug"])
  assert (parsed.gin_file, parsed.gin_search_paths, parsed.debug) == (["a", "b"], ["x", "y"], True)
  assert vars(parser.parse_args([])) == {"gin_file": [], "gin_search_paths": [], "debug": False}
