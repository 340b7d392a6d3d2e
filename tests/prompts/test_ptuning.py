"""P-tuning's encoders against torch's, and against PEFT's layout."""

import pathlib

import jax
import numpy as np
import pytest
from descriptors import CONFIG

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.ptuning import PTuning

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "torch_lstm.npz"
LENGTH, HIDDEN = 5, 6


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


def table(method, params):
  return jax.jit(lambda p: method.apply({"params": p}, PromptContext()).embeds)(params)


def near(actual, wanted):
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def linear(golden, torch_name, name):
  return {f"{name}_kernel": golden[f"{torch_name}.weight"].T,
          f"{name}_bias": golden[f"{torch_name}.bias"]}


def lstm_params(golden):
  """torch's tensors in the layout that ptuning.py documents."""
  params = {"embedding": golden["input"], **linear(golden, "lstm/head.0", "mlp_0"),
            **linear(golden, "lstm/head.2", "mlp_1")}
  for layer in range(2):
    def both(name, layer=layer):
      return np.stack([golden[f"lstm/lstm.{name}_l{layer}{way}"] for way in ("", "_reverse")])
    params |= {f"lstm_{layer}_inputs": both("weight_ih").swapaxes(1, 2),
               f"lstm_{layer}_recurrent": both("weight_hh").swapaxes(1, 2),
               f"lstm_{layer}_bias": both("bias_ih") + both("bias_hh")}
  return params


@pytest.mark.parity
def test_lstm_equals_torch(golden):
  """Two layers, both directions, and the paper's head."""
  near(table(PTuning(CONFIG, LENGTH, hidden=HIDDEN), lstm_params(golden)), golden["lstm/output"])


@pytest.mark.parity
def test_mlp_equals_torch(golden):
  params = {"embedding": golden["input"], **linear(golden, "mlp.0", "mlp_0"),
            **linear(golden, "mlp.2", "mlp_1"), **linear(golden, "mlp.4", "mlp_2")}
  near(table(PTuning(CONFIG, LENGTH, encoder="mlp", hidden=HIDDEN), params), golden["mlp/output"])


def test_one_layer_equals_a_loop(golden):
  """The recurrence in plain numpy, from both ends."""
  params = {name: leaf for name, leaf in lstm_params(golden).items() if "lstm_1" not in name}
  sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
  hidden = []
  for way in (0, 1):
    output, cell = np.zeros(HIDDEN), np.zeros(HIDDEN)
    rows = []
    for x in golden["input"][::-1] if way else golden["input"]:
      gates = (x @ params["lstm_0_inputs"][way] + output @ params["lstm_0_recurrent"][way]
               + params["lstm_0_bias"][way])
      enter, forget, new, leave = gates.reshape(4, HIDDEN)
      cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
      output = sigmoid(leave) * np.tanh(cell)
      rows.append(output)
    hidden.append(np.stack(rows[::-1] if way else rows))
  hidden = np.concatenate(hidden, axis=1)
  hidden = np.maximum(hidden @ params["mlp_0_kernel"] + params["mlp_0_bias"], 0)
  near(table(PTuning(CONFIG, LENGTH, hidden=HIDDEN, num_layers=1), params),
       hidden @ params["mlp_1_kernel"] + params["mlp_1_bias"])


@pytest.mark.parametrize("encoder, hidden", [("lstm", CONFIG.emb_dim // 2),
                                             ("mlp", CONFIG.emb_dim)])
def test_the_width_of_the_papers_code_is_the_default(encoder, hidden):
  def shapes(**fields):
    method = PTuning(CONFIG, LENGTH, encoder=encoder, **fields)
    return jax.eval_shape(method.init, jax.random.key(0), PromptContext())
  assert shapes() == shapes(hidden=hidden)


def test_the_embeddings_start_from_the_initialiser():
  """The encoder's weights are left as they were drawn."""
  start = np.arange(LENGTH * 8, dtype=np.float32).reshape(LENGTH, 8)
  method = PTuning(CONFIG, LENGTH, lambda key, length, sources: start[:length])
  params = method.initial_params(jax.random.key(0), {"mlp_0_bias": 3}, Sources(start))
  assert params["embedding"] is not start and params["mlp_0_bias"] == 3
  np.testing.assert_array_equal(params["embedding"], start)


@pytest.mark.parametrize("fields, what, fix", [
  ({"encoder": "lstn"}, "PTuning.encoder is unknown", "did you mean 'lstm'?"),
  ({"num_layers": 3}, "PTuning.num_layers is not a depth", "PROMPT_ENCODER_LAYERS=2"),
  ({"hidden": 0}, "PTuning.hidden is not a count", "set PROMPT_ENCODER_HIDDEN"),
  ({"length": True}, "PTuning.length is not a count", "set PROMPT_LENGTH")])
def test_fields_are_checked(fields, what, fix):
  with pytest.raises(UserError) as error:
    PTuning(CONFIG, **{"length": LENGTH, **fields})
  assert error.value.what == what and fix in error.value.fix
