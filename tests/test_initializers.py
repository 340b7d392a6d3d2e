"""Each initialiser against a direct computation, and every mistake with its message."""


import jax
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import T5Config
from prompt_tuning.prompts.initializers import (
  ClassLabels,
  FromBank,
  FromFile,
  FromRun,
  SampledVocabulary,
  Sources,
  Text,
  Uniform,
  read_prompt,
)
from prompt_tuning.prompts.soft import SoftPrompt

TABLE = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
KEY = jax.random.key(3)
WORDS = {"yes": [5], "not at all": [7, 8, 9], "maybe": [10], "": []}


def sources(**changes) -> Sources:
  return Sources(**{"embedding": TABLE, "encode": WORDS.__getitem__, "num_ordinary": 30, **changes})


def rows_of(prompt) -> list[int]:
  """The ids whose embeddings the rows of a prompt are."""
  hits = (np.asarray(prompt)[:, None] == TABLE[None]).all(-1)
  assert (hits.sum(1) == 1).all()
  return hits.argmax(1).tolist()


def test_uniform_fills_its_interval():
  prompt = np.asarray(Uniform()(KEY, 500, sources()))
  assert prompt.shape == (500, 6) and prompt.dtype == np.float32
  assert -0.5 <= prompt.min() < -0.49 and 0.49 < prompt.max() <= 0.5
  assert abs(prompt.mean()) < 0.02 and prompt.std() == pytest.approx(12**-0.5, rel=0.03)
  np.testing.assert_allclose(Uniform(2.0)(KEY, 500, sources()), 4 * prompt, rtol=1e-6)
  assert (np.asarray(Uniform()(jax.random.key(4), 500, sources())) != prompt).any()


def test_sampled_vocabulary_draws_common_pieces_once():
  ids = rows_of(SampledVocabulary(most_common=10)(KEY, 10, sources()))
  assert sorted(ids) == list(range(3, 13)) and ids != sorted(ids)
  assert rows_of(SampledVocabulary(most_common=10)(jax.random.key(4), 10, sources())) != ids


def test_sampled_vocabulary_leaves_sentinels_and_padding_rows_out():
  ids = rows_of(SampledVocabulary()(KEY, 27, sources()))
  assert sorted(ids) == list(range(3, 30))


def test_sampled_vocabulary_repeats_where_it_must():
  ids = rows_of(SampledVocabulary(most_common=4)(KEY, 50, sources()))
  assert set(ids) == {3, 4, 5, 6}


def test_class_labels_average_their_tokens_and_fall_back():
  labels = ClassLabels(("yes", "not at all"), fallback=SampledVocabulary(most_common=20))
  prompt = np.asarray(labels(KEY, 5, sources()))
  np.testing.assert_array_equal(prompt[0], TABLE[5])
  np.testing.assert_allclose(prompt[1], (TABLE[7] + TABLE[8] + TABLE[9]) / 3, rtol=1e-6)
  assert len(set(rows_of(prompt[2:]))) == 3
  assert prompt.shape == (5, 6) and prompt.dtype == np.float32


def test_more_labels_than_rows_keep_the_first():
  prompt = ClassLabels(("maybe", "yes", "not at all"))(KEY, 2, sources())
  assert rows_of(prompt) == [10, 5]


def test_text_repeats_and_is_cut():
  assert rows_of(Text("not at all")(KEY, 7, sources())) == [7, 8, 9, 7, 8, 9, 7]
  assert rows_of(Text("not at all")(KEY, 2, sources())) == [7, 8]


def test_initialisers_read_half_precision_tables():
  half = sources(embedding=TABLE.astype(np.float16))
  for initializer in (Uniform(), SampledVocabulary(), ClassLabels(("yes",)), Text("yes")):
    assert np.asarray(initializer(KEY, 3, half)).dtype == np.float32


def save(folder, prompt) -> str:
  np.save(folder / "prompt.npy", prompt)
  return str(folder / "prompt.npy")


def test_from_file_and_from_run(tmp_path):
  path = save(tmp_path, TABLE[:4].astype(np.float64))
  np.testing.assert_array_equal(FromFile(path)(KEY, 4, sources()), TABLE[:4])
  (tmp_path / "settings.json").write_text("{}")
  np.testing.assert_array_equal(FromRun(str(tmp_path))(KEY, 4, sources()), TABLE[:4])
  np.testing.assert_array_equal(read_prompt(path, None, 6), TABLE[:4])


def test_from_bank_is_the_shared_prompt_times_the_mean_of_the_tasks_matrices(tmp_path):
  random = np.random.default_rng(0)
  shared, columns, rows = (random.normal(size=shape).astype(np.float32)
                           for shape in ((4, 6), (3, 4, 1), (3, 1, 6)))
  save(tmp_path, shared * (columns @ rows))
  (tmp_path / "settings.json").write_text("{}")
  wanted = shared * (columns @ rows).mean(axis=0)
  for path in (tmp_path, tmp_path / "prompt.npy"):
    np.testing.assert_allclose(FromBank(str(path))(KEY, 4, sources()), wanted, rtol=1e-5)
  np.save(tmp_path / "one.npy", shared)
  error = error_of(FromBank(str(tmp_path / "one.npy")), KEY, 4, sources())
  assert error.what == "The prompt file is not a bank" and "from_file" in error.fix


def test_a_bank_starts_each_prompt_from_its_own_draw():
  config = T5Config(vocab_size=40, emb_dim=6, num_heads=1, head_dim=3, mlp_dim=4,
                    num_encoder_layers=1, num_decoder_layers=1)
  bank = SoftPrompt(config, 4, SampledVocabulary(most_common=20), num_prompts=3)
  table = bank.initial_params(KEY, {}, sources())["embedding"]
  assert table.shape == (3, 4, 6)
  assert len({tuple(rows_of(prompt)) for prompt in table}) == 3
  same = SoftPrompt(config, 4, Text("yes"), num_prompts=2).initial_params(KEY, {}, sources())
  np.testing.assert_array_equal(same["embedding"][0], same["embedding"][1])


def error_of(function, *arguments) -> UserError:
  with pytest.raises(UserError) as error:
    function(*arguments)
  return error.value


@pytest.mark.parametrize("labels", ["yes", (), ("yes", ""), ("yes", 3)])
def test_labels_must_be_strings(labels):
  error = error_of(ClassLabels, labels)
  assert error.what == "ClassLabels.labels is not a list of labels"
  assert error.found == repr(labels) and "CLASS_LABELS" in error.fix


@pytest.mark.parametrize("scale", [0, -1.0, float("nan")])
def test_uniform_needs_a_width(scale):
  error = error_of(Uniform, scale)
  assert error.what == "Uniform.scale is not a width" and error.found == str(scale)


def test_nothing_to_draw():
  error = error_of(SampledVocabulary(), KEY, 2, sources(num_ordinary=3))
  assert error.what == "SampledVocabulary has no piece to draw" and error.found == "3 pieces"


@pytest.mark.parametrize("initializer", [ClassLabels(("yes",)), Text("yes")])
def test_words_need_a_vocabulary(initializer):
  error = error_of(initializer, KEY, 2, sources(encode=None))
  assert error.what == "This initialiser needs the vocabulary" and "VOCABULARY" in error.fix


def test_a_text_without_tokens():
  error = error_of(Text(""), KEY, 2, sources())
  assert error.what == "A text to start the prompt from has no tokens" and error.found == "''"


def test_a_missing_file(tmp_path):
  error = error_of(read_prompt, str(tmp_path / "none.npy"), 4, 6)
  assert error.what == "PROMPT_FILE does not exist" and error.found.endswith("none.npy")


@pytest.mark.parametrize("prompt,length,what,found,wanted", [
  (TABLE[:4], 5, "The prompt file has another length", "P = 4", "P = 5"),
  (TABLE[:4, :5], 4, "The prompt file has the wrong width", "D = 5", "D = 6, the backbone's"),
  (TABLE[0], 4, "PROMPT_FILE is not a prompt", "float32 (6,)", "one float array [P, D]"),
  (np.ones((4, 6), np.int32), 4, "PROMPT_FILE is not a prompt", "int32 (4, 6)",
   "one float array [P, D]"),
  (TABLE[None, :4], 4, "The prompt file is a bank of prompts", "(1, 4, 6)", "one prompt [P, D]"),
  (np.full((4, 6), np.nan), 4, "The prompt file holds values that are not finite", "prompt.npy",
   "finite numbers"),
  (np.array([{}], object), 4, "PROMPT_FILE is not a prompt", "allow_pickle",
   "a .npy file with one float array [P, D]"),
], ids=["length", "width", "vector", "integers", "bank", "nan", "pickle"])
def test_files_that_do_not_fit(tmp_path, prompt, length, what, found, wanted):
  error = error_of(read_prompt, save(tmp_path, prompt), length, 6)
  assert error.what == what and found in error.found and wanted in error.wanted
  if "length" in what:
    assert error.fix == "--gin.PROMPT_LENGTH=4"


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00v\x00{"])
def test_files_that_are_no_arrays(tmp_path, content):
  (tmp_path / "prompt.npy").write_bytes(content)
  error = error_of(read_prompt, str(tmp_path / "prompt.npy"), 4, 6)
  assert error.what == "PROMPT_FILE is not a prompt" and "prompt.npy: " in error.found


def test_a_folder_and_an_archive_are_no_prompts(tmp_path):
  assert error_of(read_prompt, str(tmp_path), 4, 6).what == "PROMPT_FILE is not a prompt"
  np.savez(tmp_path / "many.npz", a=TABLE)
  error = error_of(read_prompt, str(tmp_path / "many.npz"), 4, 6)
  assert error.what == "PROMPT_FILE is not a prompt"


def test_a_file_to_start_from_is_called_by_its_own_setting(tmp_path):
  error = error_of(FromFile(str(tmp_path / "none.npy")), KEY, 4, sources())
  assert error.what == "INITIAL_PROMPT_FILE does not exist"


def test_runs_that_are_none_or_unfinished(tmp_path):
  error = error_of(FromRun(str(tmp_path)), KEY, 4, sources())
  assert error.what == "SOURCE_MODEL_DIR holds no run" and error.found == str(tmp_path)
  (tmp_path / "settings.json").write_text("{}")
  (tmp_path / "summary.json").write_text('{"task": "docstring_match"}')
  error = error_of(FromRun(str(tmp_path)), KEY, 4, sources())
  assert error.what == "The run in SOURCE_MODEL_DIR has no prompt.npy"
  assert "(task docstring_match), without a prompt" in error.found
