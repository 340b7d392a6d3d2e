"""Our prompts inside T5X: its trainer, partitioner, checkpoints and command lines (docs/t5x.md).

`names`, `module` and `checkpoint` need no T5X; `model` and `optimizer` are what T5X's gin files
refer to, and import it.
"""
