"""What T5X reads and saves beside its own, on trees as T5X hands them over; no T5X is needed."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from small_models import CONFIG as STACKED
from small_models import backbone, save_backbone

from prompt_tuning import trees
from prompt_tuning.checkpoints import loading, method_files, prompt_files, t5x_legacy, t5x_orbax
from prompt_tuning.checkpoints.stacking import in_layout
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompts.initializers import ClassLabels, FromFile, SampledVocabulary, Uniform
from prompt_tuning.prompts.prefix import PrefixPrompt
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.run_config import ModelConfig
from prompt_tuning.t5x_bridge import names
from prompt_tuning.t5x_bridge.checkpoint import Restore, SavePrompt, Start, total_steps

CONFIG = dataclasses.replace(STACKED, scan_layers=False)
PROMPT = "encoder/prompt/prompt/prompt"
FORMS = {"legacy": t5x_legacy, "orbax": t5x_orbax}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
  """The same weights in T5X's two formats, at step 1000, and in ours."""
  root = tmp_path_factory.mktemp("t5x")
  save_backbone(root / "ours")
  reader = in_layout(loading.find(path := str(root / "ours")).open(path), False)
  for name, form in FORMS.items():
    form.write(str(root / name), reader, config=CONFIG, metadata={"step": 1000})
  return root


def shapes(prompt=True):
  """The target of a run, as shapes by T5X's names."""
  flat = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
          for name, leaf in loading.expected_leaves(CONFIG).items()}
  if prompt:
    flat[PROMPT] = jax.ShapeDtypeStruct((3, CONFIG.emb_dim), np.float32)
  return flat


def spec(leaf):
  """As T5X describes an array beside its index."""
  return {"driver": "zarr", "kvstore": {"driver": "file", "path": "x"},
          "metadata": {"shape": list(leaf.shape)}}


def restore(path, given, **fields):
  """What the hook makes of a checkpoint whose target is `given`."""
  hook = Restore(backbone=CONFIG, vocabulary="bytes", path=str(path), **fields)
  target = {name: leaf if leaf is None else spec(leaf) for name, leaf in given.items()}
  state = {"step": 1000, "param_states": {"encoder": {"m": spec(np.zeros(1))}}}
  return hook, {"target": trees.unflatten(target), "state": state}, {
    "target": trees.unflatten(shapes()), "state": {"step": 0, "param_states": {}}}


@pytest.mark.parametrize("form", FORMS)
def test_the_backbone_is_taken_and_the_prompt_and_old_optimizer_left(checkpoints, form, caplog):
  hook, found, wanted = restore(checkpoints / form, shapes(prompt=False), trains=True)
  with caplog.at_level(logging.INFO):
    result = hook(found, wanted)
  assert result == {"target": found["target"], "state": {"step": 1000}}
  count = sum(np.prod(leaf.shape) for leaf in shapes(prompt=False).values())
  assert f"Restored {len(shapes(prompt=False))} parameters ({count:,} numbers)" in caplog.text
  assert "initialised 1 of the prompt (48 numbers)" in caplog.text


@pytest.mark.parametrize("change, message", [
  (lambda flat: flat.pop("decoder/decoder_norm/scale"),
   r"missing \['decoder/decoder_norm/scale'\] \(1\), unexpected \[\] \(0\)"),
  (lambda flat: flat.update({"decoder/extra/kernel": np.zeros((2, 2))}),
   r"missing \[\] \(0\), unexpected \['decoder/extra/kernel'\] \(1\)"),
  (lambda flat: flat.update({"encoder/encoder_norm/scale": np.zeros(17)}),
   r"another shape(.*\n)*.*encoder/encoder_norm/scale: \(17,\)(.*\n)*.*\(16,\)"),
  (lambda flat: flat.update({PROMPT: np.zeros((3, 16))}),
   r"unexpected \['encoder/prompt/prompt/prompt'\] \(1\)(.*\n)*.*none of the prompt(.*\n)*"
   r".*numpy_checkpoints")])
def test_anything_else_is_an_error(checkpoints, change, message):
  given = shapes(prompt=False)
  change(given)
  hook, found, wanted = restore(checkpoints / "legacy", given, trains=True)
  with pytest.raises(UserError, match=message):
    hook(found, wanted)


def test_shapes_that_orbax_does_not_say_are_read_from_the_checkpoint(checkpoints):
  """Orbax would fill a larger array in silence."""
  wider = dataclasses.replace(CONFIG, mlp_dim=33)
  hook = Restore(backbone=wider, vocabulary="bytes", path=str(checkpoints / "orbax"), trains=True)
  target = trees.unflatten({name: object() for name in shapes(prompt=False)})
  with pytest.raises(UserError, match="mlp_dim: 32 in the checkpoint"):
    hook({"target": target, "state": {"step": 0}},
         {"target": trees.unflatten(shapes()), "state": {}})


def test_another_vocabulary_is_an_error(checkpoints):
  hook = Restore(backbone=CONFIG, vocabulary="tiny", path=str(checkpoints / "ours"), trains=True)
  target = trees.unflatten({name: spec(leaf) for name, leaf in shapes(prompt=False).items()})
  with pytest.raises(UserError, match="T5X cannot read this checkpoint(.*\n)*.*--to t5x"):
    hook({"target": target, "state": {"step": 0}},
         {"target": trees.unflatten(shapes()), "state": {}})


def test_a_resume_takes_everything_and_needs_everything(checkpoints):
  hook, found, wanted = restore(checkpoints / "legacy", shapes(), trains=True)
  assert hook(found, wanted, is_resuming=True) == found
  hook, found, wanted = restore(checkpoints / "legacy", shapes(prompt=False), trains=True)
  with pytest.raises(UserError, match=r"missing \['encoder/prompt(.*\n)*.*another MODEL_DIR"):
    hook(found, wanted, is_resuming=True)


def test_an_evaluation_takes_the_prompt_from_the_checkpoint_or_from_its_file(checkpoints):
  hook, found, wanted = restore(checkpoints / "legacy", shapes())
  assert names.PROMPT.split("/")[1] in hook(found, wanted)["target"]["encoder"]
  hook, found, wanted = restore(checkpoints / "legacy", shapes(prompt=False))
  with pytest.raises(UserError, match=r"missing \['encoder/prompt"):
    hook(found, wanted)
  hook, found, wanted = restore(checkpoints / "legacy", shapes(prompt=False), prompt_file="x.npy")
  assert hook(found, wanted)["target"] == found["target"]


@pytest.mark.parametrize("shape", [(3, 16), (2, 3, 16)], ids=["prompt", "bank"])
def test_the_prompt_is_saved_by_itself(tmp_path, shape):
  table = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  prompt = SoftPrompt(CONFIG, 3, num_prompts=shape[0] if len(shape) == 3 else 1)
  save = SavePrompt(prompt=prompt, model_dir=str(tmp_path))
  for step, scale in ((900, 1.0), (1000, 2.0), (1000, 3.0)):
    state = {"target": names.to_t5x({"prompt": {"embedding": scale * table}, "backbone": {}}),
             "state": {"step": np.int32(step)}}
    assert save(state, "infos") == (state, "infos")
  found = prompt_files.read(str(tmp_path))
  assert found.path == str(tmp_path / f"numpy_checkpoints/checkpoint_1000/{PROMPT}").replace(
    PROMPT, PROMPT.replace("/", "."))
  np.testing.assert_array_equal(found.values, np.float32(3.0) * table)
  np.testing.assert_array_equal(np.load(tmp_path / "prompt.npy"), found.values)
  np.testing.assert_array_equal(np.load(
    tmp_path / "numpy_checkpoints/checkpoint_900/prompt.npy"), table)
  assert not list(tmp_path.rglob("*.partial"))


def test_a_method_that_is_more_than_a_table_is_saved_as_it_is_served(tmp_path):
  prompt = PrefixPrompt(CONFIG, 2, hidden=4)
  from prompt_tuning.prompted import PromptedT5, init_prompt
  from prompt_tuning.prompts.initializers import Sources
  from prompt_tuning.t5 import T5
  params = init_prompt(jax.random.key(1), PromptedT5(T5(CONFIG), prompt),
                       Sources(embedding=np.zeros((264, 16), np.float32)))
  SavePrompt(prompt=prompt, model_dir=str(tmp_path))(
    {"target": names.to_t5x({"prompt": params}), "state": {"step": 5}}, None)
  folded = trees.flatten(prompt.fold(params))
  file = tmp_path / "numpy_checkpoints/checkpoint_5" / method_files.NAME
  found = method_files.read(str(file), {name: leaf.shape for name, leaf in folded.items()})
  for name, leaf in folded.items():
    np.testing.assert_array_equal(found[name], leaf)
  assert (tmp_path / method_files.NAME).read_bytes() == file.read_bytes()


STARTS = {"uniform": Uniform(), "sampled": SampledVocabulary(),
          "labels": ClassLabels(("yes", "no"))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("start", STARTS)
def test_a_prompt_starts_where_our_own_run_of_the_seed_does(checkpoints, form, start):
  prompt = SoftPrompt(CONFIG, 3, STARTS[start])
  found = Start(backbone=CONFIG, prompt=prompt, vocabulary="bytes",
                path=str(checkpoints / form), seed=4).params
  native = ModelConfig(backbone=STACKED, prompt=SoftPrompt(STACKED, 3, STARTS[start]),
                       vocabulary="bytes", initial_checkpoint_path=str(checkpoints / "ours"))
  wanted = native.start_prompt(backbone(3), 4)
  np.testing.assert_array_equal(found["embedding"], wanted["embedding"])


def test_a_prefix_starts_from_words_as_in_our_own_run(checkpoints):
  def prompt(config):
    return PrefixPrompt(config, 2, words="ab")
  found = Start(backbone=CONFIG, prompt=prompt(CONFIG), vocabulary="bytes",
                path=str(checkpoints / "legacy"), seed=4).params
  native = ModelConfig(backbone=STACKED, prompt=prompt(STACKED), vocabulary="bytes",
                       initial_checkpoint_path=str(checkpoints / "ours"))
  wanted = native.start_prompt(backbone(3), 4)
  for name, leaf in wanted.items():
    np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-6)


def test_released_prompts_are_served(shared_data):
  """(100, 768), of the paper's authors, for T5 1.1 base; the same file natively."""
  sizes = T5Config(vocab_size=384, emb_dim=768, num_heads=12, head_dim=64, mlp_dim=2048,
                   num_encoder_layers=1, num_decoder_layers=1, scan_layers=False)
  for name in ("sst2", "mrpc", "rte"):
    file = str(shared_data / f"t5x/pretrained_prompts/t5_1_1_lm100k_base/{name}.npy")
    prompt = SoftPrompt(sizes, 100, FromFile("unused"))
    start = Start(backbone=sizes, prompt=prompt, vocabulary="bytes", path="unread",
                  prompt_file=file)
    native = ModelConfig(backbone=sizes, prompt=prompt, vocabulary="bytes",
                         initial_checkpoint_path="random").load_prompt(file)
    np.testing.assert_array_equal(start.params["embedding"], np.load(file))
    np.testing.assert_array_equal(native["embedding"], np.load(file))


def test_a_prompt_file_without_a_prompt_is_an_error():
  with pytest.raises(UserError, match="PROMPT_FILE is given, but the model has no prompt"):
    Start(backbone=CONFIG, prompt=None, vocabulary="bytes", path="x", prompt_file="x.npy")


@pytest.mark.parametrize("form", FORMS)
def test_steps_are_counted_on_from_the_checkpoints(checkpoints, form):
  assert total_steps(20, str(checkpoints / form)) == 1020


def test_steps_of_another_kind_are_an_error(checkpoints):
  for steps in (0, 2.5, True, None):
    with pytest.raises(UserError, match="TRAIN_STEPS is not a count"):
      total_steps(steps, str(checkpoints / "legacy"))
  with pytest.raises(UserError, match="not a checkpoint(.*\n)*.*does not exist"):
    total_steps(5, str(checkpoints / "checkpoint_none"))
