"""A model that PEFT has merged LoRA or IA3 into, read as a Hugging Face checkpoint: live alone."""

import numpy as np
import pytest

from prompt_tuning.checkpoints import hf, loading
from prompt_tuning.prompted import PromptedT5, abstract_params
from prompt_tuning.t5 import T5

pytestmark = pytest.mark.parity
INPUTS, TARGETS = np.array([[5, 6, 7, 1]]), np.array([[0, 9, 8]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_what_peft_merged_has_the_logits_of_the_adapter(tmp_path, kind):
  peft = pytest.importorskip("peft", reason="the live comparison needs peft")
  import torch
  import transformers
  torch.manual_seed(0)
  base = transformers.T5ForConditionalGeneration(transformers.T5Config(
    vocab_size=64, d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=2, num_decoder_layers=2,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0))
  adapter = {"lora": lambda: peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2,
                                             target_modules=["q", "v"]),
             "ia3": lambda: peft.IA3Config(task_type="SEQ_2_SEQ_LM")}[kind]()
  theirs = peft.get_peft_model(base, adapter).eval()
  for weight in filter(lambda each: each.requires_grad, theirs.parameters()):
    torch.nn.init.normal_(weight, float(kind == "ia3"), 0.3)
  with torch.no_grad():
    wanted = theirs(input_ids=torch.tensor(INPUTS),
                    decoder_input_ids=torch.tensor(TARGETS)).logits.numpy()
  theirs.merge_and_unload().save_pretrained(tmp_path)
  reader = hf.HFReader(str(tmp_path))
  model = PromptedT5(T5(reader.config))
  params = {"backbone": loading.restore(reader, abstract_params(model)["backbone"])}
  found = model.apply({"params": params}, INPUTS, TARGETS, enable_dropout=False)
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
