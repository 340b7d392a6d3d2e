"""One frozen model for many tasks, against a tuned copy for each: rows a second and bytes.

  python -m benchmarks.serving --gin_file models/tiny.gin
  python -m benchmarks.serving --gin_file models/t5_1_1_small.gin --rows 128

Part one, 16 tasks whose rows come by turns. `mixed`: one model with a bank of 16 prompts, full
batches, each row with the prompt of its task. `copies, waiting`: a tuned model a task without a
prompt; rows wait until a task has a full batch. `copies, at once`: the same, but rows are answered
as they come, so that a task has a sixteenth of every batch. Part two, an ensemble of N prompts:
each input N times in one batch, against N runs of one prompt; an ensemble of N tuned models is the
latter without prompts. Answers are greedy, of `--targets` tokens, none shorter; weights are random
(they change no time), inputs have no padding. Sides are timed by turns, and the fastest of
`--rounds` counts: other work on the machine can only add. Compilation is not in it.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import config, host_memory, trees
from prompt_tuning.generation import Decoding, generate
from prompt_tuning.prompted import PromptedT5, abstract_params, add_virtual_tokens, init_backbone
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5

TASKS, MEMBERS = 16, (1, 2, 4, 8, 16)


class Model:
  """A prompted or plain T5 with random weights of its own; one compiled program a batch shape."""

  def __init__(self, backbone: Any, prompt: int, num_prompts: int, options: argparse.Namespace,
               key: int = 0):
    method = SoftPrompt(backbone, prompt, num_prompts=num_prompts) if prompt else None
    self._model = PromptedT5(T5(backbone), method)
    self._inputs, self._vocabulary = options.inputs, backbone.vocab_size
    self.params = {"backbone": init_backbone(jax.random.key(key), backbone)}
    if method is not None:
      shape = abstract_params(self._model)["prompt"]["embedding"].shape
      self.params["prompt"] = {"embedding": jax.random.normal(jax.random.key(1), shape)}
    how = Decoding(min_length=options.targets)

    def run(params: Any, tokens: Any, ids: Any) -> Any:
      return generate(self._model, params, tokens, None, ids,
                      how.limits(None, options.targets), max_length=options.targets)

    # All models of a shape share one program.
    self._run = _programs.setdefault((self._model, options.targets), jax.jit(run))

  def answer(self, rows: int, ids: Sequence[int] | None = None) -> None:
    """One batch; `ids [rows]` of a bank."""
    tokens = np.random.default_rng(0).integers(3, self._vocabulary, (rows, self._inputs))
    tokens = add_virtual_tokens(jnp.asarray(tokens, jnp.int32), self._model.num_virtual_tokens)
    jax.block_until_ready(self._run(
      self.params, tokens, None if ids is None else jnp.asarray(ids, jnp.int32)))

  @property
  def num_bytes(self) -> int:
    return trees.num_bytes(self.params)


_programs: dict[tuple, Callable] = {}


def fastest(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
  """Seconds of each side; the first run, which compiles, does not count."""
  best = dict.fromkeys(sides, float("inf"))
  for number in range(rounds + 1):
    for name, run in sides.items():
      began = time.perf_counter()
      run()
      if number:
        best[name] = min(best[name], time.perf_counter() - began)
  return best


def many_tasks(backbone: Any, options: argparse.Namespace) -> dict[str, Any]:
  """Part one."""
  rows, batches = options.rows, options.rows // options.batch
  mixed = Model(backbone, options.prompt, TASKS, options)
  copies = [Model(backbone, 0, 1, options, key) for key in range(TASKS)]
  turns = [i % TASKS for i in range(options.batch)]

  def answer(times: int, size: int) -> None:
    for copy in copies:
      for _ in range(times):
        copy.answer(size)

  each = rows // TASKS  # Rows of a task.
  sides = {"mixed": lambda: [mixed.answer(options.batch, turns) for _ in range(batches)],
           "copies, waiting": lambda: answer(max(1, each // options.batch),
                                             min(each, options.batch)),
           "copies, at once": lambda: answer(batches, options.batch // TASKS)}
  seconds = fastest(sides, options.rounds)
  copied = sum(copy.num_bytes for copy in copies)
  weights = {"mixed": mixed.num_bytes, "copies, waiting": copied, "copies, at once": copied}
  return {side: {"rows_per_second": rows / seconds[side],
                 "tokens_per_second": rows * options.targets / seconds[side],
                 "weights_mb": weights[side] / 1e6} for side in sides}


def ensembles(backbone: Any, options: argparse.Namespace) -> dict[int, dict[str, float]]:
  """Part two: milliseconds an input, by the number of members."""
  bank = Model(backbone, options.prompt, max(MEMBERS), options)
  single = Model(backbone, options.prompt, 1, options)
  tuned = Model(backbone, 0, 1, options)
  inputs = options.batch // TASKS
  found = {}
  for members in MEMBERS:
    ids = [member for _ in range(inputs) for member in range(members)]
    runs = range(members)
    seconds = fastest({
      "one batch": lambda ids=ids: bank.answer(len(ids), ids),
      "runs of one prompt": lambda runs=runs: [single.answer(inputs) for _ in runs],
      "tuned models": lambda runs=runs: [tuned.answer(inputs) for _ in runs]}, options.rounds)
    found[members] = {name: 1000 * value / inputs for name, value in seconds.items()}
  return found


def show(tasks: dict[str, Any], members: dict[int, dict[str, float]]) -> None:
  print(f"| {TASKS} tasks | rows/s | tokens/s | weights, MB |\n|---|---|---|---|")
  for side, values in tasks.items():
    print(f"| {side} | {values['rows_per_second']:.1f} | {values['tokens_per_second']:.0f} "
          f"| {values['weights_mb']:.1f} |")
  print("\n| ms an input, N members | " + " | ".join(map(str, members)) + " |")
  print("|---" * (len(members) + 1) + "|")
  for side in next(iter(members.values())):
    print(f"| {side} | " + " | ".join(f"{row[side]:.1f}" for row in members.values()) + " |")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--gin_file", default="models/tiny.gin", help="of the model")
  parser.add_argument("--rows", type=int, default=512, help="of part one")
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--prompt", type=int, default=20)
  parser.add_argument("--inputs", type=int, default=64)
  parser.add_argument("--targets", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--json", action="store_true")
  options = parser.parse_args()
  if options.batch % TASKS or options.rows % options.batch:
    raise SystemExit(f"--batch has to be a multiple of {TASKS}, and --rows of --batch")
  host_memory.keep_freed_memory()
  config.load(["commands/model.gin", options.gin_file, "prompts/none.gin"],
              ["INITIAL_CHECKPOINT_PATH = 'random'"])
  backbone = config.build(ModelConfig).backbone
  tasks, members = many_tasks(backbone, options), ensembles(backbone, options)
  if options.json:
    print(json.dumps({"tasks": tasks, "members": members}))
  else:
    show(tasks, members)


if __name__ == "__main__":
  main()
