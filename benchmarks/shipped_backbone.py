"""The shipped model from its texts, in one command that resumes where it was stopped.

  python -m benchmarks.shipped_backbone 'corpus/*_train.txt.gz' 'corpus/*_valid.txt.gz' runs/tiny

  runs/tiny/vectors      word vectors as embeddings (word_vectors.py)
  runs/tiny/pretrained   gin_configs/runs/pretrain.gin from there
  runs/tiny/adapted      gin_configs/runs/lm_adapt.gin from there; its `backbone/`, in bfloat16, is
                         what prompt_tuning/pretrained/tiny holds
"""

import argparse
import pathlib

from benchmarks import word_vectors
from prompt_tuning import main

MODEL = "models/tiny.gin"


def stage(run_file: str, folder: pathlib.Path, start: pathlib.Path, corpus: str, held_out: str,
          steps: int, *more: str) -> None:
  """One `prompt-tuning train`, which resumes; a stopped one ends the command."""
  code = main.main(["train", f"--gin_file={MODEL}", f"--gin_file=runs/{run_file}.gin",
                    f"--gin.INITIAL_CHECKPOINT_PATH={str(start)!r}", f"--gin.CORPUS={[corpus]!r}",
                    f"--gin.VALIDATION_CORPUS={[held_out]!r}", f"--gin.MODEL_DIR={str(folder)!r}",
                    f"--gin.TRAIN_STEPS={steps}", *more])
  if code:
    raise SystemExit(code)


def build(corpus: str, held_out: str, out: pathlib.Path, steps: int, adapt_steps: int) -> None:
  if not (out / "vectors" / "backbone.json").is_file():
    model = word_vectors.model_of(MODEL)
    word_vectors.start(out / "vectors", model,
                       word_vectors.counts_of([corpus], model.tokenizer()))
  stage("pretrain", out / "pretrained", out / "vectors", corpus, held_out, steps,
        "--gin.EVAL_PERIOD=1500")
  stage("lm_adapt", out / "adapted", out / "pretrained", corpus, held_out, adapt_steps,
        "--gin.EXPORT_DTYPE='bfloat16'")


def run() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("corpus", help="a glob of training text")
  parser.add_argument("held_out", help="a glob of validation text")
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=10500)
  parser.add_argument("--adapt_steps", type=int, default=1250)
  options = parser.parse_args()
  build(options.corpus, options.held_out, options.out, options.steps, options.adapt_steps)


if __name__ == "__main__":
  run()
