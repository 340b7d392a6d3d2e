"""A run's LoRA or IA3 worked into the weights: the same logits, without a prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIG, GIN, backbone, model, save_backbone

from prompt_tuning import config as gin_config
from prompt_tuning import merge as merge_module
from prompt_tuning import trees
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.checkpoints import loading, method_files
from prompt_tuning.errors import UserError
from prompt_tuning.main import main
from prompt_tuning.merge import MergeConfig, merge
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.adapter import Adapter
from prompt_tuning.prompts.combined import Combined
from prompt_tuning.prompts.ia3 import IA3
from prompt_tuning.prompts.lora import Lora
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5 import T5

BOTH = Combined(CONFIG, {"lora": Lora(CONFIG, rank=2), "ia3": IA3(CONFIG)})


@pytest.fixture
def run(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "settings.json").write_text("{}")
  save_backbone(tmp_path / "backbone")
  return folder


def save_method(folder, method):
  """Random parameters of a method, as its run leaves them."""
  random = np.random.default_rng(0)
  shapes = trees.flatten(abstract_params(PromptedT5(T5(CONFIG), method))["prompt"])
  leaves = {name: random.normal(size=leaf.shape).astype(np.float32)
            for name, leaf in shapes.items()}
  method_files.write(folder / method_files.NAME, leaves, {})
  return trees.unflatten(leaves)


def settings(run, method, **changes):
  small = model(False)
  path = str(run.parent / "backbone")
  return MergeConfig(
    model=ModelConfig(backbone=CONFIG, prompt=method, vocabulary=small.vocabulary,
                      initial_checkpoint_path=changes.pop("start", path)),
    model_dir=str(run), output_dir=str(run.parent / "merged"), **changes)


def restored(path):
  expected = abstract_params(PromptedT5(T5(CONFIG)))["backbone"]
  return loading.restore(loading.check(str(path), CONFIG, None), expected)


def test_the_merged_backbone_gives_the_same_logits_without_a_prompt(run):
  prompt = save_method(run, BOTH)
  changed = merge(settings(run, BOTH))
  kernels = {"attention/query": "lora", "attention/value": "both", "attention/key": "ia3"}
  assert changed == 3 * len(kernels) * 16 * 16 + 2 * 32 * 16
  params = {"backbone": jax.tree.map(jnp.asarray, backbone(3)), "prompt": prompt}
  tokens = jnp.array([[5, 9, 200, 0], [7, 0, 0, 0]])
  logits = jax.jit(lambda module, params: module.apply({"params": params}, tokens, tokens[:, :2],
                                                        enable_dropout=False), static_argnums=0)
  wanted = logits(PromptedT5(T5(CONFIG), BOTH), params)
  found = logits(PromptedT5(T5(CONFIG)), {"backbone": restored(run.parent / "merged")})
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
  plain = logits(PromptedT5(T5(CONFIG)), {"backbone": params["backbone"]})
  assert np.abs(plain - wanted).max() > 0.1
  about = backbone_files.BackboneReader(str(run.parent / "merged")).metadata
  assert about["from"].endswith("backbone") and about["merged"].endswith("prompt.safetensors")


def test_layers_alone_change_in_the_dtype_that_is_asked_for(run):
  method = Lora(CONFIG, rank=2, targets="decoder/mlp/wo")
  prompt = save_method(run, method)["decoder.mlp.wo"]
  save_backbone(run / "backbone", seed=4)  # it trained the backbone too
  merge(settings(run, method, dtype="bfloat16"))
  wanted = trees.flatten(backbone(4))
  wanted["decoder/layers/mlp/wo/kernel"] = wanted["decoder/layers/mlp/wo/kernel"] + (
    16 / 2 * prompt["a"] @ prompt["b"])
  reader = backbone_files.BackboneReader(str(run.parent / "merged"))
  assert trees.differences({name: reader.read(name) for name in reader.leaves}, {
    name: leaf.astype(jnp.bfloat16) for name, leaf in wanted.items()}) == []


def test_the_command_takes_the_settings_of_the_run(run, capsys):
  save_method(run, Lora(CONFIG, rank=2))
  (run.parent / "small.gin").write_text(GIN)
  gin_config.load(["commands/model.gin", "models/tiny.gin", "prompts/lora.gin",
                   str(run.parent / "small.gin")], ["LORA_RANK = 2"])
  gin_config.build(ModelConfig)
  (run / "config.gin").write_text(gin_config.operative())
  command = ["merge", f"--gin.MODEL_DIR={run}", f"--gin.OUTPUT_DIR={run.parent / 'merged'}"]
  assert main(command) == 0
  assert "with 1,536 of the backbone's parameters changed" in capsys.readouterr().out
  assert backbone_files.BackboneReader(str(run.parent / "merged")).config == CONFIG
  assert main(command) == 2
  assert "OUTPUT_DIR exists" in capsys.readouterr().err


@pytest.mark.parametrize("method", [SoftPrompt(CONFIG, 3), Adapter(CONFIG, hidden=2), None,
                                    Combined(CONFIG, {"a": BOTH, "b": SoftPrompt(CONFIG, 3)})],
                         ids=lambda method: type(method).__name__)
def test_what_cannot_be_merged(run, method):
  with pytest.raises(UserError, match="cannot be worked into the backbone's weights"):
    merge(settings(run, method))
  assert not (run.parent / "merged").exists()


def test_a_folder_that_is_no_run(run):
  (run / "settings.json").unlink()
  with pytest.raises(UserError, match="MODEL_DIR holds no run"):
    merge(settings(run, BOTH))


def test_an_error_while_writing_leaves_nothing(run, monkeypatch):
  save_method(run, BOTH)
  monkeypatch.setattr(merge_module._Merged, "read", lambda *arguments: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    merge(settings(run, BOTH))
  assert not (run.parent / "merged").exists()
