"""Grids: what the cells of blocks of axes are, their names, shards and mistakes."""

import itertools

import pytest

from prompt_tuning import config
from prompt_tuning.errors import UserError
from prompt_tuning.experiments.grid import Grid, chosen, command_line

AXES = {
  "size": {"small": ["--gin_file=models/small.gin"], "big": ["--gin_file=models/big.gin"]},
  "method": {"frozen": ["eval", "--gin.METHOD=rank"],
             "prompt": ["--gin.INITIAL_CHECKPOINT_PATH=${where}/${size}", "--gin.A={x}"]},
  "seed": {"0": ["--gin.RANDOM_SEED=0"], "1": ["--gin.RANDOM_SEED=1"]},
}
BLOCKS = [{"size": "all", "method": ["prompt"], "seed": "all"},
          {"size": ["big"], "method": "all", "seed": ["1"]}]


def grid(**changes):
  return Grid(**{"sweep_dir": "runs/x", "axes": AXES, "blocks": BLOCKS,
                 "places": {"where": "here"}} | changes)


def names(cells):
  return [cell.name for cell in cells]


def test_the_grid_is_the_union_of_the_products_each_cell_once():
  expected = [f"{size}-prompt-{seed}" for size, seed in itertools.product(("small", "big"), "01")]
  assert names(grid().cells()) == [*expected, "big-frozen-1"]


def test_an_axis_that_a_block_leaves_out_adds_nothing():
  cells = grid(blocks=[{"size": ["small"]}, *BLOCKS]).cells()
  assert cells[0].name == "small" and cells[0].flags == ("--gin_file=models/small.gin",)
  assert cells[0].choices == {"size": "small"}


def test_flags_commands_and_places():
  cells = {cell.name: cell for cell in grid(
    flags=["--gin.B=${root}"], train_flags=["--gin.C=1"], eval_flags=["--gin.D=1"]).cells()}
  prompt, frozen = cells["small-prompt-1"], cells["big-frozen-1"]
  assert prompt.command == "train" and prompt.flags == (
    "--gin.B=runs/x", "--gin_file=models/small.gin", "--gin.INITIAL_CHECKPOINT_PATH=here/small",
    "--gin.A={x}", "--gin.RANDOM_SEED=1", "--gin.C=1")
  assert frozen.command == "eval" and frozen.flags[-2:] == ("--gin.RANDOM_SEED=1", "--gin.D=1")
  assert command_line(grid(), prompt)[-1] == '--gin.MODEL_DIR="runs/x/small-prompt-1"'
  assert command_line(grid(), frozen)[-2:] == [
    "--gin.SPLIT=test", '--gin.OUTPUT_DIR="runs/x/big-frozen-1"']


def test_a_place_may_name_choices():
  whole = grid(places={"where": "${root}/at", "there": "${size}/$x"})
  flags = {cell.name: cell.flags for cell in whole.cells()}
  assert "--gin.INITIAL_CHECKPOINT_PATH=runs/x/at/small" in flags["small-prompt-0"]
  with pytest.raises(UserError, match="A flag of the grid names something unknown"):
    whole.filled(["--gin.A=${there}"], {"size": "big"})
  assert grid(places={"where": "x", "size": "not this"}).filled(
    ["--gin.A=${size}"], {"size": "big"}) == ("--gin.A=big",)


def test_flags_on_other_tasks_are_filled():
  whole = grid(also_on={"other": ["--gin.A=${size}/${where}"]})
  assert whole.flags_on("other", {"size": "big"}) == ("--gin.A=big/here",)
  assert grid(also_on=["other"]).flags_on("other", {"size": "big"}) == ()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_and_complete(count):
  whole = grid()
  parts = [whole.shard(whole.cells(), index, count) for index in range(count)]
  assert sorted(sum(map(names, parts), [])) == sorted(names(whole.cells()))


def test_stages_stay_together_and_in_order():
  axes = {"size": AXES["size"], "stage": {"first": [], "second": []}}
  whole = grid(axes=axes, blocks=[{"stage": ["first"], "size": "all"},
                                  {"size": "all", "stage": "all"}], stages="stage")
  for index, size in enumerate(("small", "big")):
    assert names(whole.shard(whole.cells(), index, 2)) == [f"{size}-first", f"{size}-second"]


def test_only():
  cells = grid().cells()
  assert names(chosen(cells, ())) == names(cells)
  assert names(chosen(cells, ["small", "frozen"])) == [
    "small-prompt-0", "small-prompt-1", "big-frozen-1"]
  assert names(chosen(cells, ["b*-0"])) == ["big-prompt-0"]


@pytest.mark.parametrize("call, message", [
  (lambda: grid(axes={}), "A grid needs axes and blocks"),
  (lambda: grid(axes={"test": {"a": []}}), "An axis cannot be called that"),
  (lambda: grid(axes={"size": {}}), "Axis 'size' has no choices"),
  (lambda: grid(axes={"size": {"a-b": []}}), "A choice of axis 'size' cannot be called that"),
  (lambda: grid(axes={"size": {"a": ["models/a.gin"]}}), "size: a is not a list of flags"),
  (lambda: grid(axes={"size": {"a": "--gin.A=1"}}), "size: a is not a list of flags"),
  (lambda: grid(flags=["-x"]), "FLAGS is not a list of flags"),
  (lambda: grid(blocks=[{"siz": "all"}]), "did you mean 'size'"),
  (lambda: grid(blocks=[{"size": ["smal"]}]), "did you mean 'small'"),
  (lambda: grid(blocks=[{"size": "small"}]), "write ['small']"),
  (lambda: grid(stages="stag"), "STAGES names an axis that is not there"),
  (lambda: grid(also_on=["other"], test_split=None), "Other tasks are evaluated on no split"),
  (lambda: grid(also_on={"other": ["TASK_LABELS=1"]}), "ALSO_ON: other is not a list of flags"),
  (lambda: grid(places={}).cells(), "${name} of size, method, seed, root"),
  (lambda: grid(axes={"a": {"x": [], "y": []}, "b": {"x": [], "y": []}},
                blocks=[{"a": ["x"]}, {"b": ["x"]}]).cells(), "Two cells are called x"),
  (lambda: grid().shard(grid().cells(), 2, 2), "There is no such shard"),
  (lambda: chosen(grid().cells(), ["smal-"]), "--only matches no run"),
])
def test_mistakes(call, message):
  with pytest.raises(UserError) as caught:
    call()
  assert message in str(caught.value)


def test_a_grid_from_gin(tmp_path):
  (tmp_path / "mine.gin").write_text(
    "A = {'size': {'x': ['--gin.Q=1'], 'y': %Y}}\nY = ['--gin.Q=${there}']\nAXES = %A\n"
    "BLOCKS = [{'size': 'all'}]\nPLACES = {'there': %THERE}\nTHERE = 'z'\n")
  config.load(["commands/sweep.gin", str(tmp_path / "mine.gin")],
              ["SWEEP_DIR = 'd'", "THERE = '7'"])
  assert [cell.flags for cell in config.build(Grid).cells()] == [("--gin.Q=1",), ("--gin.Q=7",)]
