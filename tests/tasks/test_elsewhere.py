"""TFDS and Hugging Face themselves, on small data sets written here: no stand-ins, no network."""

import os

import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.tasks import table
from prompt_tuning.tasks.variants import Variant

PAIRS = [{"premise": "P\xe9", "hypothesis": "H", "label": 2, "idx": 0},
         {"premise": "Q", "hypothesis": "no", "label": 0, "idx": 1}]
CAST = [("mnli hypothesis: H premise: P\xe9", "contradiction"),
        ("mnli hypothesis: no premise: Q", "entailment")]


def texts(task, origin, split):
  row = Variant(data_from=origin).apply(table.spec(task))
  return [(e["inputs"], e["targets"], e.get("references")) for e in row.examples(split)]


@pytest.fixture
def tfds(tmp_path, monkeypatch):
  """Writes a data set in TFDS's own form into TFDS_DATA_DIR."""
  import tensorflow_datasets as tfds

  def write(name, config, version, features, split, rows):
    # As a prepared download lies there: TFDS reads it without the code that made it.
    folder = tmp_path / name / config / version if config else tmp_path / name / version
    os.makedirs(folder)
    writer = tfds.core.SequentialWriter(
      tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
          name=name, config_name=config or None, version=version, data_dir=str(folder),
          module_name=__name__), features=features),
      max_examples_per_shard=100)
    writer.initialize_splits([split])
    writer.add_examples({split: rows})
    writer.close_all()
    return folder

  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  write.module = tfds
  return write


def test_tfds_reads_what_is_prepared(tfds):
  of = tfds.module.features
  tfds("glue", "mnli", "2.0.0", of.FeaturesDict({
    "premise": of.Text(), "hypothesis": of.Text(), "idx": np.int32,
    "label": of.ClassLabel(names=["entailment", "neutral", "contradiction"])}),
    "validation_matched", PAIRS)
  assert [found[:2] for found in texts("glue_mnli", "tfds", "validation")] == CAST
  tfds("squad", "v1.1", "3.0.0", of.FeaturesDict({
    "id": of.Text(), "title": of.Text(), "context": of.Text(), "question": of.Text(),
    "answers": of.Sequence({"text": of.Text(), "answer_start": np.int32})}), "train", [
      {"id": "1", "title": "T", "context": "Al saw Bo.", "question": "Who?",
       "answers": [{"text": "Bo", "answer_start": 7}, {"text": "Al", "answer_start": 0}]}])
  assert texts("squad", "tfds", "train") == [
    ("question: Who ? context: Al saw Bo . ", "Bo", ["Bo", "Al"])]


def test_hugging_face_loads_a_local_folder(tmp_path, monkeypatch):
  datasets = pytest.importorskip("datasets", reason="Hugging Face `datasets` is not installed: "
                                 "pip install datasets")
  folder = tmp_path / "nyu-mll/glue/mnli"
  folder.mkdir(parents=True)
  datasets.Dataset.from_list(PAIRS).to_parquet(
    str(folder / "validation_matched-00000-of-00001.parquet"))
  (tmp_path / "nyu-mll/glue/README.md").write_text(
    "---\nconfigs:\n- config_name: mnli\n  data_files:\n  - split: validation_matched\n"
    "    path: mnli/validation_matched-*\n---\n")
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  # A local folder of that name is what load_dataset takes before it asks the hub.
  monkeypatch.chdir(tmp_path)
  assert [found[:2] for found in texts("glue_mnli", "huggingface", "validation")] == CAST


def test_a_split_that_tfds_lacks_is_named(tfds):
  of = tfds.module.features
  tfds("glue", "rte", "2.0.0", of.FeaturesDict({
    "sentence1": of.Text(), "sentence2": of.Text(), "idx": np.int32,
    "label": of.ClassLabel(names=["entailment", "not_entailment"])}), "train",
    [{"sentence1": "A", "sentence2": "B", "label": 1, "idx": 0}])
  assert texts("glue_rte", "tfds", "train")[0][1] == "not_entailment"
  with pytest.raises(UserError, match="TFDS does not give split 'validation' of glue/rte"):
    texts("glue_rte", "tfds", "validation")
