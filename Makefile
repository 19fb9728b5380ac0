# make reproduce       environment, then a section of the paper (6.1): runs, notebooks, figures, our numbers beside its own
#                      SECTION=all: the whole paper and the studies past it, which end with the published curves that are met
# make environment     .venv with exact versions, which all others make first (docs has its own)
# make plan            what that will cost from here
# make test            environment, then style check and test suite
# make test-faults     environment, then hundreds of kills, faults and bad inputs (20 minutes); writes docs/reliability.md
# make test-portable   environment, then the numerical tests as older and other processors run them (MACHINES=oldest: one)
# make bench           environment, then the benchmark tables
# make playground      environment, then Playground.ipynb as a local web page
# make test-browser    environment, then the playground in chromium, which has to be there
# make test-cluster    environment, then the workflow on a Slurm of one node that is started for it (root; Debian's packages)
# make types           environment, then mypy on the public modules
# make coverage        environment, then the test suite with the lines that it reaches
# make docs            the guides as a site in site/, every link within the repository checked
# make wheel           the package in dist/, imported in an empty environment
#
# All can be repeated at once: what exists is kept. Options: SEEDS=0 (quick; default: those of the published curves)
# EPOCHS=32000  CORES=all
# SECTION=6.1, appendix-b, mean-field (what 6.1 converges to), optimizers, resnets (digits), resnets-start
# (30 passes over CIFAR-10), resnets-cifar10 (all), several of these with commas, or all (with CIFAR-10 where at hand)
# DATA_DIR=data  folder of CIFAR-10: its archive, or class folders train/<class>/*.png and test/<class>/*.png
PYTHON ?= python3
SEEDS ?=
EPOCHS ?=
SECTION ?= 6.1
CORES ?= all
MACHINES ?=
# Recipes read these from the environment: the shell takes no part of a value for a command.
export SEEDS EPOCHS SECTION CORES MACHINES
ifdef DATA_DIR
export VARPRO_DATA := $(DATA_DIR)
endif
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help reproduce plan test test-faults test-portable bench playground test-browser test-cluster types coverage docs wheel environment

help:
	@sed -n '/^PYTHON/q; s/^# \{0,1\}//p' Makefile

reproduce: plan
	$(BIN)/python -m snakemake --cores "$$CORES" --config section="$$SECTION" $${SEEDS:+seeds="$$SEEDS"} $${EPOCHS:+epochs="$$EPOCHS"}
	@cat "figures/comparison_$$SECTION.md"
	@echo; echo "Figures, gif and executed notebooks are in figures/."

plan: $(READY)
	@case "$$EPOCHS" in 0*|*[!0-9]*) echo "make: EPOCHS=$$EPOCHS is not allowed: a whole number from 1 up"; exit 2;; esac
	@case "$$CORES" in all) ;; ''|0*|*[!0-9]*) echo "make: CORES=$$CORES is not allowed: all, or a whole number from 1 up"; exit 2;; esac
	@$${EPOCHS:+env VARPRO_EPOCHS="$$EPOCHS"} $(BIN)/python -m varpro.paper --plan --section="$$SECTION" $${SEEDS:+--seeds="$$SEEDS"}

# Threads that wait for each other let go of their core: a sixth slower on an idle machine, far faster on a busy one.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile

test-portable: export OMP_WAIT_POLICY ?= PASSIVE
test-portable: $(READY)
	$(BIN)/python tests/portable.py $${MACHINES:+--machine $$MACHINES}

test-faults: export OMP_WAIT_POLICY ?= PASSIVE
test-faults: $(READY)
	$(BIN)/python tests/faults/run.py

bench: $(READY)
	$(BIN)/python -m benchmarks

# One of JupyterLab's extensions cannot run in the page, and leaves an error in its console.
playground: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-playground.txt
	$(BIN)/voila Playground.ipynb --VoilaConfiguration.extension_denylist=@jupyter-notebook/lab-extension

test-browser: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	$(BIN)/python -m pytest tests/browser/check_playground.py

test-cluster: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt
	$(BIN)/python tests/cluster/run.py

types: $(READY)
	$(BIN)/mypy

# Compiled kernels count as unreached: what runs of them is no Python.
coverage: export OMP_WAIT_POLICY ?= PASSIVE
coverage: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

docs: .venv-docs/.ready
	.venv-docs/bin/mkdocs build --strict

.venv-docs/.ready: requirements-docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	cd build && env -u PYTHONPATH empty/bin/python -c "import time; start = time.perf_counter(); import varpro; print('varpro', varpro.__version__, 'imported in', round(time.perf_counter() - start, 3), 's')"

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
