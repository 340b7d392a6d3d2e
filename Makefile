# `make demo`, `make test` and `make bench` need only Python 3.11 to 3.13, make and git; each sets up .venv itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TPU_STAMP := $(VENV)/.installed-tpu
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: help demo test check bench lock clean

help:
	@echo "make demo   prompt-tune the shipped frozen T5 on real text, and show what it learned"
	@echo "make test   lint, type-check, then run the whole test suite"
	@echo "make check  lint and type-check"
	@echo "make bench  time the step and decoding against PEFT, which it installs (T5 1.1 small, 5 minutes)"
	@echo "make lock   choose the newest versions that setup.py allows, into requirements.lock"
	@echo "make clean  remove .venv and the caches"
	@echo "Another interpreter: make test PYTHON=python3.13"

demo: $(STAMP)
	$(BIN)/python -m prompt_tuning demo

test: $(TPU_STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks.bench

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy

$(STAMP): requirements.lock setup.py
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no '$(PYTHON)'. Install Python 3.11, 3.12 or 3.13," \
	    "or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); wanted: Python 3.11, 3.12 or 3.13." \
	    "Name one: make PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# The TPU compiler, which needs no TPU: tests plan with it. 137 MB, so no part of the demo's set-up.
$(TPU_STAMP): $(STAMP) requirements-tpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-tpu.txt
	@touch $@

# PEFT runs on PyTorch's CPU build. Where pip's index offers another one first, say where that is:
# make bench PIP_FLAGS="--index-url ..."
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	  --constraint requirements.lock -e ".[bench]"
	@touch $@

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra test \
	  --custom-compile-command "make lock" --output-file requirements.lock setup.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
