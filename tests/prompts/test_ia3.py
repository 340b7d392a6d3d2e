"""IA3 against a numpy T5 whose kernels are scaled by hand, and its start."""

import jax
import numpy as np
import pytest
from descriptors import CASES, CONFIG, batch, forward, random_params, unstacked
from numpy_t5 import NumpyT5

from prompt_tuning import trees
from prompt_tuning.errors import UserError
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.prompts.ia3 import IA3, Rescale

MODEL = {case.name: case for case in CASES}["ia3"].model()


def near(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


class Scaled(NumpyT5):
  """The paper's equations: l_k and l_v on keys and values, l_ff on the inner activation."""

  def __init__(self, flat, config, prompt):
    super().__init__(flat, config)
    for name, scales in prompt.items():
      for layer in range(len(next(iter(scales.values())))):
        stack, module, projection = name.split(".")
        path = f"{stack}/layers_{layer}/{module}/{projection}/kernel"
        if projection in ("key", "value"):
          assert scales.keys() == {"output"}
          # (x W) * l, written as x (W diag(l)).
          self.flat[path] = self.flat[path] @ np.diag(scales["output"][layer])
        else:
          assert projection == "wo" and scales.keys() == {"input"}
          self.flat[path] = np.diag(scales["input"][layer]) @ self.flat[path]


def test_hooks_and_both_merged_layouts_equal_numpy():
  params, data = random_params(MODEL), batch(MODEL)
  plain = trees.flatten(unstacked({"backbone": params["backbone"]})["backbone"])
  slow = Scaled(plain, CONFIG, params["prompt"])
  assert len(params["prompt"]) == 2 + 1 + 4 + 1
  for backbone in (trees.flatten(params["backbone"]), plain):
    merged = MODEL.prompt.merge(backbone, params["prompt"])
    flat = trees.flatten(unstacked({"backbone": trees.unflatten(merged)})["backbone"])
    assert flat.keys() == slow.flat.keys()
    for path, leaf in slow.flat.items():
      near(flat[path], leaf, 1e-6)
  encoded, logits = forward(MODEL)(params, data)
  for row, tokens in enumerate(data["tokens"]):
    real = slow.encode(plain["token_embedder/embedding"][tokens], tokens != 0)
    near(encoded[row], real)
    near(logits[row], slow.decode(data["decoder_tokens"][row], real, tokens != 0))


def test_it_starts_as_the_plain_model():
  params, data = random_params(MODEL), batch(MODEL)
  start = jax.tree.map(np.ones_like, params["prompt"])
  plain = forward(PromptedT5(MODEL.backbone))({"backbone": params["backbone"]}, data)
  for hooked, alone in zip(forward(MODEL)({**params, "prompt": start}, data), plain, strict=True):
    near(hooked, alone, 1e-6)


def test_both_sides_of_some_layers_of_one_projection():
  prompt = IA3(CONFIG, outputs="encoder/mlp/wo", inputs=["encoder/mlp/wo[1:]"])
  boxed = prompt.init(jax.random.key(0), None)["params"]
  leaves = boxed["encoder.mlp.wo"]
  assert {name: box.unbox().shape for name, box in leaves.items()} == {
    "output": (2, 8), "input": (1, 12)}
  params = {"encoder.mlp.wo": {"output": np.array([[2.0] * 8, [3.0] * 8], np.float32),
                               "input": np.full((1, 12), 5.0, np.float32)}}
  hook = prompt.apply({"params": params}, None).encoder.projections["mlp/wo"]
  x = np.ones((4, 12), np.float32)
  for layer, factor in enumerate((2.0, 15.0)):
    own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], hook)
    np.testing.assert_array_equal(own(x, lambda x: x[:, :8]), np.full((4, 8), factor))
  kernel = np.ones((2, 12, 8), np.float32)
  merged = prompt.merge({"encoder/layers/mlp/wo/kernel": kernel}, params)
  np.testing.assert_array_equal(merged["encoder/layers/mlp/wo/kernel"][:, 0, 0], [2.0, 15.0])
  np.testing.assert_array_equal(Rescale()(x, lambda x: x), x)


@pytest.mark.parametrize("fields, what", [
  ({"outputs": (), "inputs": ()}, "IA3 scales nothing"),
  ({"outputs": ("keys",)}, "A pattern of IA3.outputs matches no projection"),
  ({"inputs": (".*/wo[5:]",)}, "A pattern of IA3.inputs takes no layer")])
def test_mistakes(fields, what):
  with pytest.raises(UserError) as error:
    IA3(CONFIG, **fields)
  assert error.value.what == what
