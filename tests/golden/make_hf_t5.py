"""Writes hf_t5_1_1.npz and hf_t5_1_0.npz: tiny random Hugging Face T5s, for tests/parity.

  python tests/golden/make_hf_t5.py

Made with transformers 5.23.0 and torch 2.13.0 on a CPU. A file holds, by key:

  config               JSON of the configuration's numbers
  weights/NAME         the state dict, tied copies left out
  inputs, targets      [B, T] ids with padding, and [B, U] decoder inputs
  encoder_states       [L + 1, B, T, D]: the inputs of the blocks, then the stack's normed output
  decoder_states       [L + 1, B, U, D]: the same
  logits               [B, U, V]
  greedy               [B, G] what greedy generation writes after the start token, 0 past an end
"""

import json
import pathlib

import numpy as np

# The far buckets are in use: inputs are longer than the largest distance.
COMMON = dict(vocab_size=37, d_model=12, num_heads=3, d_kv=5, d_ff=20, num_layers=2,
              num_decoder_layers=3, relative_attention_num_buckets=8,
              relative_attention_max_distance=10, dropout_rate=0.0, layer_norm_epsilon=1e-6,
              decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
VERSIONS = {"1_1": dict(feed_forward_proj="gated-gelu"), "1_0": dict(feed_forward_proj="relu")}
# Chosen for greedy generations that do not repeat themselves; 1.1's ends a row early.
SEEDS = {"1_1": 6, "1_0": 7}
LENGTHS = (15, 9, 3)
TARGET_LENGTH = 13
NEW_TOKENS = 8


def build(version: str, seed: int):
  """A `T5ForConditionalGeneration` with random weights of a trained model's size."""
  import torch
  from transformers import T5Config, T5ForConditionalGeneration

  torch.manual_seed(seed)
  config = T5Config(**COMMON, **VERSIONS[version])
  # transformers 5 ties every T5 and says with this flag alone whether logits are scaled.
  config.scale_decoder_outputs = version == "1_0"
  model = T5ForConditionalGeneration(config).eval()
  if version == "1_1":
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if "layer_norm" in name:
        weight.uniform_(0.5, 1.5)
      elif "relative_attention_bias" in name:
        weight.normal_(0.0, 1.0)
      elif "shared" in name:
        # A large tied table makes greedy generation repeat its input.
        weight.normal_(0.0, 0.2 if version == "1_0" else 1.0)
      else:
        # Queries carry the K^-0.5 that T5 leaves out of its logits.
        scale = COMMON["d_kv"] ** -0.5 if name.endswith(".q.weight") else 1.0
        weight.normal_(0.0, 1.5 * scale * weight.shape[1] ** -0.5)
  return model


def record(model, seed: int) -> dict[str, np.ndarray]:
  """Runs the model on random inputs: every array of the file, by key."""
  import torch

  random = np.random.default_rng(seed)
  inputs = random.integers(2, COMMON["vocab_size"], (len(LENGTHS), max(LENGTHS)))
  for row, length in zip(inputs, LENGTHS, strict=True):
    row[length:] = 0
  targets = random.integers(2, COMMON["vocab_size"], (len(LENGTHS), TARGET_LENGTH))
  targets[:, 0] = 0
  states: dict[str, list] = {"encoder": [], "decoder": []}
  hooks = [block.register_forward_pre_hook(
             lambda _, args, name=name: states[name].append(args[0].detach()))
           for name in states for block in getattr(model, name).block]
  hooks += [getattr(model, name).final_layer_norm.register_forward_hook(
              lambda _, __, output, name=name: states[name].append(output.detach()))
            for name in states]
  ids = torch.tensor(inputs)
  mask = (ids != 0).long()
  with torch.no_grad():
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor(targets),
                   use_cache=False).logits
    for hook in hooks:
      hook.remove()
    # With its cache, transformers 5.23 cannot decode with more layers than the encoder has.
    greedy = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1,
                            max_new_tokens=NEW_TOKENS, use_cache=False)
  tied = model.lm_head.weight is model.shared.weight
  weights = {f"weights/{name}": weight.numpy() for name, weight in model.state_dict().items()
             if "embed_tokens" not in name and not (tied and name == "lm_head.weight")}
  config = {**COMMON, "feed_forward_proj": model.config.feed_forward_proj,
            "scale_decoder_outputs": model.config.scale_decoder_outputs}
  return {
    "config": np.array(json.dumps(config)), "inputs": inputs.astype(np.int32),
    "targets": targets.astype(np.int32), "logits": logits.numpy(),
    "greedy": greedy[:, 1:].numpy().astype(np.int32),
    **{f"{name}_states": torch.stack(list_).numpy() for name, list_ in states.items()}, **weights}


def main():
  for version in VERSIONS:
    path = pathlib.Path(__file__).with_name(f"hf_t5_{version}.npz")
    np.savez_compressed(path, **record(build(version, SEEDS[version]), SEEDS[version]))
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
