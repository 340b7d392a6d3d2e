"""The benchmark of the input pipeline: its kinds build, one of them is measured on a few rows."""

import gzip
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import pipeline  # noqa: E402
from prompt_tuning.tasks import table  # noqa: E402


@pytest.fixture
def kinds(tmp_path):
  place = tmp_path / "data/glue/SST-2"
  place.mkdir(parents=True)
  with gzip.open(place / "train.tsv.gz", "wt", encoding="utf-8") as file:
    file.write("sentence\tlabel\n" + "fine words\t1\npoor\t0\n" * 30)
  return pipeline.settings(tmp_path / "data", tmp_path)


def test_every_kind_builds(kinds, tmp_path):
  for files, macros in kinds.values():
    built = pipeline.build(pipeline.TINY, files, macros, tmp_path)
    assert built.task.source is not None or table.has(built.task.name)


def test_tokens_of_a_few_rows(kinds, tmp_path):
  found = pipeline.measure("tsv", kinds["tsv"], tmp_path, 0.05, "bytes", str(tmp_path / "data"))
  assert found["rows"] == 60 and not found["stochastic"]
  # 10 or 4 bytes and the end in 88 places after 100 virtual tokens, 1 byte and the end in 4.
  assert found["real_share"] == pytest.approx((11 + 5 + 2 * 2) / 2 / (100 + 88 + 4), rel=0.2)
  assert found["files_tokens_per_s"] > 0 and found["batch_tokens_per_s"] == pytest.approx(
    found["batches_per_s"] * 32 * (11 + 5 + 2 * 2) / 2, rel=0.2)


def test_what_xxl_needs_follows_from_its_products():
  found = pipeline.xxl()
  assert found["step_s"] == pytest.approx(found["theory_tflop"] / (8 * 197 * 0.4))
  # 2 operations a weight and token forward, as many backward; of the encoder and the decoder's keys
  # and values. Attention and the 16 targets are the rest.
  weights = 24 * (4 * 4096**2 + 3 * 4096 * 10240 + 2 * 4096**2)
  assert found["theory_tflop"] == pytest.approx(4 * weights * 32 * 612 / 1e12, rel=0.1)
