# `make demo` and `make test` need only Python 3.11 to 3.13, make and git; each sets up .venv itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check lock clean

help:
	@echo "make demo   prompt-tune the shipped frozen T5 on real text, and show what it learned"
	@echo "make test   lint, type-check, then run the whole test suite"
	@echo "make check  lint and type-check"
	@echo "make lock   choose the newest versions that setup.py allows, into requirements.lock"
	@echo "make clean  remove .venv and the caches"
	@echo "Another interpreter: make test PYTHON=python3.13"

demo: $(STAMP)
	$(BIN)/python -m prompt_tuning demo

test: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest

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

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra test \
	  --custom-compile-command "make lock" --output-file requirements.lock setup.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
