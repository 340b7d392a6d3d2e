"""The architecture that shapes of leaves imply, and whether two architectures are one.

Shapes say every size. They do not say what follows: which function gates the MLP (T5 1.1's GELU is
taken), and the largest distance of the relative bias (128, which no release of T5 changes).
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from prompt_tuning.checkpoints.leaves import Leaf
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config

# What decides whether weights fit a model; the rest (dropout, dtypes, remat) is the run's matter.
FIELDS = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers",
          "num_decoder_layers", "mlp_activations", "logits_via_embedding",
          "relative_attention_num_buckets", "relative_attention_max_distance")
_NOT_IN_SHAPES = ("mlp_activations", "relative_attention_max_distance")


def infer(leaves: Mapping[str, Leaf]) -> T5Config | None:
  """The T5 whose leaves, stacked or not, have these names and shapes; None: it is not one."""
  try:
    vocab_size, emb_dim = leaves["token_embedder/embedding"].shape
    num_heads, buckets = leaves["encoder/relpos_bias/rel_embedding"].shape
    query = _layer(leaves, "encoder", "attention/query/kernel")
    gated = _find(leaves, "encoder", "mlp/wi_0/kernel")
    return T5Config(
      vocab_size=vocab_size, emb_dim=emb_dim, num_heads=num_heads, head_dim=query[1] // num_heads,
      mlp_dim=_layer(leaves, "encoder", "mlp/wo/kernel")[0],
      num_encoder_layers=num_layers(leaves, "encoder"),
      num_decoder_layers=num_layers(leaves, "decoder"),
      mlp_activations=("gelu", "linear") if gated else ("relu",),
      logits_via_embedding="decoder/logits_dense/kernel" not in leaves,
      relative_attention_num_buckets=buckets)
  except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError):  # UserError is a value's
    return None


def num_layers(leaves: Mapping[str, Leaf], stack: str) -> int:
  """How many layers a stack has; 0 where there is none."""
  for name, leaf in leaves.items():
    if name.startswith(f"{stack}/layers/"):
      return leaf.shape[0]
  numbers = {int(found[1]) for name in leaves
             if (found := re.match(rf"{stack}/layers_(\d{{1,9}})/", name))}
  return max(numbers, default=-1) + 1


def as_json(config: T5Config) -> dict[str, Any]:
  """The fields that weights depend on, as JSON has them."""
  return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(config).items()
                                if k in FIELDS}))


def check(theirs: Mapping[str, Any], model: T5Config, *, from_shapes: bool) -> None:
  """Compares a checkpoint's architecture (`as_json`) with the model's.

  Args:
    from_shapes: it was inferred, so that some fields are not known.

  Raises:
    UserError: they differ.
  """
  ours = as_json(model)
  wrong = [f"{k}: {theirs.get(k)} in the checkpoint, {v} in the model" for k, v in ours.items()
           if theirs.get(k) != v and not (from_shapes and k in _NOT_IN_SHAPES)]
  if wrong:
    raise UserError("The checkpoint and the model differ", found="; ".join(wrong),
                    wanted="one architecture", fix="use the models/*.gin file of the checkpoint")


def _find(leaves: Mapping[str, Leaf], stack: str, tail: str) -> Leaf | None:
  return leaves.get(f"{stack}/layers/{tail}") or leaves.get(f"{stack}/layers_0/{tail}")


def _layer(leaves: Mapping[str, Leaf], stack: str, tail: str) -> tuple[int, ...]:
  """The shape of one layer's leaf."""
  stacked = leaves.get(f"{stack}/layers/{tail}")
  return stacked.shape[1:] if stacked else leaves[f"{stack}/layers_0/{tail}"].shape
