"""Hugging Face's names and configuration of T5, beside ours: the one table of both directions.

T5 1.0, 1.1, LM-adapted, Flan-T5, mT5 and ByT5 have the same names. A linear layer is stored as
(out, in), ours is (in, out), and the relative bias as (buckets, heads): both are transposed.

Tying. T5 1.0's output is its embedding, and is scaled by D^-0.5; 1.1's is a matrix of its own and
is not. transformers up to 4 wrote `tie_word_embeddings` for both facts. transformers 5 writes true
for every T5, and says in `scale_decoder_outputs` whether the output is scaled. So "scaled" is read
from `scale_decoder_outputs`, else from `tie_word_embeddings`, and "tied" from the weights alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import EOS_ID, PAD_ID, T5Config

EMBEDDING, OUTPUT = "shared.weight", "lm_head.weight"
# Copies of the embedding in files of transformers 4, and a bias that early files have and no
# forward pass reads.
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# What architecture fields are called in config.json.
SIZES = {"vocab_size": "vocab_size", "emb_dim": "d_model", "num_heads": "num_heads",
         "head_dim": "d_kv", "mlp_dim": "d_ff", "num_encoder_layers": "num_layers"}
SPECIAL_IDS = {"decoder_start_token_id": 0, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID}
ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear"),
               "gated-silu": ("silu", "linear"), "gated-relu": ("relu", "linear")}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# A block's sublayers in order: norm and module, ours and theirs.
_SUBLAYERS = {
  "encoder": (("pre_attention_layer_norm", "attention", "SelfAttention"),
              ("pre_mlp_layer_norm", "mlp", "DenseReluDense")),
  "decoder": (("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
              ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
              ("pre_mlp_layer_norm", "mlp", "DenseReluDense"))}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One leaf.

  Attributes:
    ours: unstacked, e.g. `encoder/layers_0/mlp/wo/kernel`.
    theirs: in PyTorch's files, e.g. `encoder.block.0.layer.1.DenseReluDense.wo.weight`.
    transposed: theirs is ours with the axes exchanged.
    shape: ours.
  """

  ours: str
  theirs: str
  transposed: bool
  shape: tuple[int, ...]

  @property
  def their_shape(self) -> tuple[int, ...]:
    return self.shape[::-1] if self.transposed else self.shape


def table(config: T5Config) -> list[Entry]:
  """Every leaf of a T5, in the order that transformers writes them."""
  width, buckets = config.emb_dim, config.relative_attention_num_buckets
  entries = [Entry("token_embedder/embedding", EMBEDDING, False, (config.vocab_size, width))]
  for stack, depth in (("encoder", config.num_encoder_layers),
                       ("decoder", config.num_decoder_layers)):
    for i in range(depth):
      entries += _block(config, stack, i)
    entries += [
      Entry(f"{stack}/relpos_bias/rel_embedding",
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", True,
            (config.num_heads, buckets)),
      Entry(f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight", False, (width,))]
  if not config.logits_via_embedding:
    entries.append(Entry("decoder/logits_dense/kernel", OUTPUT, True, (width, config.vocab_size)))
  return entries


def _block(config: T5Config, stack: str, i: int) -> Iterator[Entry]:
  width, joined = config.emb_dim, config.num_heads * config.head_dim
  inputs = ("wi",) if len(config.mlp_activations) == 1 else tuple(
    f"wi_{j}" for j in range(len(config.mlp_activations)))
  for j, (norm, ours, theirs) in enumerate(_SUBLAYERS[stack]):
    here, there = f"{stack}/layers_{i}", f"{stack}.block.{i}.layer.{j}"
    if ours == "mlp":
      kernels = {name: (name, (width, config.mlp_dim)) for name in inputs}
      kernels["wo"] = ("wo", (config.mlp_dim, width))
    else:
      kernels = {name: (_ATTENTION[name], (joined, width) if name == "out" else (width, joined))
                 for name in _ATTENTION}
    for name, (short, shape) in kernels.items():
      yield Entry(f"{here}/{ours}/{name}/kernel", f"{there}.{theirs}.{short}.weight", True, shape)
    yield Entry(f"{here}/{norm}/scale", f"{there}.layer_norm.weight", False, (width,))


def is_scaled(theirs: Mapping[str, Any]) -> bool:
  """Whether the decoder's output is multiplied by D^-0.5 before the logits."""
  if "scale_decoder_outputs" in theirs:
    return bool(theirs["scale_decoder_outputs"])
  # mT5 never is; transformers 5 writes its tie_word_embeddings as true all the same.
  return theirs.get("model_type") != "mt5" and theirs.get("tie_word_embeddings") is not False


def config_from(theirs: Mapping[str, Any], *, is_tied: bool, where: str) -> T5Config:
  """config.json -> the architecture.

  Args:
    is_tied: the file has no output matrix, or one that equals the embedding.
    where: the file, for messages.

  Raises:
    UserError: not a T5; a size that is none; other special tokens, or an output that this T5 does
      not have.
  """
  kind = theirs.get("model_type")
  if kind not in ("t5", "mt5"):
    raise UserError("This Hugging Face model is not a T5", found=f"{where}: model_type {kind!r}",
                    wanted="t5 or mt5 (umt5 has a relative bias of its own in every layer)",
                    fix="give a T5 1.0, T5 1.1, Flan-T5, mT5 or ByT5")
  sizes: dict[str, Any] = {ours: theirs.get(name) for ours, name in SIZES.items()}
  sizes["num_decoder_layers"] = theirs.get("num_decoder_layers") or theirs.get("num_layers")
  defaults = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
  sizes |= {name: theirs.get(name, default) for name, default in defaults.items()}
  for name, size in sizes.items():
    if type(size) is not int or not 1 <= size < 2**31:
      raise UserError("config.json has a size that is none",
                      found=f"{where}: {SIZES.get(name, name)} = {size!r}",
                      wanted="a whole number, 1 or more", fix="fetch config.json again")
  activation = theirs.get("feed_forward_proj", "gated-gelu" if kind == "mt5" else "relu")
  if not isinstance(activation, str) or activation not in ACTIVATIONS:
    raise UserError("config.json has an unknown feed_forward_proj",
                    found=f"{where}: {activation!r}", wanted="one of " + ", ".join(ACTIVATIONS),
                    fix=nearest(str(activation), ACTIVATIONS))
  epsilon = theirs.get("layer_norm_epsilon", 1e-6)
  if not isinstance(epsilon, float) or not 0 < epsilon < 1:
    raise UserError("config.json has a layer_norm_epsilon that is none",
                    found=f"{where}: {epsilon!r}", wanted="a small number, 1e-06",
                    fix="fetch config.json again")
  for name, ours in SPECIAL_IDS.items():
    if theirs.get(name, ours) not in (ours, [ours], None):
      raise UserError("config.json has special tokens of its own",
                      found=f"{where}: {name} = {theirs[name]!r}", wanted=f"{ours}, as T5 has it",
                      fix="use a checkpoint with T5's padding, start and end of sequence")
  scaled = is_scaled(theirs)
  if scaled and not is_tied:
    raise UserError(
      "config.json and the weights disagree about the output layer",
      found=f"{where}: its output is scaled (scale_decoder_outputs "
      f"{theirs.get('scale_decoder_outputs')}, tie_word_embeddings "
      f"{theirs.get('tie_word_embeddings')}), and {OUTPUT} differs from {EMBEDDING}",
      wanted="T5 1.0 (tied and scaled) or T5 1.1 (neither)",
      fix="some releases of transformers 5 wrote such files of T5 1.1: write "
      '"scale_decoder_outputs": false into config.json')
  return T5Config(**sizes, mlp_activations=ACTIVATIONS[activation],
                  logits_via_embedding=scaled, layer_norm_epsilon=epsilon)


def config_to(config: T5Config, model_type: str = "t5") -> dict[str, Any]:
  """The architecture -> config.json, with the flags that transformers 4 and 5 each read.

  Raises:
    UserError: transformers has no such T5.
  """
  names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
  if config.mlp_activations not in names:
    raise UserError("Hugging Face's T5 has no such MLP", found=config.mlp_activations,
                    wanted="one of " + ", ".join(map(str, names)),
                    fix="keep the checkpoint in our format")
  tied = config.logits_via_embedding
  return {
    "architectures": ["MT5ForConditionalGeneration" if model_type == "mt5" else
                      "T5ForConditionalGeneration"],
    "model_type": model_type, "is_encoder_decoder": True,
    **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
    "num_decoder_layers": config.num_decoder_layers,
    "relative_attention_num_buckets": config.relative_attention_num_buckets,
    "relative_attention_max_distance": config.relative_attention_max_distance,
    "feed_forward_proj": names[config.mlp_activations],
    "layer_norm_epsilon": config.layer_norm_epsilon,
    # Of every release: ours is a setting of a run, 0 for prompts.
    "dropout_rate": 0.1,
    "initializer_factor": 1.0, "use_cache": True,
    # Both: transformers 4 reads the first, and so do releases of 5 that lose the second.
    "tie_word_embeddings": tied, "scale_decoder_outputs": tied,
    **SPECIAL_IDS}
