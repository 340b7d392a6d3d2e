"""The size table, the names of the leaves and their logical axes."""

import json
import pathlib
import sys

import pytest

from prompt_tuning import config, trees
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompted import PromptedT5, abstract_params, logical_axes
from prompt_tuning.t5 import T5

ROOT = pathlib.Path(__file__).parent.parent
MODELS = ROOT / "gin_configs" / "models"
NAMES = ROOT / "tests" / "golden" / "leaf_names.json"
REGENERATE = "to regenerate: python tests/test_t5.py"

# Recomputed from the published architectures; T5 1.1's are those of Lester et al. 2021.
PARAMETERS = {
  "t5_1_1_small": 76_961_152, "t5_1_1_base": 247_577_856, "t5_1_1_large": 783_150_080,
  "t5_1_1_xl": 2_849_757_184, "t5_1_1_xxl": 11_135_332_352,
  "t5_1_0_small": 60_506_624, "t5_1_0_base": 222_903_552, "t5_1_0_large": 737_668_096,
  "t5_1_0_3b": 2_851_598_336, "t5_1_0_11b": 11_307_321_344,
  "mt5_small": 300_176_768, "mt5_base": 582_401_280, "mt5_large": 1_229_581_312,
  "mt5_xl": 3_742_619_648, "mt5_xxl": 12_921_057_280,
  "byt5_small": 299_637_760, "byt5_base": 581_653_248, "byt5_large": 1_228_183_552,
  "byt5_xl": 3_737_801_728, "byt5_xxl": 12_906_899_328,
}
VOCABULARIES = {"t5": "t5", "mt5": "mt5", "byt5": "bytes"}

# T5X's names of the leaves below each layer, and of the others, with their logical axes.
ATTENTION = {"query/kernel": ("embed", "joined_kv"), "key/kernel": ("embed", "joined_kv"),
             "value/kernel": ("embed", "joined_kv"), "out/kernel": ("joined_kv", "embed")}
GATED = {"wi_0/kernel": ("embed", "mlp"), "wi_1/kernel": ("embed", "mlp"),
         "wo/kernel": ("mlp", "embed")}
T5X_LAYER = {
  "encoder": {"pre_attention_layer_norm": {"scale": ("embed",)}, "attention": ATTENTION,
              "pre_mlp_layer_norm": {"scale": ("embed",)}, "mlp": GATED},
  "decoder": {"pre_self_attention_layer_norm": {"scale": ("embed",)}, "self_attention": ATTENTION,
              "pre_cross_attention_layer_norm": {"scale": ("embed",)},
              "encoder_decoder_attention": ATTENTION,
              "pre_mlp_layer_norm": {"scale": ("embed",)}, "mlp": GATED}}
T5X_OTHERS = {
  "token_embedder/embedding": ("vocab", "embed"),
  "encoder/relpos_bias/rel_embedding": ("heads", "relpos_buckets"),
  "encoder/encoder_norm/scale": ("embed",),
  "decoder/relpos_bias/rel_embedding": ("heads", "relpos_buckets"),
  "decoder/decoder_norm/scale": ("embed",), "decoder/logits_dense/kernel": ("embed", "vocab")}


def tiny(**changes) -> PromptedT5:
  sizes = dict(vocab_size=20, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12,
               num_encoder_layers=2, num_decoder_layers=3)
  return PromptedT5(T5(T5Config(**{**sizes, **changes})))


def table(model: PromptedT5) -> dict[str, list]:
  """path -> [shape, logical axes]."""
  shapes = trees.flatten(abstract_params(model)["backbone"])
  axes = trees.flatten(logical_axes(model)["backbone"])
  assert shapes.keys() == axes.keys()
  return {path: [list(leaf.shape), list(axes[path])] for path, leaf in shapes.items()}


def tables() -> dict[str, dict]:
  return {"scanned": table(tiny()), "unscanned": table(tiny(scan_layers=False)),
          "scanned_t5_1_0": table(tiny(mlp_activations=("relu",), logits_via_embedding=True))}


def t5x_axes(layers: dict[str, list[str]], ahead: tuple[str, ...]) -> dict[str, list[str]]:
  axes = dict(T5X_OTHERS)
  for stack, modules in T5X_LAYER.items():
    for layer in layers[stack]:
      for module, leaves in modules.items():
        for leaf, names in leaves.items():
          axes[f"{stack}/{layer}/{module}/{leaf}"] = ahead + names
  return {path: list(names) for path, names in axes.items()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
  config.load([f"models/{name}.gin"], [])
  t5_config = config.build(T5Config)
  assert trees.count(abstract_params(PromptedT5(T5(t5_config)))) == PARAMETERS[name]
  text = (MODELS / f"{name}.gin").read_text(encoding="utf-8")
  assert f": {PARAMETERS[name]:,} parameters." in text.splitlines()[0]
  assert f"VOCABULARY = '{VOCABULARIES[name.split('_')[0]]}'\n" in text
  assert t5_config.dtype == "bfloat16" and t5_config.dropout_rate == 0.0


def test_every_size_is_counted():
  own = {path.stem for path in MODELS.glob("*.gin") if path.stem.startswith("family_")} | {"tiny"}
  assert {path.stem for path in MODELS.glob("*.gin")} - own == set(PARAMETERS)


@pytest.mark.parametrize("layout", ["scanned", "unscanned", "scanned_t5_1_0"])
def test_leaf_names_shapes_and_axes(layout):
  assert tables()[layout] == json.loads(NAMES.read_text())[layout], REGENERATE


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
def test_names_and_axes_are_those_of_t5x(scan_layers):
  if scan_layers:
    wanted = t5x_axes({"encoder": ["layers"], "decoder": ["layers"]}, ("layers",))
  else:
    wanted = t5x_axes({"encoder": ["layers_0", "layers_1"],
                       "decoder": ["layers_0", "layers_1", "layers_2"]}, ())
  ours = {path: axes for path, (_, axes) in table(tiny(scan_layers=scan_layers)).items()}
  assert ours == wanted


def test_t5_1_0_ties_its_logits_and_has_one_input_kernel():
  names = set(table(tiny(mlp_activations=("relu",), logits_via_embedding=True)))
  assert "decoder/logits_dense/kernel" not in names
  assert {n for n in names if n.startswith("encoder/layers/mlp/")} == {
    "encoder/layers/mlp/wi/kernel", "encoder/layers/mlp/wo/kernel"}


def test_parameters_are_stored_in_their_own_dtype():
  shapes = trees.flatten(abstract_params(tiny(param_dtype="bfloat16")))
  assert {str(leaf.dtype) for leaf in shapes.values()} == {"bfloat16"}
  shapes = trees.flatten(abstract_params(tiny(dtype="bfloat16")))
  assert {str(leaf.dtype) for leaf in shapes.values()} == {"float32"}


if __name__ == "__main__":
  layouts = [f'"{layout}": {{\n' + ",\n".join(
    f'"{path}": {json.dumps(row)}' for path, row in leaves.items()) + "\n}"
    for layout, leaves in tables().items()]
  NAMES.write_text("{" + ",\n".join(layouts) + "}\n")
  print(f"wrote {NAMES}", file=sys.stderr)
