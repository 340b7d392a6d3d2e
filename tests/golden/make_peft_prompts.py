"""Writes peft_prompts.npz: adapters of PEFT, and what it makes of ours, for tests/parity.

  python tests/golden/make_peft_prompts.py

Made with peft 0.21.2, transformers 5.23.0 and torch 2.13.0 on a CPU. The base model, its inputs and
its targets are those of hf_t5_1_1.npz. The file holds, by key:

  saved/METHOD/config, tensor     what `save_pretrained` wrote, of a random adapter
  saved/METHOD/logits             [B, U, V] of the adapter's forward pass
  ours/METHOD/config, weights     the two files that we export of the prompt `ours/values` [P, D]
  ours/METHOD/logits              of the adapter that `from_pretrained` makes of them
  prefix/LAYERS/config, tensor    a random prefix as `save_pretrained` wrote it
  prefix/LAYERS/keys, values      [L, P, H, K] that `get_prompt` puts into the cache
  encoder/KIND/NAME               state_dict of PEFT's P-tuning encoder, LSTM or MLP
  encoder/KIND/output             [P, D] that it makes of its own embedding
"""

import json
import pathlib
import tempfile

import make_hf_t5
import numpy as np

HERE = pathlib.Path(__file__).parent
METHODS = ("PROMPT_TUNING", "P_TUNING")
LENGTH = 4
DEPTHS = (3, 4)
ENCODERS = ("LSTM", "MLP")
ENCODER_WIDTH, ENCODER_HIDDEN = 8, 6


def logits_of(model, golden) -> np.ndarray:
  import torch
  ids = torch.tensor(golden["inputs"], dtype=torch.long)
  with torch.no_grad():
    return model(input_ids=ids, attention_mask=(ids != 0).long(),
                 decoder_input_ids=torch.tensor(golden["targets"], dtype=torch.long)
                 ).logits.numpy()


def saved(method: str, golden: dict, seed: int) -> dict[str, np.ndarray]:
  """A random adapter of PEFT's own."""
  import peft
  import torch

  model = base(golden)
  torch.manual_seed(seed)
  kinds = {"PROMPT_TUNING": peft.PromptTuningConfig, "P_TUNING": peft.PromptEncoderConfig}
  extra = {"encoder_hidden_size": 7} if method == "P_TUNING" else {}
  model = peft.get_peft_model(model, kinds[method](
    task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, **extra)).eval()
  return {**files_of(model), "logits": logits_of(model, golden)}


def loaded(folder: pathlib.Path, golden: dict) -> np.ndarray:
  """The logits of an adapter in a folder."""
  import peft
  return logits_of(peft.PeftModel.from_pretrained(base(golden), folder).eval(), golden)


def prefix(depth: int, seed: int) -> dict[str, np.ndarray]:
  """A random prefix for encoder and decoder of `depth` layers, and where PEFT puts it."""
  import peft
  import torch
  from transformers import T5Config, T5ForConditionalGeneration

  torch.manual_seed(seed)
  sizes = make_hf_t5.COMMON | {"num_layers": depth, "num_decoder_layers": depth}
  joined = sizes["num_heads"] * sizes["d_kv"]
  config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH,
                                   token_dim=joined, num_attention_heads=sizes["num_heads"])
  model = peft.get_peft_model(T5ForConditionalGeneration(T5Config(**sizes)), config).eval()
  torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
  layers = model.get_prompt(1).self_attention_cache.layers
  cache = {"keys": [x.keys for x in layers], "values": [x.values for x in layers]}
  return {**files_of(model),
          **{name: np.stack([x[0].detach().numpy().transpose(1, 0, 2) for x in found])
             for name, found in cache.items()}}


def encoder(kind: str, seed: int) -> dict[str, np.ndarray]:
  """P-tuning's prompt encoder, random: its tensors and what it gives."""
  import peft
  import torch

  torch.manual_seed(seed)
  module = peft.PromptEncoder(peft.PromptEncoderConfig(
    task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, token_dim=ENCODER_WIDTH,
    num_transformer_submodules=1, encoder_reparameterization_type=kind,
    encoder_hidden_size=ENCODER_HIDDEN, encoder_num_layers=2)).eval()
  with torch.no_grad():
    output = module(torch.arange(LENGTH)[None])[0]
  return {**{name: leaf.numpy() for name, leaf in module.state_dict().items()},
          "output": output.numpy()}


def base(golden: dict):
  """The model of hf_t5_1_1.npz; each call gives another object, for PEFT changes it."""
  import torch
  model = make_hf_t5.build("1_1", make_hf_t5.SEEDS["1_1"])
  weights = {name: torch.tensor(golden[f"weights/{name}"]) for name in model.state_dict()
             if f"weights/{name}" in golden}
  model.load_state_dict(weights, strict=False)
  return model


def files_of(model) -> dict[str, np.ndarray]:
  from safetensors.numpy import load_file

  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config = json.loads((pathlib.Path(folder) / "adapter_config.json").read_text())
    tensors = load_file(pathlib.Path(folder) / "adapter_model.safetensors")
  assert list(tensors) == ["prompt_embeddings"]
  return {"config": np.array(json.dumps(config)), "tensor": tensors["prompt_embeddings"]}


def main():
  from prompt_tuning.checkpoints import peft as ours

  with np.load(HERE / "hf_t5_1_1.npz") as file:
    golden = dict(file)
  values = np.random.default_rng(0).normal(size=(LENGTH, make_hf_t5.COMMON["d_model"]))
  arrays = {"ours/values": values.astype(np.float32)}
  for method in METHODS:
    arrays |= {f"saved/{method}/{k}": v for k, v in saved(method, golden, seed=1).items()}
    with tempfile.TemporaryDirectory() as parent:
      folder = pathlib.Path(parent) / "adapter"
      ours.write(folder, arrays["ours/values"], {"peft_type": method})
      arrays |= {f"ours/{method}/config": np.array((folder / ours.CONFIG).read_text()),
                 f"ours/{method}/weights": np.frombuffer((folder / ours.WEIGHTS).read_bytes(),
                                                         np.uint8),
                 f"ours/{method}/logits": loaded(folder, golden)}
  for depth in DEPTHS:
    arrays |= {f"prefix/{depth}/{k}": v for k, v in prefix(depth, seed=2).items()}
  for kind in ENCODERS:
    arrays |= {f"encoder/{kind}/{k}": v for k, v in encoder(kind, seed=3).items()}
  path = HERE / "peft_prompts.npz"
  np.savez_compressed(path, **arrays)
  print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
