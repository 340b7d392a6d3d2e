"""A small T5's leaves in memory, and comparisons of readers to the bit."""

import functools

import numpy as np

from prompt_tuning.checkpoints import loading
from prompt_tuning.checkpoints.leaves import DTYPES, MemoryReader
from prompt_tuning.checkpoints.stacking import in_layout, is_stacked
from prompt_tuning.interfaces import T5Config

# No size is another's product or neighbour. 40 rows hold no vocabulary: tests that need one change
# it. The number of buckets and the largest distance are T5's, as shapes cannot tell the latter.
CONFIG = T5Config(vocab_size=40, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12,
                  num_encoder_layers=2, num_decoder_layers=3)
TIED = T5Config(**{name: getattr(CONFIG, name) for name in (
  "vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers",
  "num_decoder_layers")}, mlp_activations=("relu",), logits_via_embedding=True)


@functools.cache
def arrays(config: T5Config = CONFIG, dtype: str = "float32", seed: int = 0):
  """Stacked leaves, flat, with random values."""
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal(leaf.shape, np.float32).astype(DTYPES[dtype])
          for name, leaf in loading.expected_leaves(config).items()}


def reader(config: T5Config = CONFIG, dtype: str = "float32", *, stacked: bool = True, **metadata):
  return in_layout(MemoryReader(arrays(config, dtype), config, metadata), stacked)


def assert_equal(found, wanted) -> None:
  """Both readers hold the same leaves with the same bits, in whatever layout."""
  found = in_layout(found, is_stacked(wanted.leaves))
  assert dict(found.leaves) == dict(wanted.leaves)
  for name in wanted.leaves:
    assert found.read(name).tobytes() == wanted.read(name).tobytes(), name


def parts(shape, rng, count: int = 6):
  """Random parts of an array: empty ones, single rows, the whole."""
  yield tuple(slice(None) for _ in shape)
  for _ in range(count):
    spans = [sorted(int(x) for x in rng.integers(0, n + 1, 2)) for n in shape]
    yield tuple(slice(*span) for span in spans)
