# On a fresh machine with Python 3.11 or later, `make demo` and `make test` need nothing else: every target makes
# the virtual environment first. Another Python: `make test PYTHON=python3.12`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test test-paths test-haswell test-scalar check lint mypy pyright format generated verify conformance conformance-legacy mutants bench

help:
	@echo 'make install   virtual environment in .venv, with everything for development'
	@echo 'make demo      the whole loop, cut to two methods; prints where the report is'
	@echo 'make test      every test'
	@echo 'make test-paths   some of them as on an older processor, by the AVX2 path, and by the scalar path'
	@echo 'make check     ruff, mypy, pyright'
	@echo 'make format    imports sorted, lines broken: what make check asks for'
	@echo 'make generated every committed file that is made from others, made again'
	@echo 'make verify    the verification suite alone'
	@echo 'make conformance          our references against eight libraries, in an environment of 3 GB; writes the record'
	@echo 'make conformance-legacy   the same, auto-gptq and AutoAWQ, in theirs'
	@echo 'make mutants   would the suite notice a mistake? A night of mutants; killed, it goes on where it was'
	@echo 'make bench     our quantizers and the audit against bitsandbytes, the loop against released code, as ratios'

# Remade when what it installs has changed; written last, so an install that was cut is done again.
$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("PYTHON must be 3.11 or later, got $(PYTHON) = " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(READY)

# Six minutes on two cores without native bfloat16; articles alone to one depth, smaller batches and fewer passages than the profile's.
demo: $(READY)
	rm -rf runs/demo
	$(BIN)/unforgotten run tiny --out runs/demo \
	  --set 'unlearning.methods={GA_KLR: {}, NPO_GDR: {}}' \
	  --set 'storages=[fp32, bf16]' \
	  --set 'formats=[int4-g64, nf4-b64, int8-row]' \
	  --set 'unlearning.depths=[]' --set corpus.forget_sheets=0 \
	  --set unlearning.batch=4 --set unlearning.retain_batch=4 --set pretraining.steps=180 \
	  --set corpus.passages=12 --set corpus.holdout=24

# `pytest`, not `python -m pytest`: that would put the repository root, and a second copy of each package, on sys.path.
# Files go to two processes, each whole, so that what a module prepares is prepared once.
WORKERS ?= 2
test: $(READY)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# What an ordinary processor runs, imitated on one that has more: the variables take instructions away from our kernel,
# Numba, torch and oneDNN. NUMBA_CPU_FEATURES is empty, or Numba would keep those of this processor.
PATH_TESTS := $(addprefix verification/test_kernel,.py _entries.py _rules.py) tests/audit/kernel/test_simd.py \
  $(addprefix tests/audit/weights/test_,memory.py weights.py processes.py) tests/experiments/arms/test_products.py
HASWELL := UNFORGOTTEN_SIMD=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=

HAS_AVX2 := $(BIN)/python -P -c 'import sys; from unforgotten.audit.kernel.simd import available_paths as p; sys.exit("avx2" not in p())'

# Both at the same time with `make -j2 test-paths`; so are the three parts of `check`.
test-paths: test-haswell test-scalar

test-haswell: $(READY)
	@if $(HAS_AVX2); \
	then echo 'as on Haswell:'; HYPOTHESIS_PROFILE=dev $(HASWELL) $(BIN)/pytest -p no:cacheprovider $(PATH_TESTS); \
	else echo 'no AVX2 here: the pass as on Haswell is left out'; fi

test-scalar: $(READY)
	HYPOTHESIS_PROFILE=dev UNFORGOTTEN_SIMD=scalar $(BIN)/pytest -p no:cacheprovider $(PATH_TESTS)

check: lint mypy pyright

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(READY)
	$(BIN)/mypy

pyright: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

# `verification/verification-report.json` is left out: it records a night of tests, see CONTRIBUTING.md.
STUDIES := reports/published
generated: $(READY)
	$(BIN)/python -P -m unforgotten.audit.outputs.json_schema > audit/schema/audit.schema.json.new
	mv audit/schema/audit.schema.json.new audit/schema/audit.schema.json
	$(BIN)/unforgotten study --render
	$(BIN)/python -P -m unforgotten.reports.flip_laws $(STUDIES)/laws
	$(BIN)/python -P -m unforgotten.reports.run.arms $(STUDIES)/tiny-arms-seed0 $(STUDIES)/tiny-seed0
	set -e; for run in $(dir $(wildcard $(STUDIES)/*/config.json)); do $(BIN)/unforgotten report $$run; done
	cp $(STUDIES)/tiny-seed0/headline.svg $(STUDIES)/tiny-seed0/headline.png $(STUDIES)
	$(BIN)/python -P -m unforgotten.reports.verdicts.phase_figure $(STUDIES)/phase-diagram
	$(BIN)/python -P -m unforgotten.reports.verdicts.page $(STUDIES)
	$(BIN)/python -P -m unforgotten.reports.verdicts.at_a_glance $(STUDIES) README.md
	$(BIN)/python -P -m unforgotten.reports.theory_document.document
	$(BIN)/python -P -m unforgotten.experiments.plan.at_7b reports/at-7b.md

verify: $(READY)
	$(BIN)/pytest verification

# Libraries that a user of this package does not need. torch is installed first: some are built against it.
# UNFORGOTTEN_GGML names another libggml-base.so than that of llama-cpp-python.
CONFORMANCE := .venv-conformance
LEGACY := .venv-conformance-legacy
RECORD := verification/published/conformance.json

$(CONFORMANCE)/.ready: requirements-conformance.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(CONFORMANCE)
	$(CONFORMANCE)/bin/pip install --constraint constraints.txt torch setuptools wheel
	$(CONFORMANCE)/bin/pip install --constraint constraints.txt --requirement requirements-conformance.txt \
	  --editable '.[experiments,verify]'
	@touch $@

conformance: $(CONFORMANCE)/.ready
	HYPOTHESIS_PROFILE=ci $(CONFORMANCE)/bin/pytest \
	  -p unforgotten.verification.conformance.record --conformance-record $(RECORD) \
	  verification/conformance --ignore verification/conformance/legacy
	$(CONFORMANCE)/bin/pytest tests/experiments/quantizers/test_libraries.py tests/experiments/quantizers/test_library_models.py \
	  tests/experiments/studies/test_deployed_files.py tests/audit/mixes/test_tools.py

# Without dependencies, see the file; of this package, too, only what two modules need.
$(LEGACY)/.ready: requirements-conformance-legacy.txt pyproject.toml
	$(PYTHON) -m venv $(LEGACY)
	$(LEGACY)/bin/pip install --constraint constraints.txt torch numpy
	$(LEGACY)/bin/pip install --no-deps --requirement requirements-conformance-legacy.txt --editable .
	@touch $@

conformance-legacy: $(LEGACY)/.ready
	HYPOTHESIS_PROFILE=ci $(LEGACY)/bin/pytest -p unforgotten.verification.conformance.record \
	  --conformance-record $(RECORD) verification/conformance/legacy

# For a night. MUTANTS='--minutes 30 --jobs 2' for less, or for more at a time; see verification/mutation/mutants.py.
mutants: $(READY)
	nice -n 19 $(BIN)/python -P -m unforgotten.verification.mutation.mutants $(MUTANTS)

# AUDIT_BENCH='--set large=true --set scratch=DIR' for the pair of 2 x 8 GiB too, and for where the pairs are written and
# deleted.
bench: $(READY)
	$(BIN)/unforgotten study quantizer-cost
	@cat reports/published/quantizer-cost/table.md
	$(BIN)/unforgotten study format-cost
	@cat reports/published/format-cost/table.md
	$(BIN)/unforgotten study loop-cost
	@cat reports/published/loop-cost/table.md
	$(BIN)/unforgotten study audit-cost $(AUDIT_BENCH)
	@$(HAS_AVX2) || exit 0; $(HASWELL) $(BIN)/unforgotten study audit-cost $(AUDIT_BENCH)
