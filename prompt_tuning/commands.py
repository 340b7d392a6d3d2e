"""The subcommands: of each its flags, and a body that imports what it needs when it runs."""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from prompt_tuning import cluster, config, gin_files, hosts
from prompt_tuning.command_line import Arguments, Command
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import command as sweep_command
from prompt_tuning.native_logs import quiet_imports


def _train(arguments: Arguments) -> int:
  hosts.join(cluster.Flags.of(arguments.options))
  arguments.load("train")
  with quiet_imports():
    from prompt_tuning import run_report
    from prompt_tuning.train import TrainConfig, train
  settings = config.build(TrainConfig)
  outcome = train(settings, config.operative(), on_start=hosts.on_first(run_report.started))
  hosts.on_first(run_report.ended)(settings, outcome)
  return hosts.STOPPED if outcome.interrupted else 0


def _eval(arguments: Arguments) -> int:
  hosts.join(cluster.Flags.of(arguments.options))
  if arguments.prompts():
    arguments.load("eval_prompts")
    with quiet_imports():
      from prompt_tuning import prompts_report
      from prompt_tuning.mixed_eval import MixedEvalConfig, evaluate_mixed
    hosts.on_first(prompts_report.show)(evaluate_mixed(config.build(MixedEvalConfig)))
    return 0
  arguments.load("eval")
  with quiet_imports():
    from prompt_tuning import run_report
    from prompt_tuning.eval_mixture import evaluate
    from prompt_tuning.eval_run import EvalConfig
  hosts.on_first(run_report.evaluated)(evaluate(config.build(EvalConfig)))
  return 0


def _infer(arguments: Arguments) -> int:
  arguments.load("infer")
  from prompt_tuning.infer import STANDARD, InferConfig, infer
  settings = config.build(InferConfig)
  counts = infer(settings)
  place = "" if settings.output_file == STANDARD else f" in {settings.output_file}"
  cut = f"; {counts.long_inputs} inputs were too long and lost their end" if (
    counts.long_inputs) else ""
  print(f"{counts.predictions} predictions{place}{cut}", file=sys.stderr)
  return 0


def _attribute(arguments: Arguments) -> int:
  arguments.load("attribute")
  with quiet_imports():
    from prompt_tuning.attribute_model import AttributeConfig, fit
  settings = config.build(AttributeConfig)
  model, accuracy = fit(settings)
  print(f"written: {settings.output_file}, {', '.join(model.labels)}; accuracy on whole texts of "
        f"the validation split: {accuracy:.3f}")
  return 0


def _info(arguments: Arguments) -> int:
  if arguments.options.methods:
    return _info_of_methods(arguments)
  arguments.load("info")
  from prompt_tuning import info
  info.show(config.build(info.InfoConfig), as_json=arguments.options.json,
            with_paths=arguments.options.paths)
  return 0


def _info_of_methods(arguments: Arguments) -> int:
  from prompt_tuning import info
  given = list(arguments.options.gin_file)
  found: dict[str, Any] = {}
  unread = {binding.split(" = ")[0] for binding in arguments.bindings}
  for method in (name for name in gin_files.shipped_names() if name.startswith("prompts/")):
    is_plain = method == "prompts/none.gin"
    options = argparse.Namespace(**vars(arguments.options) | {"gin_file": [*given, method]})
    # A macro of one method means nothing to another.
    macros = config.macros_of(["commands/info.gin", *options.gin_file], options.gin_search_paths)
    bindings = [b for b in arguments.bindings if b.split(" = ")[0] in macros]
    unread -= macros
    try:
      Arguments(options, bindings + ["TRAINABLE = ('.*',)"] * is_plain).load("info")
      sizes = info.measure(config.build(info.InfoConfig))
      found["model tuning" if is_plain else pathlib.Path(method).stem] = sizes
    except UserError as error:
      found[pathlib.Path(method).stem] = f"{error.what}: {error.found}"
  if unread:
    raise UserError("No method reads these macros", found=", ".join(sorted(unread)),
                    wanted="macros of models/ or prompts/", fix="leave them out")
  info.show_methods(found, as_json=arguments.options.json)
  return 0


def _merge(arguments: Arguments) -> int:
  arguments.load("merge")
  with quiet_imports():
    from prompt_tuning.merge import MergeConfig, merge
  settings = config.build(MergeConfig)
  changed = merge(settings)
  print(f"written: {settings.output_dir}, with {changed:,} of the backbone's parameters changed; "
        "it takes no prompt (prompts/none.gin)")
  return 0


def _convert(arguments: Arguments) -> int:
  options = arguments.options
  backbone = None
  if options.gin_file:
    arguments.load("convert")
  with quiet_imports():
    from prompt_tuning import convert, convert_report
    from prompt_tuning.run_config import ModelConfig
  if options.gin_file:
    backbone = config.build(ModelConfig).backbone
  settings = convert.ConvertConfig(
    source=options.source, destination=options.destination, to=options.to, dtype=options.dtype,
    drop=tuple(options.drop), layout=options.layout, backbone=backbone,
    vocabulary=options.vocabulary, overwrite=options.overwrite, keep_state=options.keep_state)
  if convert.is_prompt(settings):
    prompt = convert.convert_prompt(settings, dry_run=options.dry_run)
    convert_report.show_prompt(prompt, dry_run=options.dry_run)
    return 0
  plan = convert.plan(settings)
  convert_report.show(plan)
  if options.dry_run:
    convert.check(plan)
    return 0
  convert.run(plan)
  print(f"written: {options.destination}, read back and compared")
  return 0


def _tasks(arguments: Arguments) -> int:
  from prompt_tuning import task_listing
  if arguments.options.name is None:
    if arguments.bindings or arguments.options.gin_file:
      raise UserError("settings vary one task", found=" ".join(arguments.bindings) or "--gin_file",
                      wanted="prompt-tuning tasks NAME --gin.TASKLESS=True, for one",
                      fix="name a task, or leave the settings out")
    task_listing.list_tasks()
  else:
    arguments.load("tasks")
    task_listing.show_task(arguments.options.name, arguments.options.examples,
                           arguments.options.vocabulary, config.build(task_listing.Listing))
  return 0


def _inspect(arguments: Arguments) -> int:
  from prompt_tuning.inspection import Looking, inspect
  from prompt_tuning.run_config import ModelConfig
  options = arguments.options
  looking = Looking(words=options.words, clusters=options.clusters, output_dir=options.output_dir,
                    labels=tuple(options.labels) if options.labels else None)

  def config_of(folder: pathlib.Path) -> ModelConfig:
    config.load(["commands/model.gin", str((folder / "config.gin").absolute())], [],
                options.gin_search_paths)
    return config.build(ModelConfig)

  runs = [path for path in map(pathlib.Path, options.prompt) if (path / "config.gin").is_file()]
  if runs and not options.gin_file:
    # A run says which backbone its prompt is of.
    options.gin_file = [str((runs[0] / "config.gin").absolute())]
  arguments.load("model")
  inspect(config.build(ModelConfig), options.prompt, looking, config_of)
  return 0


def _transfer(arguments: Arguments) -> int:
  from prompt_tuning.transfer import transfer
  options = arguments.options
  transfer(options.source, options.target, measure=options.measure, top=options.top,
           average_to=options.average, output_dir=options.output_dir)
  return 0


def _t5x(arguments: Arguments) -> int:
  from prompt_tuning.t5x_bridge import command
  return command.run(arguments.options.job, arguments.options.rest)


def _lazily(module: str, function: str) -> Callable[[Arguments], int]:
  """A command whose body is beside its feature: `prompt_tuning.<module>.<function>(arguments)`."""
  return lambda arguments: getattr(importlib.import_module(f"prompt_tuning.{module}"), function)(
    arguments)


def _demo(arguments: Arguments) -> int:
  with quiet_imports():
    from prompt_tuning import demo
  return demo.run(arguments.options.model_dir)


def _prompt_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--prompt", dest="prompt_pairs", action="append", default=[],
                      metavar="NAME=SOURCE",
                      help="a task and its prompt: a file, a MODEL_DIR, MODEL_DIR/members, or "
                      "none; repeatable: tasks that share batches, a name twice is an ensemble")


def _eval_flags(parser: argparse.ArgumentParser) -> None:
  cluster.add_flags(parser)
  _prompt_flags(parser)


def _info_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
  parser.add_argument("--paths", action="store_true", help="every parameter's path and shape")
  parser.add_argument("--methods", action="store_true",
                      help="what every method of prompts/ would train and serve on this model")


def _plan(arguments: Arguments) -> int:
  from prompt_tuning.plan import command
  command.prepare()
  arguments.load("plan")
  return command.run(arguments.options)


def _plan_flags(parser: argparse.ArgumentParser) -> None:
  from prompt_tuning.plan import command
  command.add_flags(parser)


def _convert_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", metavar="SRC", help="a checkpoint or a prompt, in any format")
  parser.add_argument("destination", metavar="DST", help="where the new one goes")
  parser.add_argument("--to", metavar="FORMAT", help="ours, t5x, t5x_orbax or hf; of prompts npz, "
                      "npy, t5x or peft (the destination's name decides)")
  parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16")
  parser.add_argument("--drop", action="append", default=[], metavar="PATTERN",
                      help="leave out leaves that the model does not have; repeatable")
  parser.add_argument("--layout", metavar="NAME", help="stacked or unstacked, of T5X's formats")
  parser.add_argument("--vocabulary", metavar="NAME", help="recorded with the checkpoint: bytes, "
                      "or the path of its SentencePiece model")
  parser.add_argument("--overwrite", action="store_true", help="replace the destination")
  parser.add_argument("--keep_state", action="store_true",
                      help="T5X's optimizer state goes along, from t5x or t5x_orbax to either")
  parser.add_argument("--dry-run", "--dry_run", action="store_true",
                      help="only say what would be done; no weight is read")


def _tasks_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("name", nargs="?", help="show this task's examples and lengths")
  parser.add_argument("--examples", type=int, default=3, metavar="N", help="how many (3)")
  parser.add_argument("--vocabulary", default="tiny", metavar="NAME",
                      help="tiny, bytes, or the path of a SentencePiece model")


def _inspect_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="prompts, or MODEL_DIRs of runs")
  parser.add_argument("--words", type=int, default=5, metavar="K", help="words a vector (5)")
  parser.add_argument("--clusters", type=int, default=5, metavar="K",
                      help="clusters of a prompt's vectors (5)")
  parser.add_argument("--labels", nargs="+", metavar="LABEL", help="class labels to look for, in "
                      "the order of CLASS_LABELS (those that a run started from)")
  parser.add_argument("--output_dir", metavar="FOLDER", help="write CSV files and figures there")


def _transfer_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", nargs="+", metavar="SOURCE", help="prompts or MODEL_DIRs of runs")
  parser.add_argument("--target", metavar="PROMPT", help="a prompt or MODEL_DIR of the new task")
  parser.add_argument("--measure", default="mean", metavar="NAME", help="mean (of the vectors, the "
                      "default) or per_token")
  parser.add_argument("--top", type=int, default=1, metavar="K", help="sources to average (1)")
  parser.add_argument("--average", metavar="FILE", help="write their weighted average there (.npz)")
  parser.add_argument("--output_dir", metavar="FOLDER", help="write a CSV file and a heat map")


def _t5x_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("job", metavar="train|eval|infer", help="which of T5X's commands to become")
  parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="FLAGS",
                      help="gin files and settings as of `train`, and T5X's own flags")


def _demo_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--model_dir", metavar="FOLDER", help="where the run is kept")


COMMANDS = {
  "train": Command("pre-train, LM-adapt, model-tune or prompt-tune, by the gin files", _train,
                   cluster.add_flags),
  "eval": Command("metrics of a trained prompt or model on a task", _eval, _eval_flags),
  "infer": Command("predictions for a task, or for lines of a file", _infer, _prompt_flags),
  "attribute": Command("fit an attribute model for controlled generation", _attribute),
  "info": Command("parameters, trained share and memory, without weights", _info, _info_flags),
  "plan": Command("what a run needs on a TPU or GPU machine that need not exist here", _plan,
                  _plan_flags),
  "convert": Command("checkpoints and prompts from one format into another", _convert,
                     _convert_flags),
  "merge": Command("a run's LoRA or IA3 worked into the weights: a backbone alone", _merge),
  "tasks": Command("list the tasks, or show examples of one", _tasks, _tasks_flags),
  "inspect": Command("words near a prompt, its clusters and labels, how far prompts are apart",
                     _inspect, _inspect_flags),
  "transfer": Command("which trained prompt to start a new task from", _transfer, _transfer_flags,
                      False),
  "t5x": Command("our prompts inside T5X: becomes t5x.train, t5x.eval or t5x.infer", _t5x,
                 _t5x_flags, False),
  "design": Command("hard prompts: templates, words for the classes, examples in the context",
                    _lazily("discrete.commands", "design")),
  "autoprompt": Command("search for a discrete prompt by the model's gradient",
                        _lazily("discrete.commands", "autoprompt")),
  "recover": Command("vectors that make a frozen model say given sentences",
                     _lazily("recovery_command", "recover")),
  "sweep": Command("a resumable grid of runs, its CSV files and its figures",
                   lambda arguments: sweep_command.run(arguments.options,
                                                       lambda: arguments.load("sweep")),
                   sweep_command.flags),
  "demo": Command("prompt-tune the shipped T5 on real text, and show what it learned", _demo,
                  _demo_flags, False),
}
