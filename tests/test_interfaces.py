"""T5Config's errors, each with its message, and the mask of token ids."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config, is_token

SIZES = dict(vocab_size=20, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12, num_encoder_layers=2,
             num_decoder_layers=2)


@pytest.mark.parametrize("change,what,found,fix", [
  ({"emb_dim": 0}, "emb_dim is not a size", "0", "set emb_dim in the model's file"),
  ({"num_heads": 2.0}, "num_heads is not a size", "2.0", "set num_heads in the model's file"),
  ({"dtype": "bfloat61"}, "dtype is unknown", "'bfloat61'", "did you mean 'bfloat16'"),
  ({"param_dtype": "int8"}, "param_dtype is unknown", "'int8'",
   "choose one of: bfloat16, float16, float32"),
  ({"remat": "ful"}, "remat is unknown", "'ful'", "did you mean 'full'?"),
  ({"mlp_activations": ("gelu", "linaer")}, "mlp_activations has an unknown activation",
   "linaer", "did you mean 'linear'?"),
  ({"dropout_rate": 1.0}, "dropout_rate is not a probability", "1.0",
   "set DROPOUT_RATE, 0.0 for prompts"),
])
def test_errors(change, what, found, fix):
  with pytest.raises(UserError) as error:
    T5Config(**{**SIZES, **change})
  assert error.value.what == "T5Config." + what
  assert error.value.found == found
  assert error.value.fix.startswith(fix)


def test_virtual_tokens_are_tokens():
  np.testing.assert_array_equal(is_token(jnp.array([[-2, -1, 0, 1, 7]])),
                                [[True, True, False, True, True]])


def test_activations_may_be_a_list():
  assert T5Config(**SIZES, mlp_activations=["relu"]).mlp_activations == ("relu",)
