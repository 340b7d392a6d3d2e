"""Hugging Face T5 weights -> our tree, for the parity tests.

Hugging Face stores a linear layer as (out, in), ours is (in, out). "Tied" is read from the
weights, and "scaled" from `scale_decoder_outputs`: transformers 5 calls every T5 tied.
"""

import numpy as np

from prompt_tuning import trees
from prompt_tuning.interfaces import T5Config

ACTIVATIONS = {"gated-gelu": ("gelu", "linear"), "relu": ("relu",)}
# Of a block's layers, in order: (its norm's name in ours, its module in theirs and in ours).
SUBLAYERS = {
  "encoder": (("pre_attention_layer_norm", "SelfAttention", "attention"),
              ("pre_mlp_layer_norm", "DenseReluDense", "mlp")),
  "decoder": (("pre_self_attention_layer_norm", "SelfAttention", "self_attention"),
              ("pre_cross_attention_layer_norm", "EncDecAttention", "encoder_decoder_attention"),
              ("pre_mlp_layer_norm", "DenseReluDense", "mlp"))}
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


def config_from(theirs: dict, weights: dict, **ours) -> T5Config:
  """The `T5Config` of a Hugging Face configuration; `ours` are fields that it does not have."""
  tied = "lm_head.weight" not in weights
  assert tied == theirs["scale_decoder_outputs"], "T5 scales its logits exactly where it ties"
  return T5Config(
    vocab_size=theirs["vocab_size"], emb_dim=theirs["d_model"], num_heads=theirs["num_heads"],
    head_dim=theirs["d_kv"], mlp_dim=theirs["d_ff"], num_encoder_layers=theirs["num_layers"],
    num_decoder_layers=theirs["num_decoder_layers"],
    mlp_activations=ACTIVATIONS[theirs["feed_forward_proj"]], logits_via_embedding=tied,
    relative_attention_num_buckets=theirs["relative_attention_num_buckets"],
    relative_attention_max_distance=theirs["relative_attention_max_distance"],
    layer_norm_epsilon=theirs["layer_norm_epsilon"], **ours)


def backbone_from(weights: dict[str, np.ndarray], config: T5Config) -> dict:
  """The backbone's tree, stacked where `config.scan_layers`; every weight is used exactly once."""
  left = dict(weights)
  flat = {"token_embedder/embedding": left.pop("shared.weight")}
  for stack, depth in (("encoder", config.num_encoder_layers),
                       ("decoder", config.num_decoder_layers)):
    flat[f"{stack}/{stack}_norm/scale"] = left.pop(f"{stack}.final_layer_norm.weight")
    flat[f"{stack}/relpos_bias/rel_embedding"] = left.pop(
      f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight").T
    for i in range(depth):
      for j, (norm, theirs, ours) in enumerate(SUBLAYERS[stack]):
        here = f"{stack}.block.{i}.layer.{j}."
        flat[f"{stack}/layers_{i}/{norm}/scale"] = left.pop(here + "layer_norm.weight")
        for name in [n for n in left if n.startswith(here + theirs)]:
          kernel = name.split(".")[-2]
          flat[f"{stack}/layers_{i}/{ours}/{ATTENTION.get(kernel, kernel)}/kernel"] = (
            left.pop(name).T)
  if "lm_head.weight" in left:
    flat["decoder/logits_dense/kernel"] = left.pop("lm_head.weight").T
  assert not left, f"unused: {sorted(left)}"
  return trees.unflatten(stack_layers(flat, config) if config.scan_layers else flat)


def stack_layers(flat: dict, config: T5Config) -> dict:
  """`{stack}/layers_{i}/...` leaves -> `{stack}/layers/...` with the layers on axis 0."""
  stacked = {path: leaf for path, leaf in flat.items() if "/layers_" not in path}
  for stack, depth in (("encoder", config.num_encoder_layers),
                       ("decoder", config.num_decoder_layers)):
    for path in [p for p in flat if p.startswith(f"{stack}/layers_0/")]:
      rest = path.removeprefix(f"{stack}/layers_0/")
      stacked[f"{stack}/layers/{rest}"] = np.stack(
        [flat[f"{stack}/layers_{i}/{rest}"] for i in range(depth)])
  return stacked
