# make reproduce   environment, then Section 6.1: runs, notebooks, figures, and our numbers beside the published ones
# make test        environment, then style check and test suite
# make bench       environment, then the benchmark tables
#
# Both can be repeated at once: what exists is kept. Options: SEEDS=0-5  EPOCHS=32000  SECTION=6.1  CORES=all
PYTHON ?= python3
SEEDS ?= 0
EPOCHS ?= 32000
SECTION ?= 6.1
CORES ?= all
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help reproduce test bench environment

help:
	@sed -n 's/^# //p' Makefile

reproduce: $(READY)
	@test "$(SECTION)" = 6.1 || { echo "make: SECTION=$(SECTION) is not allowed: 6.1"; exit 2; }
	$(BIN)/snakemake --cores $(CORES) --config seeds=$(SEEDS) epochs=$(EPOCHS)
	@cat figures/comparison.md
	@echo; echo "Figures, gif and executed notebooks are in figures/."

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

bench: $(READY)
	$(BIN)/python -m benchmarks

environment: $(READY)

# uv installs the same file as pip in a quarter of the time; where it cannot, pip does. Compiling bytecode takes 20 s
# and makes every start of Python with torch 1.3 s shorter, also where bytecode is not written by default.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing requirements.txt into .venv (about 6 GB, half a minute to a few minutes) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 \
	  && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)
