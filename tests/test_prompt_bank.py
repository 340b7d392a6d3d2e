"""Prompts of different lengths and methods in one batch, against each one on its own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIG, backbone, model, save_prompt

from prompt_tuning import prompt_bank, trees
from prompt_tuning.checkpoints import method_files
from prompt_tuning.errors import UserError
from prompt_tuning.placement import Placement
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.prompts.combined import Combined
from prompt_tuning.prompts.lora import Lora
from prompt_tuning.prompts.prefix import PrefixPrompt
from prompt_tuning.prompts.soft import SoftPrompt
from prompt_tuning.t5 import T5

LENGTHS = {"short": 2, "long": 5, "middle": 3}
INPUTS = [np.array([7, 9, 11, 1], np.int32), np.array([30, 1], np.int32),
          np.array([5, 6, 7, 8, 9, 1], np.int32), np.array([60, 61, 1], np.int32)]
DECODER = np.array([[0, 4, 8]], np.int32)
T = 6


@pytest.fixture
def given(tmp_path):
  tables = {name: save_prompt(tmp_path / f"{name}.npy", seed=i, length=length)
            for i, (name, length) in enumerate(LENGTHS.items())}
  return tables, [*((name, str(tmp_path / f"{name}.npy")) for name in LENGTHS), ("plain", "none")]


def logits_of(module):
  return jax.jit(lambda params, tokens, decoder, ids: module.apply(
    {"params": params}, tokens, decoder, enable_dropout=False, prompt_ids=ids))


def alone(module, prompt, tokens):
  """Logits of one unpadded row."""
  params = {"backbone": backbone(3)} | ({"prompt": prompt} if prompt else {})
  return np.asarray(logits_of(module)(params, tokens[None], DECODER, None))[0]


def together(group, order, inputs, run):
  tokens = group.rows(order, inputs, T)
  decoder = np.repeat(DECODER, len(order), axis=0)
  params = {"backbone": backbone(3), "prompt": group.params}
  return np.asarray(run(params, tokens, decoder, np.array(order, np.int32)))


def test_lengths_share_a_batch_and_equal_each_on_its_own(given):
  tables, pairs = given
  bank = prompt_bank.read_bank(model(), pairs)
  group, = bank.groups
  assert bank.tasks == {name: ((0, i),) for i, name in enumerate([*LENGTHS, "plain"])}
  assert group.model.prompt_in_front and group.params["embedding"].shape == (4, 5, 16)
  run = logits_of(group.model)
  found = together(group, [0, 1, 2, 3], INPUTS, run)
  for i, (name, ids) in enumerate(zip([*LENGTHS, None], INPUTS, strict=True)):
    table = tables.get(name)
    length = 0 if table is None else len(table)
    own = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, length) if length else None)
    row = np.concatenate([-1 - np.arange(length), ids]).astype(np.int32)
    wanted = alone(own, {"embedding": jnp.asarray(table)} if length else {}, row)
    assert np.abs(found[i] - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
  # Filled up between prompt and input, the distances and so the answers are others.
  shifted = group.rows([0], INPUTS[:1], T)
  shifted = np.concatenate([shifted[:, 3:5], np.zeros((1, 3), np.int32), shifted[:, 5:]], axis=1)
  own = {"embedding": jnp.concatenate([jnp.asarray(tables["short"]), jnp.zeros((3, 16))])}
  wrong = alone(PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, 5)), own, shifted[0])
  assert np.abs(found[0] - wrong).max() > 1e-2

  other = together(group, [0, 3, 1, 2], [INPUTS[0], *INPUTS[:3]], run)
  np.testing.assert_array_equal(other[0], found[0])
  moved = together(group, [1, 2, 3, 0], [*INPUTS[1:], INPUTS[0]], run)
  np.testing.assert_array_equal(moved, found[[1, 2, 3, 0]])


def test_templates_of_their_own_share_a_batch(given, tmp_path):
  tables, _ = given

  def rules(folder):
    after = "{inputs} ok {prompt}" if folder.endswith("short") else "{prompt:4}{inputs}{prompt:1}"
    return model(template=after)

  for name in ("short", "long"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "settings.json").write_text("{}")
    np.save(tmp_path / name / "prompt.npy", tables[name])
  bank = prompt_bank.read_bank(model(), [(name, str(tmp_path / name)) for name in ("short", "long")]
                               + [("plain", "none")], rules)
  group, = bank.groups
  assert not group.model.prompt_in_front
  found = together(group, [0, 1, 2], INPUTS[:3], logits_of(group.model))
  ok = [b + 3 for b in b"ok"]
  rows = [[*INPUTS[0][:-1], *ok, -1, -2, 1], [-1, -2, -3, -4, *INPUTS[1][:-1], -5, 1], INPUTS[2]]
  for i, (name, row) in enumerate(zip(("short", "long", None), rows, strict=True)):
    prompt = {} if name is None else {"embedding": jnp.asarray(tables[name])}
    own = PromptedT5(T5(CONFIG), SoftPrompt(CONFIG, len(tables[name])) if name else None,
                     prompt_in_front=False)
    wanted = alone(own, prompt, np.array(row, np.int32))
    assert np.abs(found[i] - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


def test_the_file_of_a_run_stands_where_its_run_put_it(given, tmp_path):
  tables, _ = given
  (tmp_path / "run").mkdir()
  (tmp_path / "run/settings.json").write_text('{"model": {"template": "{inputs}{prompt}"}}')
  np.save(tmp_path / "run/prompt.npy", tables["short"])
  pairs = [("after", str(tmp_path / "run/prompt.npy")), ("front", str(tmp_path / "long.npy"))]
  for given_pairs in (pairs, pairs[::-1]):
    group, = prompt_bank.read_bank(model(), given_pairs).groups
    found = {prompt.name: prompt.placement for prompt in group.prompts}
    assert found["after"].after == (-1, -2) and found["front"] == Placement.front(5)


def save_run(folder, method, seed):
  """A MODEL_DIR of a method that is more than a table; its leaves."""
  folder.mkdir()
  (folder / "settings.json").write_text("{}")
  shapes = abstract_params(PromptedT5(T5(CONFIG), method))["prompt"]
  rng = np.random.default_rng(seed)
  leaves = trees.map_with_path(lambda _, s: rng.normal(size=s.shape).astype(np.float32), shapes)
  method_files.write(folder / "prompt.safetensors", trees.flatten(leaves), {})
  return leaves


def test_methods_alike_share_a_batch_and_others_are_grouped(tmp_path):
  methods = {"prefix": PrefixPrompt(CONFIG, 2, hidden=None), "lora": Lora(CONFIG, rank=2)}
  names = ["prefix_a", "lora_a", "prefix_b", "lora_b"]
  leaves = [save_run(tmp_path / name, methods[name[:-2]], i) for i, name in enumerate(names)]
  save_prompt(tmp_path / "table.npy")
  pairs = [*((name, str(tmp_path / name)) for name in names), ("t", str(tmp_path / "table.npy")),
           ("plain", "none")]
  bank = prompt_bank.read_bank(
    model(), pairs, lambda folder: run_model(methods[folder.split("/")[-1][:-2]]))
  assert [[p.name for p in group.prompts] for group in bank.groups] == [
    ["prefix_a", "prefix_b"], ["lora_a"], ["lora_b"], ["t", "plain"]]
  group = bank.groups[0]
  found = together(group, [0, 1, 0], INPUTS[:3], logits_of(group.model))
  for i, own in enumerate([leaves[0], leaves[2], leaves[0]]):
    wanted = alone(PromptedT5(T5(CONFIG), methods["prefix"]), own, INPUTS[i])
    assert np.abs(found[i] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def run_model(method):
  return dataclasses.replace(model(False), prompt=method)


def test_a_run_of_a_bank_gives_its_task_s_row(tmp_path):
  tables = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
  (tmp_path / "settings.json").write_text("{}")
  (tmp_path / "summary.json").write_text(json.dumps({"prompt_ids": {"sst2": 1, "rte": 0}}))
  np.save(tmp_path / "prompt.npy", tables)
  banked = run_model(SoftPrompt(CONFIG, 3, num_prompts=2))
  bank = prompt_bank.read_bank(model(), [("sst2", str(tmp_path))], lambda folder: banked)
  np.testing.assert_array_equal(bank.groups[0].params["embedding"], tables[1])
  with pytest.raises(UserError, match="no prompt for this task(.|\n)*did you mean 'sst2'"):
    prompt_bank.read_bank(model(), [("sst", str(tmp_path))], lambda folder: banked)


def test_a_run_of_a_bank_beside_lora_gives_its_task_s_row(tmp_path):
  """LoRA's leaves have an axis of layers in front, no bank's."""
  method = Combined(CONFIG, {"soft": SoftPrompt(CONFIG, 3, num_prompts=2),
                             "lora": Lora(CONFIG, rank=2)})
  leaves = save_run(tmp_path / "run", method, 0)
  (tmp_path / "run/summary.json").write_text(json.dumps({"prompt_ids": {"rte": 0, "sst2": 1}}))
  bank = prompt_bank.read_bank(model(), [("sst2", str(tmp_path / "run"))],
                               lambda folder: run_model(method))
  group, = bank.groups
  found = together(group, [0], INPUTS[:1], logits_of(group.model))[0]
  row = np.concatenate([-1 - np.arange(3), INPUTS[0]]).astype(np.int32)
  params = {"backbone": backbone(3), "prompt": leaves}
  run = logits_of(PromptedT5(T5(CONFIG), method))
  other, wanted = (np.asarray(run(params, row[None], DECODER, np.array([i])))[0] for i in (0, 1))
  assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
  assert np.abs(other - wanted).max() > 1e-2


def test_members_of_a_run_are_an_ensemble(tmp_path):
  for i in (10, 2):
    (tmp_path / "members" / str(i)).mkdir(parents=True)
    save_prompt(tmp_path / "members" / str(i) / "prompt.npy", seed=i)
  bank = prompt_bank.read_bank(model(), [("t", str(tmp_path / "members"))], lambda run: model())
  assert bank.tasks == {"t": ((0, 0), (0, 1))}
  assert [p.source.split("/")[-2] for p in bank.groups[0].prompts] == ["2", "10"]
  (tmp_path / "empty" / "members").mkdir(parents=True)
  with pytest.raises(UserError, match="The run has no members"):
    prompt_bank.read_bank(model(), [("t", str(tmp_path / "empty" / "members"))])


def test_random_weights_of_another_seed_are_another_backbone(tmp_path):
  for name, seed in (("a", 0), ("b", 1)):
    (tmp_path / name).mkdir()
    (tmp_path / name / "settings.json").write_text("{}")
    (tmp_path / name / "summary.json").write_text(json.dumps({"seed": seed}))
    save_prompt(tmp_path / name / "prompt.npy")
  bank = prompt_bank.read_bank(model(), [("a", str(tmp_path / "a"))], lambda run: model())
  assert len(bank.load(0)) == 1
  both = [("a", str(tmp_path / "a")), ("b", str(tmp_path / "b"))]
  bank = prompt_bank.read_bank(model(), both, lambda run: model())
  with pytest.raises(UserError, match="another backbone(.|\n)*weights of RANDOM_SEED = 1"):
    bank.load(0)


def test_a_folder_without_run_or_prompt(tmp_path):
  with pytest.raises(UserError, match="neither a run nor a prompt in this folder"):
    prompt_bank.read_bank(model(), [("t", str(tmp_path))])


def test_a_prompt_of_another_backbone_is_refused(tmp_path):
  (tmp_path / "settings.json").write_text("{}")
  save_prompt(tmp_path / "prompt.npy")
  with pytest.raises(UserError, match="of another backbone\n.*INITIAL_CHECKPOINT_PATH elsewhere"):
    prompt_bank.read_bank(model(), [("t", str(tmp_path))],
                          lambda run: model(initial_checkpoint_path="elsewhere"))


def test_a_file_that_is_not_there_is_called_by_its_task(tmp_path):
  for method, name in ((SoftPrompt(CONFIG, 3), "none.npy"), (Lora(CONFIG, rank=2),
                                                            "prompt.safetensors")):
    with pytest.raises(UserError, match="The prompt of 'sst2' (does not exist|cannot be read)"):
      prompt_bank.read_bank(run_model(method), [("sst2", str(tmp_path / name))])
