"""Every file of papers/: the grids' cells build, abstractly, and each file says what it should."""

import ast
import math
import re

import jax
import pytest

from prompt_tuning import config, gin_files
from prompt_tuning.discrete.autoprompt_config import AutoPromptConfig
from prompt_tuning.eval_run import EvalConfig
from prompt_tuning.experiments import runner
from prompt_tuning.experiments.grid import Grid
from prompt_tuning.layouts import layout_of
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import abstract_params, logical_axes
from prompt_tuning.recovery import RecoverConfig
from prompt_tuning.task_setup import varied
from prompt_tuning.tasks import table
from prompt_tuning.tasks.benchmark_averages import BENCHMARKS
from prompt_tuning.tasks.variants import Variant
from prompt_tuning.train_config import TrainConfig

PAPERS = [name for name in gin_files.shipped_names() if name.startswith("papers/")]
TEXTS = {name: (gin_files.shipped_folder() / name).read_text() for name in PAPERS}
GRIDS = [name for name, text in TEXTS.items() if "\nBLOCKS = " in text]
# Files of a run of `train`: what it is evaluated on stands in their comments.
STUDIES = [name for name in PAPERS if name.count("/") == 1 and name not in GRIDS]


def grid_of(name, *bindings):
  given = ["SWEEP_DIR = 'runs/x'", *bindings]
  if "DATA_DIR" in TEXTS[name]:
    given.append("DATA_DIR = 'data'")
  if not name.startswith("papers/small/"):
    given.append("SPIECE = 'bytes'")  # T5's own vocabulary is not shipped.
  config.load(["commands/sweep.gin", name], given)
  return config.build(Grid)


def covering(cells):
  """Cells in which every choice occurs, and every method with every task."""
  seen, kept = set(), []
  for cell in cells:
    choices = cell.choices
    new = {*choices.items(), (choices.get("method"), choices.get("size"))} - seen
    if new:
      seen |= new
      kept.append(cell)
  return kept


def test_every_other_file_is_a_part_of_a_grid():
  """Settings, tasks and parts of grids are named by a grid, or by a file that one names."""
  for name in set(PAPERS) - set(GRIDS):
    named = any(name in text for other, text in TEXTS.items() if other != name)
    # Or they stand for themselves, beside a command.
    assert named or f" --gin_file={name}" in TEXTS[name] or name.count("/") == 1, name


@pytest.mark.parametrize("size", ("tiny", "t5_1_1_xxl"))
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_trains_one_task_and_names_others(name, size):
  config.load(["commands/train.gin", f"models/{size}.gin", "prompts/soft.gin",
               "runs/prompt_tune.gin", name],
              ["MODEL_DIR = 'x'", "VOCABULARY = 'bytes'", "INITIAL_CHECKPOINT_PATH = 'random'"])
  built = config.build(TrainConfig)
  row = varied(built.task, built.task.name, "bytes")
  assert "train" in row.source.splits and "validation" in row.source.splits
  shapes = abstract_params(built.model.module())
  assert shapes["prompt"]["embedding"].shape == (100, built.model.backbone.emb_dim)
  # The command for the other data: a task, or a split of the same one.
  command = TEXTS[name].partition("prompt-tuning eval")[2].replace("\\\n#", "")
  others = re.findall(r"MIXTURE_OR_TASK_NAME=\"'(\w+)'\"", command)
  splits = re.findall(r"'(\w+)'", " ".join(re.findall(r"SPLIT=.*|\(and .*\)", command)))
  assert others or splits
  for other in others:
    assert table.has(other) and other != built.task.name
    labels = re.search(r"TASK_LABELS=\"(.*?)\"", command)
    if row.labels is not None:
      words = Variant(taskless=True, labels=labels and ast.literal_eval(labels[1]))
      assert words.apply(table.spec(other)).labels == row.labels
  assert others or set(splits) <= set(row.source.splits)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_names_its_command_and_what_it_should_reach(name):
  text = TEXTS[name]
  assert f"prompt-tuning sweep --gin_file={name}" in text
  if not name.startswith("papers/small/"):
    assert "# Hardware: " in text and "# Published: " in text


@pytest.mark.parametrize("name", GRIDS)
def test_every_choice_of_a_grid_builds(name):
  grid = grid_of(name)
  cells = grid.cells()
  built = [runner.build(grid, cell) for cell in covering(cells)]
  assert built
  for settings in built:
    if isinstance(settings, RecoverConfig):
      continue
    assert settings.task.source is not None or table.has(settings.task.name)
    assert settings.task.feature_lengths["inputs"] > 0
    if settings.task.source is None:  # else its files may not be here
      runner.check_test_split(grid, settings)
    prompt, backbone = settings.model.prompt, settings.model.backbone
    assert prompt is None or getattr(prompt, "config", backbone) == backbone
    assert isinstance(settings, EvalConfig) or prompt is not None or (
      settings.trainable == (".*",))
  assert all(map(table.has, grid.also_on))
  # One of each grid down to the shapes of its parameters.
  shapes = abstract_params(built[-1].model.module())
  assert all(leaf.size for leaf in jax.tree.leaves(shapes))


def is_large(cell):
  return cell.choices.get("size") in ("xl", "xxl")


LARGE_GRIDS = [name for name in GRIDS if any(map(is_large, grid_of(name).cells()))]


def test_the_grids_with_xl_and_xxl_are_found():
  folders = [name.split("/")[1] for name in LARGE_GRIDS]
  assert (folders.count("lester2021"), folders.count("liu2021")) == (11, 2)


@pytest.mark.parametrize("name", LARGE_GRIDS)
def test_xl_and_xxl_alone_are_split(name):
  for cell in grid_of(name).cells():
    assert is_large(cell) == ("--gin.LAYOUT=fsdp" in cell.flags) == (
      "--gin.REMAT=full" in cell.flags)


# One grid a paper: the others have the same backbones.
@pytest.mark.parametrize("name", ["papers/lester2021/figure1.gin", "papers/liu2021/lama.gin"])
def test_xl_and_xxl_are_split_over_a_host(name):
  assert name in LARGE_GRIDS
  grid = grid_of(name)
  for cell in covering(list(filter(is_large, grid.cells()))):
    settings = runner.build(grid, cell)
    model = settings.model
    assert model.backbone.remat == "full" and layout_of(model.layout).fsdp is None
    rows = settings.batch_size if isinstance(settings, TrainConfig) else None
    # A v5e-8, and one accelerator with memory for all.
    for devices in (8, 1):
      layout_of(model.layout).resolve(devices).check(model.backbone, rows)
    partitioner = Partitioner.make(model.layout)  # four devices
    shapes = {"backbone": model.backbone_shapes()}
    places = partitioner.params(shapes, logical_axes(model.module()))
    whole, here = (sum(math.prod(shape) * leaf.dtype.itemsize for leaf, shape in zip(
      jax.tree.leaves(shapes), sizes, strict=True)) for sizes in (
        [leaf.shape for leaf in jax.tree.leaves(shapes)],
        [place.shard_shape(leaf.shape) for leaf, place in zip(
          jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True)]))
    assert whole / 4 <= here <= 1.01 * whole / 4


def test_a_grid_takes_another_layout():
  name = "papers/lester2021/table1.gin"
  for setting, layout, remat in (("LAYOUT = 'fsdp=4,tensor=2'", "fsdp=4,tensor=2", "full"),
                                 ("REMAT = 'save_projections'", "fsdp", "save_projections"),
                                 ("TRAIN_FLAGS = ['--gin.LAYOUT=tensor']", "tensor", "full")):
    grid = grid_of(name, setting)
    model = runner.build(grid, grid.cells()[0]).model
    assert (model.layout, model.backbone.remat) == (layout, remat)


def test_a_grid_takes_other_checkpoints():
  bindings, _ = config.split_gin_flags(
    ["--gin.LM_ADAPTED=gs://bucket/lm100k_${size}/checkpoint_1", "--gin.T5_1_1=bucket/${size}"])
  for name, cell, path in (
      ("table1", "xxl-prompt_tuning-squad-0", "gs://bucket/lm100k_xxl/checkpoint_1"),
      ("figure3c", "xl-prompt_tuning-cb-span_corruption_sentinel-1", "bucket/xl"),
      ("figure3d", "small-prompt_tuning-rte-0-2", "bucket/small"),
      ("figure3d", "small-prompt_tuning-rte-100k-2", "gs://bucket/lm100k_small/checkpoint_1")):
    grid = grid_of(f"papers/lester2021/{name}.gin", *bindings)
    found = next(each for each in grid.cells() if each.name == cell)
    assert runner.build(grid, found).model.initial_checkpoint_path == path


def test_the_settings_of_lester_2021():
  grid = grid_of("papers/lester2021/figure1.gin")
  cells = {cell.name: cell for cell in grid.cells()}
  assert len(cells) == 5 * 8 * (1 + 2 * 3)
  settings = runner.build(grid, cells["xxl-prompt_tuning-boolq-2"])
  assert (settings.train_steps, settings.batch_size, settings.seed) == (30000, 32, 2)
  optimizer = settings.optimizer
  assert (optimizer.learning_rate, optimizer.decay_rate, optimizer.weight_decay_rate,
          optimizer.step_offset, optimizer.multiply_by_parameter_scale) == (
            0.3, 0.8, 1e-5, 1_100_000, False)
  model = settings.model
  assert (model.prompt.length, model.backbone.emb_dim, model.backbone.dropout_rate) == (
    100, 4096, 0.1)
  assert model.prompt.initializer.labels == ("False", "True")
  assert model.initial_checkpoint_path == "hf://google/t5-xxl-lm-adapt"
  baseline = runner.build(grid, cells["small-model_tuning-rte-0"])
  assert baseline.model.prompt is None and baseline.trainable == (".*",)
  assert baseline.optimizer.learning_rate == 0.001


def test_autoprompt_of_shin_2020_builds():
  # Bytes have no sentinels, and T5's own vocabulary is not shipped.
  config.load(["commands/autoprompt.gin", "papers/shin2020/sst2.gin", "models/tiny.gin"],
              ["MODEL_DIR = 'x'"])
  settings = config.build(AutoPromptConfig)
  assert (settings.candidates, settings.model.prompt.length, settings.sentinel) == (100, 3, True)
  assert settings.task.variant.taskless and table.has(settings.task.name)


def test_steps_are_chosen_by_what_the_benchmark_counts():
  benchmark = {f"super_glue_{name}": parts for name, parts in BENCHMARKS["super_glue"].items()}
  benchmark |= {f"glue_{name}": BENCHMARKS["glue"][name] for name in ("mrpc", "qqp")}
  found = {}
  for path in gin_files.shipped_paths():
    macros = {setting.key: setting.value for setting in config.read(path).settings}
    if path.parent.name == "lester2021" and macros.get("MIXTURE_OR_TASK_NAME") in benchmark:
      labels = table.spec(macros["MIXTURE_OR_TASK_NAME"]).labels
      found[macros["MIXTURE_OR_TASK_NAME"]] = macros.get(
        "BEST_METRICS", ("accuracy",) if labels else ("loss",))
  assert found == {task: tuple(metric for _, metric in parts) for task, parts in benchmark.items()}


def test_ablations_vary_one_thing():
  for name, axis, values in (
      ("figure3a", "length", [1, 5, 20, 100, 150]),
      ("figure3b", "init", ["ClassLabels", "SampledVocabulary", "Uniform"])):
    grid = grid_of(f"papers/lester2021/{name}.gin")
    found = []
    for cell in grid.cells():
      if (cell.choices["size"], cell.choices["task"], cell.choices["seed"]) == ("base", "cb", "0"):
        prompt = runner.build(grid, cell).model.prompt
        found.append(prompt.length if axis == "length" else type(prompt.initializer).__name__)
    assert found == values


def test_the_family_starts_each_stage_from_the_one_before():
  grid = grid_of("papers/small/family.gin")
  for size in ("0m1", "3m0"):
    first, second = (runner.build(grid, cell) for cell in grid.cells()
                     if cell.choices["size"] == size)
    assert second.model.initial_checkpoint_path == first.model_dir
    assert second.model.backbone == first.model.backbone
    assert first.task.source.rates["missing_word"] == 0.5
