"""Adapters of the PEFT library: folders with adapter_config.json and adapter_model.safetensors.

The one tensor is `prompt_embeddings`, after any reparametrisation: P-tuning's encoder is folded
into it and lost.

  PROMPT_TUNING, P_TUNING   `[S * P, D]`, S = num_transformer_submodules. Rows P and above are never
                            read by PEFT on a T5 (its decoder takes no prompt): we read the first P,
                            and write S = 1.
  PREFIX_TUNING             `[P, 2 * L * H * K]`: keys and values of the decoder's self-attention
                            alone. Only read (`read_prefix`), because of PEFT's mapping of layers.

PEFT cuts a prefix into 2L blocks of `[P, H, K]`, says them twice over (once was meant for
cross-attention), groups the 4L by four, and uses the first two of each group. So decoder layer i
has block 4i mod 2L as its keys and block 4i + 1 mod 2L as its values: with an even L, layers i and
i + L/2 share one prefix, and half of what was trained is never used.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from prompt_tuning.checkpoints import pickled
from prompt_tuning.checkpoints.hub import file_in
from prompt_tuning.disk import new_folder
from prompt_tuning.errors import UserError

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TENSOR = "prompt_embeddings"
METHODS = ("PROMPT_TUNING", "P_TUNING")
TASK = "SEQ_2_SEQ_LM"
# What PEFT itself works into the weights.
MERGED = ("LORA", "IA3", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "HRA")
PREFIX = "PREFIX_TUNING"
_MAX_CONFIG = 1 << 20


def choose(names: Sequence[str]) -> list[str]:
  """Of a repository's files those that are read."""
  weights = WEIGHTS if WEIGHTS in names else PICKLED
  return [name for name in (CONFIG, weights) if name in names]


def check_method(folder: pathlib.Path) -> None:
  """Refuses an adapter that no command reads, and says what to do with it.

  Raises:
    UserError: its method trains something else than vectors ahead of the input.
    ValueError: the folder is damaged.
  """
  method = _config(folder).get("peft_type")
  if method in METHODS:
    return
  if method == PREFIX:
    raise UserError(
      "A PEFT prefix is not a prompt", found=f"{folder}: peft_type {PREFIX}",
      wanted=" or ".join(METHODS),
      fix="train a prefix here, with prompts/prefix.gin: PEFT's holds keys and values of the "
      "decoder's self-attention alone, and its layers share them: decoder layer i of L has the "
      "blocks 4i mod 2L (keys) and 4i+1 mod 2L (values)")
  raise UserError(
    "This PEFT adapter is not a prompt", found=f"{folder}: peft_type {method!r}",
    wanted=" or ".join(METHODS),
    fix="merge it in PEFT, with model.merge_and_unload().save_pretrained(FOLDER): "
    "INITIAL_CHECKPOINT_PATH and `prompt-tuning convert` take that folder" if method in MERGED else
    "train a method of prompts/ here: of PEFT's methods only those are nothing but vectors")


def read(folder: pathlib.Path) -> tuple[np.ndarray, dict[str, Any]]:
  """The prompt `[P, D]` of a prompt-tuning or P-tuning adapter, and what its configuration says.

  Raises:
    UserError: an adapter of another method.
    ValueError: the folder is damaged.
  """
  check_method(folder)
  config = _config(folder)
  _check_task(folder, config)
  tensor = _tensor(folder)
  length = _count(config, "num_virtual_tokens")
  submodules = config.get("num_transformer_submodules")
  wanted = length * (submodules if isinstance(submodules, int) else 1)
  if tensor.ndim != 2 or tensor.shape[0] < wanted or tensor.shape[0] % length:
    raise ValueError(f"{TENSOR} is {tensor.dtype} {tensor.shape}; {CONFIG} says "
                     f"num_virtual_tokens {length}, num_transformer_submodules {submodules}")
  keys = ("peft_type", "base_model_name_or_path", "peft_version", "task_type")
  about = {key: config[key] for key in keys if config.get(key) is not None}
  if "base_model_name_or_path" in about:
    about["base_model"] = about.pop("base_model_name_or_path")
  return tensor[:length].astype(np.float32), about


def read_prefix(folder: pathlib.Path, num_decoder_layers: int | None = None
                ) -> tuple[np.ndarray, np.ndarray]:
  """The prefix that PEFT's forward pass really uses.

  Args:
    num_decoder_layers: of the backbone; None: as many as the adapter was made for.

  Returns:
    Keys and values `[L, P, H, K]` float32 of the decoder's self-attention. Nothing is added to the
    encoder or to cross-attention.

  Raises:
    UserError: not a prefix, or one for another depth.
    ValueError: the folder is damaged.
  """
  config = _config(folder)
  if config.get("peft_type") != PREFIX:
    raise UserError("This PEFT adapter is not a prefix",
                    found=f"{folder}: peft_type {config.get('peft_type')!r}", wanted=PREFIX,
                    fix="give a prompt as PROMPT_FILE")
  _check_task(folder, config)
  length, layers, heads = (_count(config, key) for key in (
    "num_virtual_tokens", "num_layers", "num_attention_heads"))
  width = _count(config, "token_dim")
  if num_decoder_layers not in (None, layers):
    raise UserError("The PEFT prefix is for another depth", found=f"{layers} layers in {folder}",
                    wanted=f"{num_decoder_layers}, the decoder's",
                    fix="PEFT makes prefixes only where encoder and decoder are equally deep")
  tensor = _tensor(folder)
  if tensor.shape != (length, 2 * layers * width) or width % heads:
    raise ValueError(f"{TENSOR} is {tensor.dtype} {tensor.shape}, not the {length} x "
                     f"{2 * layers * width} of {CONFIG}")
  blocks = tensor.reshape(length, 2 * layers, heads, width // heads).astype(np.float32)
  keys = [blocks[:, 4 * i % (2 * layers)] for i in range(layers)]
  values = [blocks[:, (4 * i + 1) % (2 * layers)] for i in range(layers)]
  return np.stack(keys), np.stack(values)


def write(folder: pathlib.Path, values: np.ndarray, metadata: Mapping[str, Any]) -> None:
  """Writes a prompt `[P, D]` as an adapter that `PeftModel.from_pretrained` loads onto a T5.

  Args:
    metadata: `peft_type` (default PROMPT_TUNING) and `base_model` (a name on the hub) are taken.

  Raises:
    UserError: another peft_type.
  """
  method = metadata.get("peft_type", METHODS[0])
  if method not in METHODS:
    raise UserError("A prompt cannot be written as this PEFT adapter", found=repr(method),
                    wanted=" or ".join(METHODS), fix="leave peft_type out")
  length, width = values.shape
  config = {"peft_type": method, "task_type": TASK, "inference_mode": True,
            "num_virtual_tokens": length, "token_dim": width,
            # Without it PEFT takes 2, and refuses a tensor of P rows.
            "num_transformer_submodules": 1, "num_layers": None, "num_attention_heads": None,
            "base_model_name_or_path": metadata.get("base_model"), "revision": None}
  if method == "P_TUNING":
    # The encoder is folded into the table; PEFT still wants to know its shape.
    config |= {"encoder_hidden_size": width, "encoder_reparameterization_type": "MLP"}
  folder.parent.mkdir(parents=True, exist_ok=True)
  with new_folder(folder) as partial:
    save_file({TENSOR: np.ascontiguousarray(values, np.float32)}, partial / WEIGHTS,
              metadata={"format": "pt"})
    (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n",
                                  encoding="utf-8")


def _check_task(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Refuses an adapter of a model that is no T5; PEFT lets the task be left out."""
  task = config.get("task_type")
  if task not in (None, TASK):
    base = config.get("base_model_name_or_path")
    raise UserError("This PEFT adapter is of another kind of model",
                    found=f"{folder}: task_type {task!r}" + (f", of {base}" if base else ""),
                    wanted=f"task_type {TASK}, as of a T5",
                    fix="train the prompt anew on a T5: vectors of one model are none of another")


def _config(folder: pathlib.Path) -> dict[str, Any]:
  with open(file_in(folder, CONFIG), "rb") as file:
    content = file.read(_MAX_CONFIG + 1)
  if len(content) > _MAX_CONFIG:
    raise ValueError(f"{CONFIG} is larger than any configuration")
  try:
    config = json.loads(content)
  except RecursionError as error:
    raise ValueError(f"{CONFIG} is nested too deeply") from error
  if not isinstance(config, dict):
    raise ValueError(f"{CONFIG} is not an object")
  return config


def _count(config: Mapping[str, Any], key: str) -> int:
  value = config.get(key)
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise ValueError(f"{CONFIG} has {key} = {value!r}, not a count")
  return value


def _tensor(folder: pathlib.Path) -> np.ndarray:
  """`prompt_embeddings`, of a floating dtype."""
  if not (folder / WEIGHTS).is_file():
    if not (folder / PICKLED).is_file():
      raise ValueError(f"no {WEIGHTS} beside {CONFIG}")
    tensors = pickled.load(file_in(folder, PICKLED))
    if TENSOR not in tensors:
      raise ValueError(f"{PICKLED} has no {TENSOR}: {sorted(tensors)[:4]}")
    tensor = tensors[TENSOR]
  else:
    try:
      with safetensors.safe_open(file_in(folder, WEIGHTS), framework="numpy") as file:
        if TENSOR not in file.keys():
          raise ValueError(f"{WEIGHTS} has no {TENSOR}: {sorted(file.keys())[:4]}")
        tensor = file.get_tensor(TENSOR)
    except safetensors.SafetensorError as error:
      raise ValueError(f"{WEIGHTS}: {error}") from error
  # bfloat16 has a kind of its own in ml_dtypes.
  if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
    raise ValueError(f"{TENSOR} is {tensor.dtype}, not floats")
  return tensor
