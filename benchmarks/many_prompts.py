"""Many prompts at once against a run for each, on the shipped tiny model.

  python benchmarks/many_prompts.py [--rows 32] [--members 1 4 8] [--repeats 5] [--at_once K]
  python benchmarks/many_prompts.py --runs 40 --members 4

The first times one step of M prompts against M steps of one prompt on the same rows. A round times
each side once, by turns; the medians are shown, and beside them the time to compile: each run of
one prompt compiles its step, many prompts compile one. The second times whole commands, of the
demo's task and that many steps. Wall time means nothing on a machine that does other things;
`--cpu_time` is the processes' own, for one core (`taskset -c 0`).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import config
from prompt_tuning.host_memory import keep_freed_memory, return_unused_memory
from prompt_tuning.members import Member, make_members_step, new_members_state, stack
from prompt_tuning.optimizers import Adafactor
from prompt_tuning.prompted import abstract_params, add_virtual_tokens
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.train_state import LossConfig, make_train_step, new_state
from prompt_tuning.trees import plan_split

PROMPT, INPUTS, TARGETS = 20, 96, 4
FILES = ("commands/model.gin", "models/tiny.gin", "prompts/soft.gin")


class Side:
  """A compiled step and its state.

  Attributes:
    compile_s: seconds to trace and compile.
  """

  def __init__(self, clock: Callable[[], float], step: Callable, state: Any, frozen: Any,
               batch: Any, times: int = 1):
    """Args: times: how often it runs for one timing."""
    began = clock()
    self._compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    self.compile_s = clock() - began
    self._clock, self._state, self._rest, self._times = clock, state, (frozen, batch), times
    return_unused_memory()

  def seconds(self) -> float:
    began = self._clock()
    for _ in range(self._times):
      self._state, metrics = self._compiled(self._state, *self._rest)
      jax.block_until_ready((self._state, metrics))
    return self._clock() - began


def batch_of(rows: int, vocabulary: int, length: int) -> dict[str, Any]:
  """`rows` rows of `length` + INPUTS + TARGETS tokens, none of them padding."""
  random = np.random.default_rng(0)
  inputs, targets = (random.integers(3, vocabulary, (rows, size)).astype(np.int32)
                     for size in (INPUTS, TARGETS))
  return {"encoder_input_tokens": add_virtual_tokens(jnp.asarray(inputs), length),
          "decoder_target_tokens": jnp.asarray(targets),
          "decoder_input_tokens": jnp.pad(jnp.asarray(targets), ((0, 0), (1, 0)))[:, :-1],
          "decoder_loss_weights": jnp.ones(targets.shape, jnp.float32)}


def command_seconds(folder: str, steps: int, cpu_time: bool, *flags: str) -> float:
  """One `prompt-tuning train` of the demo's task."""
  from prompt_tuning import demo  # TensorFlow comes with it.

  def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime if cpu_time else time.perf_counter()

  began = used()
  done = subprocess.run(
    [sys.executable, "-m", "prompt_tuning", "train",
     *(f"--gin_file={name}" for name in demo.GIN_FILES), *demo.demo_flags(folder),
     f"--gin.TRAIN_STEPS={steps}", f"--gin.EVAL_PERIOD={steps}", "--gin.SCAN_LAYERS=False", *flags],
    capture_output=True, text=True)
  if done.returncode:
    sys.exit(done.stderr)
  return used() - began


def runs(counts: list[int], steps: int, cpu_time: bool) -> None:
  """Prints seconds of whole commands: one for each prompt, and one for all."""
  print("| prompts | a run each | one run | ratio |")
  print("|---|---|---|---|")
  with tempfile.TemporaryDirectory() as folder:
    # The data's tokens are cached from here on.
    command_seconds(f"{folder}/first", 1, cpu_time)
    for count in counts:
      apart = sum(command_seconds(f"{folder}/{count}_{seed}", steps, cpu_time,
                                  f"--gin.PROMPT_SEED={seed}") for seed in range(count))
      together = command_seconds(f"{folder}/{count}", steps, cpu_time, f"--gin.N_PROMPTS={count}")
      print(f"| {count} | {apart:.0f} s | {together:.0f} s | {apart / together:.2f} |", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rows", type=int, default=32)
  parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 8])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--cpu_time", action="store_true")
  parser.add_argument("--runs", type=int, metavar="STEPS", help="time whole commands")
  parser.add_argument("--at_once", type=int, help="PROMPTS_AT_ONCE")
  options = parser.parse_args()
  if options.runs:
    runs(options.members, options.runs, options.cpu_time)
    return
  keep_freed_memory()  # As the `prompt-tuning` command does.
  clock = time.process_time if options.cpu_time else time.perf_counter

  config.load(FILES, [f"PROMPT_LENGTH = {PROMPT}", "SCAN_LAYERS = False"])
  settings = config.build(ModelConfig)
  model, optimizer, loss = settings.module(), Adafactor(), LossConfig()
  split = plan_split(abstract_params(model), ())
  backbone = settings.load_backbone(0)
  batch = batch_of(options.rows, settings.backbone.vocab_size - 128, PROMPT)

  def trainable(seed: int) -> dict:
    return {"prompt": settings.start_prompt(backbone, seed)}

  print(f"{options.rows} rows of {PROMPT} + {INPUTS} tokens and {TARGETS} targets, "
        f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s)")
  print("| prompts | one at a time | at once | ratio | compile, one | compile, at once |")
  print("|---|---|---|---|---|---|")
  transformation = optimizer.build(trainable(0))
  for count in options.members:
    one = Side(clock, make_train_step(model, split, optimizer, transformation, loss, 0),
               new_state(trainable(0), transformation), {"backbone": backbone}, batch, count)
    members = [Member(seed, 0.3) for seed in range(count)]
    many = Side(clock, make_members_step(model, split, optimizer, loss, members,
                                         at_once=options.at_once),
                new_members_state(stack([trainable(m.seed) for m in members]), optimizer),
                {"backbone": backbone}, batch)
    times = [(one.seconds(), many.seconds()) for _ in range(options.repeats + 1)][1:]
    apart, together = (1e3 * statistics.median(side) for side in zip(*times, strict=True))
    print(f"| {count} | {apart:.0f} ms | {together:.0f} ms | {apart / together:.2f} "
          f"| {count} x {one.compile_s:.1f} s | {many.compile_s:.1f} s |", flush=True)


if __name__ == "__main__":
  main()
