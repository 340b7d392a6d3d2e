"""Soft prompts for a frozen T5: see README.md and docs/architecture.md."""

__version__ = "0.1.0"
