"""Vocabularies: ours against seqio's, and against goldens of T5's own."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import train_vocabulary, vocabularies

TEXTS = ("Compute the mean of x along the axis.", "", "  two   spaces\nand a line ", "naïve ☃ 中",
         "<extra_id_0> starts", "a <extra_id_7> b<extra_id_8> <extra_id_99>ly", "np.zeros((3, 4))")
SENTINELS = [f"▁<extra_id_{n}>" for n in reversed(range(100))]


def save_with(path, pieces, source=None):
  """The file of a model, the shipped one, with user-defined pieces above its own."""
  model = sentencepiece_model_pb2.ModelProto.FromString(
    (source or vocabularies.path_of("tiny")).read_bytes())
  for piece in pieces:
    model.pieces.add(piece=piece, score=0.0, type=model.SentencePiece.USER_DEFINED)
  path.write_bytes(model.SerializeToString())
  return str(path)


@pytest.fixture(scope="module")
def tiny():
  return vocabularies.load("tiny")


@pytest.mark.parametrize("name", ["tiny", "bytes"])
def test_both_loaders_agree(name):
  full, light = vocabularies.load(name), vocabularies.load_light(name)
  assert (light.pad_id, light.eos_id) == (full.pad_id, full.eos_id) == (0, 1)
  assert light.vocab_size == full.vocab_size
  for text in TEXTS:
    ids = light.encode(text)
    assert ids == list(full.encode(text)) == full.encode_tf(text).numpy().tolist()
    assert light.decode(ids) == full.decode(ids)


@settings(deadline=None, max_examples=50)
@given(text=st.text())
def test_both_loaders_agree_on_any_text(tiny, text):
  assert vocabularies.load_light("tiny").encode(text) == list(tiny.encode(text))


def test_sentinels_count_down_from_the_highest_id():
  light = vocabularies.load_light("tiny")
  assert light.vocab_size == 4100
  assert [light.sentinel(n) for n in (0, 1, 99)] == [4099, 4098, 4000]
  assert light.encode("<extra_id_0> <extra_id_99>") == [4099, 4000]
  assert light.piece(4099) == "<extra_id_0>" and light.piece(4000) == "<extra_id_99>"
  assert light.piece(0) == "<pad>" and light.piece(4100) == "<id_4100>"
  with pytest.raises(UserError, match="there is no sentinel 100"):
    light.sentinel(100)


def test_sentinels_of_the_file_itself(tmp_path, tiny):
  """mT5's file and T5's `100extra`, which seqio reads with extra_ids=0."""
  import seqio
  path = save_with(tmp_path / "m.model", SENTINELS)
  theirs = seqio.SentencePieceVocabulary(path, extra_ids=0)
  added = seqio.SentencePieceVocabulary(str(vocabularies.path_of("tiny")), extra_ids=100)
  full, light = vocabularies.load(path), vocabularies.load_light(path)
  assert (tiny.extra_ids, full.extra_ids, full.vocab_size) == (100, 0, 4100)
  assert light.vocab_size == theirs.vocab_size == added.vocab_size == 4100
  for text in TEXTS:
    ids = list(added.encode(text))
    assert ids == list(theirs.encode(text)) == list(full.encode(text)) == light.encode(text)
    assert ids == full.encode_tf(text).numpy().tolist()
    assert added.decode(ids) == theirs.decode(ids) == full.decode(ids) == light.decode(ids)
  assert [light.encode(f"<extra_id_{n}>") for n in range(100)] == [[4099 - n] for n in range(100)]
  assert [light.sentinel(n) for n in (0, 99)] == [4099, 4000]
  assert [light.piece(n) for n in (4000, 4099)] == ["<extra_id_99>", "<extra_id_0>"]
  assert light.piece(3999) == vocabularies.load_light("tiny").piece(3999)


def test_with_or_without_its_sentinels_a_file_is_the_same_vocabulary(tmp_path):
  path, other = (save_with(tmp_path / name, pieces) for name, pieces in (
    ("m.model", SENTINELS), ("other.model", ["▁zebra", *SENTINELS])))
  tiny, with_zebra = vocabularies.fingerprint("tiny"), vocabularies.fingerprint(other)
  assert vocabularies.fingerprint(path) == tiny != with_zebra
  assert vocabularies.load_light(other).sentinel(0) == 4100


def test_sentinels_without_the_mark_of_a_word(tmp_path):
  path = save_with(tmp_path / "m.model", [piece.removeprefix("▁") for piece in SENTINELS])
  light, full = vocabularies.load_light(path), vocabularies.load(path)
  assert light.vocab_size == full.vocab_size == 4100 and light.piece(4099) == "<extra_id_0>"
  for text in TEXTS:
    ids = light.encode(text)
    assert ids == list(full.encode(text)) and light.decode(ids) == full.decode(ids)
  assert light.encode("<extra_id_0>")[-1] == light.sentinel(0) == 4099
  # The space ahead of a sentinel is a piece of its own: other ids for the same text.
  assert vocabularies.fingerprint(path) != vocabularies.fingerprint("tiny")


@pytest.mark.parametrize("pieces, found", [
  (SENTINELS[::-1], "100 of them, ▁<extra_id_0> = 4000 to ▁<extra_id_99> = 4099, of 4,100"),
  (SENTINELS[50:], "50 of them, ▁<extra_id_49> = 4000 to ▁<extra_id_0> = 4049, of 4,050"),
  (["<extra_id_0>"], "1 of them, <extra_id_0> = 4000 to <extra_id_0> = 4000, of 4,001"),
  ([*SENTINELS, "▁zebra"], "100 of them, ▁<extra_id_99> = 4000 to ▁<extra_id_0> = 4099")],
  ids=["turned around", "some", "one", "not last"])
def test_other_sentinels_than_t5s(tmp_path, pieces, found):
  path = save_with(tmp_path / "m.model", pieces)
  for load in (vocabularies.load, vocabularies.load_light):
    with pytest.raises(UserError, match="m.model holds other sentinels than T5's") as caught:
      load(path)
    assert found in caught.value.found
    assert "the last 100 pieces <extra_id_99> ... <extra_id_0>" in caught.value.wanted
    assert "as it was before sentinels were added" in caught.value.fix


def test_decode_stops_and_leaves_out():
  light = vocabularies.load_light("tiny")
  words = light.encode("the mean of")
  assert light.decode([-3, -2, -1, *words, 0, light.sentinel(0), 1, *words]) == (
    "the mean of <extra_id_0>")
  assert light.decode([*words, 4101]) == "the mean of ⁇ "  # a row above the vocabulary


def test_the_shipped_model_is_t5s_kind():
  path = vocabularies.path_of("tiny")
  light = vocabularies.load_light("tiny")
  assert path.stat().st_size < 400_000
  ascii_text = "".join(map(chr, range(33, 127)))
  assert 2 not in light.encode(ascii_text) and light.decode(light.encode(ascii_text)) == ascii_text
  assert light.decode(light.encode("A  café:\n“x”")) == "A café: “x”"
  assert [light.piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
  assert b"/home" not in path.read_bytes()


def test_bytes_are_byt5s():
  light = vocabularies.load_light("bytes")
  assert light.vocab_size == 259 and light.encode("aé") == [100, 198, 172]
  assert light.sentinel(0) == 258 and light.decode([100, 1, 100]) == "a"
  assert [light.piece(i) for i in (1, 100, 258, 300)] == ["</s>", "a", "<byte_ff>", "<id_300>"]


def test_t5s_own_vocabulary(shared_data):
  path = str(shared_data / "vocab" / "t5_vocab")
  golden = json.loads((shared_data / "vocab" / "t5-base-tests.json").read_text(encoding="utf-8"))
  full, light = vocabularies.load(path), vocabularies.load_light(path)
  assert len(golden) == 1995
  for text, ids, _ in golden:
    assert [*light.encode(text), 1] == ids
  for text, ids, _ in golden[::20]:
    assert [*full.encode(text), 1] == ids and light.decode(ids) == full.decode(ids)
  assert light.vocab_size == full.vocab_size == 32100
  assert light.encode("<extra_id_0>") == list(full.encode("<extra_id_0>")) == [32099]
  assert len(vocabularies.short_id(path)) == 8


def test_t5s_own_vocabulary_with_its_sentinels(shared_data, tmp_path):
  source = shared_data / "vocab" / "t5_vocab"
  path = save_with(tmp_path / "100extra.model", SENTINELS, source)
  golden = json.loads((shared_data / "vocab" / "t5-base-tests.json").read_text(encoding="utf-8"))
  light = vocabularies.load_light(path)
  for text, ids, _ in golden[::20]:
    assert [*light.encode(text), 1] == ids
  assert light.vocab_size == vocabularies.load(path).vocab_size == 32100
  assert light.encode("<extra_id_0> <extra_id_99>") == [32099, 32000]
  assert vocabularies.fingerprint(path) == vocabularies.fingerprint(str(source))


def test_errors(tmp_path):
  with pytest.raises(UserError, match="no vocabulary 'tyni'\n(.*\n)*.*'tiny', 'bytes'"):
    vocabularies.load("tyni")
  for content in (b"no model", b""):
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a vocabulary"):
      vocabularies.load_light(str(tmp_path / "bad.model"))


@pytest.mark.parametrize("name, whose, repository", [
  ("t5", "T5", "google/t5-v1_1-small"), ("mt5", "mT5", "google/mt5-small")])
def test_names_of_what_is_not_shipped(name, whose, repository):
  for load in (vocabularies.load, vocabularies.load_light, vocabularies.fingerprint):
    with pytest.raises(UserError, match=f"^{whose}'s vocabulary is not shipped\n") as caught:
      load(name)
    assert caught.value.found == f"VOCABULARY = '{name}'"
    assert f"`hf download {repository} spiece.model --local-dir .`" in caught.value.fix
    assert 'docs/checkpoints.md, "Vocabulary"' in caught.value.fix


SENTENCES = [f"the {a} {b} of a {b} is {a}" for a in ("mean", "sum", "axis", "shape", "copy")
             for b in ("array", "tensor", "matrix", "vector", "list", "graph")] * 20


def test_training(tmp_path):
  model = train_vocabulary.train(SENTENCES, size=105, words=("zebra",), num_threads=1)
  (tmp_path / "m.model").write_bytes(model)
  light = vocabularies.load_light(str(tmp_path / "m.model"))
  assert light.vocab_size == 205 and len(light.encode("zebra")) == 1
  assert light.decode(light.encode("the mean of a graph")) == "the mean of a graph"
  full = vocabularies.load(str(tmp_path / "m.model"))
  assert list(full.encode(SENTENCES[3])) == light.encode(SENTENCES[3])


def test_training_refuses_too_little_text():
  with pytest.raises(UserError, match="no vocabulary of 9000 pieces can be made\n?.*\n.*too high"):
    train_vocabulary.train(SENTENCES, size=9000, num_threads=1)


def test_training_says_which_words_are_cut():
  with pytest.raises(UserError, match="did not become one piece\n.*found: *two words"):
    train_vocabulary.train(SENTENCES, size=105, words=("two words",), num_threads=1)


def test_training_samples_a_share():
  texts = ["word " * 900, "short"] * 50
  pieces = train_vocabulary.sample(texts, 20_000, seed=1)
  assert 18_000 < sum(map(len, pieces)) <= 20_000
  assert max(map(len, pieces)) <= train_vocabulary.MAX_CHARACTERS
  assert pieces == train_vocabulary.sample(texts, 20_000, seed=1)
  assert sorted(train_vocabulary.sample(["a b", "c"], 99, seed=1)) == ["a b", "c"]


def test_training_command(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(train_vocabulary.docstrings, "corpus", lambda: type(
    "Corpus", (), {"docstrings": [type("D", (), {"split": "train", "docstring": text})
                                  for text in SENTENCES]}))
  (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
  train_vocabulary.main(["--output", str(tmp_path / "new" / "m.model"), "--size", "105",
                         "--files", str(tmp_path / "*.txt"), "--characters", "20000"])
  assert "105 pieces from" in capsys.readouterr().out
  assert vocabularies.load_light(str(tmp_path / "new" / "m.model")).vocab_size == 205
