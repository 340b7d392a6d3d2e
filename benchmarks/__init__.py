"""What is timed, against whom: `make bench` (bench.py) and `step_parts.py`; docs/performance.md."""
