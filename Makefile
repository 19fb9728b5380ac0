# make reproduce       environment, then a section of the paper (6.1): runs, notebooks, figures, our numbers beside its own
# make plan            what that will cost from here
# make test            environment, then style check and test suite
# make test-portable   environment, then the numerical tests as older and other processors run them
# make bench           environment, then the benchmark tables
#
# All can be repeated at once: what exists is kept. Options: SEEDS=0 (quick; default: those of the published curves)
# EPOCHS=32000  CORES=all
# SECTION=6.1, appendix-b, mean-field (what 6.1 converges to), resnets (digits) or resnets-cifar10
PYTHON ?= python3
SEEDS ?=
EPOCHS ?=
SECTION ?= 6.1
CORES ?= all
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help reproduce plan test test-portable bench environment

help:
	@sed -n 's/^# //p' Makefile

reproduce: plan
	$(BIN)/python -m snakemake --cores $(CORES) --config section="$(SECTION)" $(if $(SEEDS),seeds="$(SEEDS)") $(if $(EPOCHS),epochs=$(EPOCHS))
	@cat "figures/comparison_$(SECTION).md"
	@echo; echo "Figures, gif and executed notebooks are in figures/."

plan: $(READY)
	@case "$(EPOCHS)" in 0*|*[!0-9]*) echo "make: EPOCHS=$(EPOCHS) is not allowed: a whole number from 1 up"; exit 2;; esac
	@$(if $(EPOCHS),VARPRO_EPOCHS=$(EPOCHS)) $(BIN)/python -m varpro.paper --plan --section "$(SECTION)" $(if $(SEEDS),--seeds "$(SEEDS)")

# Threads that wait for each other let go of their core: a sixth slower on an idle machine, far faster on a busy one.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-portable: export OMP_WAIT_POLICY ?= PASSIVE
test-portable: $(READY)
	$(BIN)/python tests/portable.py

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
