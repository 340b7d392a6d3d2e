"""The rows of docs/scale.md: `prompt-tuning plan` for T5-XXL on machines that are not here.

  python benchmarks/scale_rows.py            compiles what scale_rows.json lacks, one row at a time
  python benchmarks/scale_rows.py --docs     writes the tables of docs/scale.md from it
  python benchmarks/scale_rows.py --only decode

Each row is one command, in a process of its own; scale_rows.json keeps what it printed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = pathlib.Path(__file__).with_name("scale_rows.json")
DOCS = ROOT / "docs/scale.md"
BEGIN, END = "<!-- rows: begin -->", "<!-- rows: end -->"


def _row(topology: str, layout: str, remat: str, *flags: str, size: str = "t5_1_1_xxl",
         batch: int = 32, dtype: str = "bfloat16", prompt: str = "prompts/soft.gin",
         run: str = "runs/prompt_tune.gin") -> list[str]:
  return [f"--gin_file=models/{size}.gin", f"--gin_file={prompt}", f"--gin_file={run}",
          f"--topology={topology}", f"--gin.LAYOUT='{layout}'", f"--gin.REMAT='{remat}'",
          f"--gin.BATCH_SIZE={batch}", f"--gin.FROZEN_DTYPE='{dtype}'", *flags]


_TUNE = {"prompt": "prompts/none.gin", "run": "runs/model_tune.gin"}
PLANS: dict[str, list[str]] = {
  "low memory": _row("v5e-8", "fsdp", "full"),
  "fast": _row("v5e-8", "fsdp", "save_projections"),
  "one chip, int8": _row("v5e-1", "data=1", "full", batch=8, dtype="int8"),
  "decode": _row("v5e-8", "tensor", "none", "--program=decode"),
  "decode, int8": _row("v5e-8", "tensor", "none", "--program=decode", dtype="int8"),
  "4 chips": _row("v5e-4", "fsdp", "full"),
  "tensor": _row("v5e-8", "tensor", "full"),
  "low memory, sequence": _row("v5e-8", "tensor_sequence", "full"),
  "low memory, dropout": _row("v5e-8", "fsdp", "full", "--gin.DROPOUT_RATE=0.1"),
  "low memory, 4 pieces": _row("v5e-8", "fsdp", "full", "--gin.NUM_MICROBATCHES=4"),
  "offload": _row("v5e-8", "fsdp", "offload"),
  "low memory, 2 x 4": _row("v5e-8", "fsdp=4,tensor_sequence=2", "full"),
  "v6e-4": _row("v6e-4", "fsdp", "save_projections"),
  "v6e-4, 2 x 2": _row("v6e-4", "fsdp=2,tensor=2", "save_projections"),
  "v4-8": _row("v4-8", "fsdp", "save_projections"),
  "v4-8, 2 x 2": _row("v4-8", "fsdp=2,tensor=2", "save_projections"),
  "v4-8, sequence": _row("v4-8", "tensor_sequence", "save_projections"),
  "v4-8, nothing again": _row("v4-8", "fsdp", "none"),
  "v5p-8": _row("v5p-8", "fsdp", "none"),
  "one chip, int4": _row("v5e-1", "data=1", "full", batch=8, dtype="int4"),
  "tuning XL": _row("v5p-8", "fsdp", "full", size="t5_1_1_xl", dtype="float32", **_TUNE),
  "tuning XL, v5e-4": _row("v5e-4", "fsdp", "full", size="t5_1_1_xl", dtype="float32", **_TUNE),
  "tuning XL, v4-8": _row("v4-8", "fsdp", "full", size="t5_1_1_xl", dtype="float32", **_TUNE),
  "tuning XL, v6e-1": _row("v6e-1", "data=1", "full", size="t5_1_1_xl", dtype="float32", **_TUNE),
  "tuning XXL": _row("v5p-16", "fsdp", "full", dtype="float32", **_TUNE),
  "tuning XXL, v5p-8": _row("v5p-8", "fsdp", "full", dtype="float32", **_TUNE),
  "tuning XXL, v4-8": _row("v4-8", "fsdp", "full", dtype="float32", **_TUNE),
  "tuning XXL, v6e-4": _row("v6e-4", "fsdp", "full", dtype="float32", **_TUNE),
  "tuning XXL, v5e-8": _row("v5e-8", "fsdp", "full", dtype="float32", **_TUNE),
}


def compile_rows(only: str | None) -> None:
  """Compiles the rows that are not there yet."""
  rows = json.loads(ROWS.read_text()) if ROWS.is_file() else {}
  for name, flags in PLANS.items():
    if name in rows or only is not None and only not in name:
      continue
    done = subprocess.run([sys.executable, "-m", "prompt_tuning", "plan", "--json", *flags],
                          capture_output=True, text=True, check=False)
    if not done.stdout.strip():
      print(f"{name}: {done.stderr.strip().splitlines()[-6:]}", file=sys.stderr)
      continue
    rows[name] = {"command": "prompt-tuning plan " + " ".join(
      flag if "'" not in flag else f'"{flag}"' for flag in flags), "row": json.loads(done.stdout)}
    ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    row = rows[name]["row"]
    print(f"{name}: fits {row['fits']}, peak {row['peak_gib']}, products {row['matmul_tflops']} "
          f"of {row['theory_tflops']}", flush=True)


def write_docs() -> None:
  """Puts the table and its commands between the marks of docs/scale.md."""
  from prompt_tuning.plan.report import markdown
  from prompt_tuning.plan.row import Row
  rows = json.loads(ROWS.read_text())
  made = [markdown([Row(**rows[name]["row"]) for name in PLANS if name in rows]), ""]
  made += ["```", *(rows[name]["command"] for name in PLANS if name in rows), "```"]
  head, _, rest = DOCS.read_text().partition(BEGIN)
  DOCS.write_text(head + BEGIN + "\n" + "\n".join(made) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--docs", action="store_true")
  parser.add_argument("--only")
  options = parser.parse_args()
  write_docs() if options.docs else compile_rows(options.only)
