"""Fitting an attribute model: against means of teacher-forced outputs, one text at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from small_models import CONFIG, model, save_backbone

from prompt_tuning import attribute_model
from prompt_tuning.attribute_model import AttributeConfig, AttributeModel, decoder_outputs, fit
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.run_config import TaskConfig
from prompt_tuning.t5 import T5
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tasks.spec import TaskSpec

CONTEXT, LENGTH = 2, 20
LABELS = ("early", "late")
ALPHABET = {"early": "abcde", "late": "vwxyz"}


@dataclasses.dataclass(frozen=True)
class Texts:
  """Texts of 4 to 15 letters from one end of the alphabet, behind two that say nothing."""

  splits: tuple[str, ...] = ("train", "validation")

  def rows(self, split):
    generator = np.random.default_rng(len(split))
    for i in range(24):
      label = LABELS[i % 2]
      letters = generator.choice(list(ALPHABET[label]), size=4 + i % 12)
      yield {"inputs": "mm" + "".join(letters), "targets": label}

  def fingerprint(self):
    return "letters"

  def spec(self):
    return TaskSpec(name="letters", source=self, to_text=dict, labels=LABELS,
                    metrics=("accuracy",))


@jax.jit
def outputs(params, tokens, shifted):
  return decoder_outputs(PromptedT5(T5(CONFIG)), {"backbone": params}, tokens, shifted)


def mean_output(params, text):
  """`[D]`: of the decoder's outputs that read the start and the text but for its context."""
  ids = vocabularies.load_light("bytes").encode(text)
  context, rest = ids[:CONTEXT], ids[CONTEXT:]
  shifted = np.zeros((1, LENGTH), np.int32)
  shifted[0, 1:len(rest)] = rest[:-1]
  found = outputs(params, np.array([[*context, 1]], np.int32), shifted)
  return np.asarray(found[0, :len(rest)], np.float64).mean(axis=0)


def settings(folder, config, **changes):
  task = TaskConfig(name="letters", feature_lengths={"inputs": LENGTH, "targets": 8},
                    source=Texts(), cache_dir=str(folder / "cache"))
  return AttributeConfig(model=config, task=task, output_file=str(folder / "attribute.npz"),
                         labels=LABELS, context=CONTEXT, batch_size=8, **changes)


def test_a_fit_tells_texts_apart_by_the_means_of_their_outputs(tmp_path):
  params = save_backbone(tmp_path / "backbone")
  config = settings(tmp_path, model(prompt=False,
                                    initial_checkpoint_path=str(tmp_path / "backbone")))
  found, accuracy = fit(config)
  rows = list(Texts().rows("validation"))
  logits = np.stack([mean_output(params, row["inputs"]) for row in rows]) @ found.kernel
  chosen = [LABELS[i] for i in (logits + found.bias).argmax(axis=1)]
  assert accuracy == np.mean([a == row["targets"] for a, row in zip(chosen, rows, strict=True)])
  assert accuracy >= 0.9
  written = AttributeModel.read(config.output_file)
  assert written.labels == LABELS
  np.testing.assert_array_equal(written.kernel, found.kernel)


def test_means_of_many_outputs_in_few_bits_are_not_rounded_off(tmp_path, monkeypatch):
  """A sum of 512 halves in bfloat16 stays at 128."""
  seen = []

  def remember(features, labels, classes):
    seen.append(features)
    return np.zeros((features.shape[1], classes), np.float32), np.zeros(classes, np.float32)

  monkeypatch.setattr(attribute_model, "_fit", remember)
  monkeypatch.setattr(attribute_model.scoring, "call",
                      lambda *args: jnp.full((8, LENGTH, 16), 1 + 2 ** -7, jnp.bfloat16))
  fit(settings(tmp_path, model(prompt=False), max_examples=8))
  assert seen[0].dtype == np.float32
  np.testing.assert_array_equal(seen[0], np.float32(1 + 2 ** -7))
