"""Times the parts of a pre-training step of the first shipped model (D 128) against alternatives.

  python benchmarks/step_parts.py

Prints the minimum of 15 runs of each, in milliseconds; the machine should be quiet. The findings
are in docs/performance.md.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning.interfaces import T5Config
from prompt_tuning.layers import matmul
from prompt_tuning.losses import cross_entropy
from prompt_tuning.optimizers import Adafactor
from prompt_tuning.prompted import PromptedT5, init_backbone
from prompt_tuning.t5 import T5

ROWS, TOKENS, WIDTH, VOCABULARY = 16, 80, 128, 4128


def milliseconds(function, *arguments) -> float:
  compiled = jax.jit(function)
  jax.block_until_ready(compiled(*arguments))
  times = []
  for _ in range(15):
    began = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - began)
  return 1000 * min(times)


def matmul_peak() -> float:
  """GFLOP/s of a product of 2048 x 2048 at this moment."""
  square = jnp.ones((2048, 2048))
  return 2 * 2048**3 / milliseconds(lambda a: a @ a, square) / 1e6


def output_loss(product):
  targets = jnp.zeros((ROWS, TOKENS), jnp.int32)

  def loss(x, kernel):
    return cross_entropy(product(x, kernel), targets, jnp.ones((ROWS, TOKENS))).total

  return jax.grad(loss, (0, 1))


def train_step(scan_layers: bool):
  config = T5Config(vocab_size=VOCABULARY, emb_dim=WIDTH, num_heads=4, head_dim=32, mlp_dim=320,
                    num_encoder_layers=4, num_decoder_layers=4, scan_layers=scan_layers)
  model = PromptedT5(T5(config))
  params = {"backbone": init_backbone(jax.random.key(0), config)}
  optimizer = Adafactor(learning_rate=0.01, multiply_by_parameter_scale=True,
                        weight_decay_rate=None).build(params)
  tokens = jnp.asarray(np.random.default_rng(0).integers(3, 4000, (ROWS, TOKENS)), jnp.int32)

  def step(params, state):
    def loss(params):
      logits = model.apply({"params": params}, tokens, tokens, enable_dropout=False)
      return cross_entropy(logits, tokens, jnp.ones(tokens.shape)).total

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  return step, params, optimizer.init(params)


def main() -> None:
  key = jax.random.key(0)
  logits = jax.random.normal(key, (ROWS, TOKENS, VOCABULARY))
  x = jax.random.normal(key, (ROWS, TOKENS, WIDTH))
  kernel = jax.random.normal(key, (WIDTH, VOCABULARY))
  print(f"matmul peak               {matmul_peak():8.1f} GFLOP/s")
  print(f"argmax of the logits      {milliseconds(lambda a: jnp.argmax(a, -1), logits):8.2f} ms")
  print(f"max of the logits         {milliseconds(lambda a: jnp.max(a, -1), logits):8.2f} ms")
  print(f"output and loss, jnp.dot  {milliseconds(output_loss(jnp.dot), x, kernel):8.2f} ms")
  print(f"output and loss, matmul   {milliseconds(output_loss(matmul), x, kernel):8.2f} ms")
  for scan_layers in (True, False):
    name = "scanned" if scan_layers else "one by one"
    print(f"step, layers {name:12} {milliseconds(*train_step(scan_layers)):8.2f} ms")


if __name__ == "__main__":
  main()
