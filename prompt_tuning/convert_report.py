"""What `prompt-tuning convert` prints: the table of leaves, sizes, and how it ended."""

from prompt_tuning import placement
from prompt_tuning.checkpoints.leaf_table import Row
from prompt_tuning.checkpoints.prompt_files import PromptFile
from prompt_tuning.checkpoints.stacking import stacked_name
from prompt_tuning.convert import Plan
from prompt_tuning.info import show_bytes


def show(plan: Plan) -> None:
  """One line a kind of leaf (`encoder/layers_*/mlp/wo/kernel`), then the sums."""
  groups: dict[tuple[str, str], list[Row]] = {}
  for row in plan.rows:
    groups.setdefault((stacked_name(row.name), row.status), []).append(row)
  print(f"{plan.config.source}: {plan.source_form.title} -> {plan.form.title}")
  width = max(len(name) for name, _ in groups)
  for (name, status), rows in sorted(groups.items()):
    layers = f"{len(rows)} x " if name != rows[0].name else ""
    print(f"  {status:9}  {name:{width}}  {layers}{_leaves(rows[0])}")
  counts: dict[str, int] = {}
  for row in plan.rows:
    counts[row.status] = counts.get(row.status, 0) + 1
  print("leaves:  " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
  prompt = sorted(name for name in plan.source.ignored if name.startswith("target/"))
  if prompt:
    print(f"ignored: the prompt among the weights, {', '.join(prompt)}; T5X's run has it in its "
          "numpy_checkpoints too")
  rest = {name: leaf for name, leaf in plan.source.ignored.items() if name not in prompt}
  if rest:
    size = sum(leaf.nbytes for leaf in rest.values())
    print(f"{'kept:   ' if plan.state else 'ignored:'} {len(rest)} arrays of "
          f"optimizer state and counters, {show_bytes(size)}")
  print(f"bytes:   {show_bytes(plan.bytes_read)} to read, {show_bytes(plan.bytes_written)} to "
        f"write; about {_duration(plan.seconds)} on a local disk")


def show_prompt(written: PromptFile, *, dry_run: bool = False) -> None:
  how = "would be written" if dry_run else "read back and compared"
  shape = list(written.values.shape)
  print(f"prompt:  float32 {shape} in {written.path} ({written.format}), {how}")
  template = written.metadata.get("template") or placement.FRONT
  if written.format == "npy" and template != placement.FRONT:
    print(f"note:    an array does not say where it stands: PROMPT_TEMPLATE = {template!r}")


def _leaves(row: Row) -> str:
  """`float32 [8, 4]`, with what it becomes where that differs."""
  texts = [f"{leaf.dtype} {list(leaf.shape)}" for leaf in (row.given, row.wanted) if leaf]
  return " -> ".join(dict.fromkeys(texts))


def _duration(seconds: float) -> str:
  return f"{max(seconds, 1):.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
