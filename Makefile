# On a fresh machine with Python 3.11 or later, `make demo` and `make test` need nothing else: every target makes
# the virtual environment first. Another Python: `make test PYTHON=python3.12`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test check verify mutants bench

help:
	@echo 'make install   virtual environment in .venv, with everything for development'
	@echo 'make demo      the whole loop, cut to two methods; prints where the report is'
	@echo 'make test      every test'
	@echo 'make check     ruff, mypy, pyright'
	@echo 'make verify    the verification suite alone'
	@echo 'make mutants   would the suite notice a mistake? A night of mutants; killed, it goes on where it was'
	@echo 'make bench     our quantizers against bitsandbytes, as ratios'

# Remade when what it installs has changed; written last, so an install that was cut is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("PYTHON must be 3.11 or later, got $(PYTHON) = " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(READY)

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/unforgotten run tiny --out runs/demo \
	  --set 'only_methods=[GA_KLR, NPO_GDR]' \
	  --set 'storages=[fp32, bf16]' \
	  --set 'formats=[int4-g64, nf4-b64, int8-row]'

# `pytest`, not `python -m pytest`: that would put the repository root, and a second copy of each package, on sys.path.
test: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

verify: $(READY)
	$(BIN)/pytest verification

# For a night. MUTANTS='--minutes 30 --jobs 2' for less, or for more at a time; see verification/mutants.py.
mutants: $(READY)
	nice -n 19 $(BIN)/python -P -m unforgotten.verification.mutants $(MUTANTS)

bench: $(READY)
	$(BIN)/python -m unforgotten.experiments.bench
