# What to do with a checkout of panorgan. `make` alone lists the targets.

PYTHON ?= python3
CORES ?= $(shell nproc)
TESTS ?=
DEVICE ?= cuda
SMOKE ?=
OUT ?= wheels
PYTHON_VERSION ?=
THERE ?=
MACHINE ?=
HASHES ?=
MINUTES ?= 60
SEED ?=
BIN := .venv/bin

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env demo demo-model test soak lint docs benchmarks gpu wheels hashes clean

# Values reach the shell as variables of its own, so that it takes none of them for a command.
export PYTHON CORES TESTS DEVICE OUT PYTHON_VERSION THERE MACHINE MINUTES SEED

# Packages of another environment that is active in the shell must not leak into ours.
unexport PYTHONPATH PYTHONHOME

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

env: .venv/installed ## create .venv with panorgan and snakemake in it (HASHES=1: docs/security.md)

demo: env ## write the demo's data, run the whole workflow on them, show the scores
	@touch .venv/demo-started
	$(BIN)/snakemake --cores "$$CORES" --configfile config/demo.yaml
	@# A run ends with the scores, but not where there was nothing to do.
	@[ results/demo/summary.txt -nt .venv/demo-started ] || cat results/demo/summary.txt

demo-model: demo ## write docs/demo_model, a model of 1 MB to try `panorgan predict` with
	$(BIN)/python docs/demo_model.py

test: env ## run the tests that are possible here and name the others (TESTS=PATH for some of them)
ifneq ($(strip $(TESTS)),)
	$(BIN)/python -m pytest -rs $$TESTS
else
	@# Side by side: unit tests, then those that run workflows, two files at a time; then the demo,
	@# alone, as its trainings have both cores: side by side with another it takes four times as long.
	@# A worker that dies ends them: with another one in its place they may wait for ever.
	@# The tests of workflow_tests/gpu run within `make gpu`, which one of those calls.
	@status=0; demo=workflow_tests/workflow/test_demo.py; \
	side='--dist loadfile --max-worker-restart 0'; \
	$(BIN)/python -m pytest -rs -n "$$CORES" $$side workflow_tests/unit || status=1; \
	$(BIN)/python -m pytest -rs -n 2 $$side --ignore=workflow_tests/unit \
	    --ignore=workflow_tests/gpu --ignore=$$demo workflow_tests || status=1; \
	$(BIN)/python -m pytest -rs $$demo || status=1; \
	exit $$status
endif

soak: env ## kill runs in every rule, many times (MINUTES=60; SEED=N: from that one on)
	$(BIN)/python workflow_tests/faults/soak.py --minutes "$$MINUTES" $(if $(SEED),--seed "$$SEED")

lint: env ## check the style of the code and look for mistakes in it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

docs: env ## write config/config.yaml, the documented defaults, and docs/licences.md
	$(BIN)/python -m panorgan.config.settings
	$(BIN)/python envs/licences.py

benchmarks: env ## run workflow_tests/benchmarks
	@for file in $(sort $(wildcard workflow_tests/benchmarks/[a-z]*.py)); do \
	    echo "$$file"; $(BIN)/python "$$file"; \
	done

gpu: env ## test and measure all that runs on a GPU, 9 minutes at most (DEVICE=cpu SMOKE=1: without one)
	$(BIN)/python workflow_tests/gpu/run.py --device "$$DEVICE" $(if $(SMOKE),--smoke)

wheels: env ## collect wheels for a machine without network (OUT=DIR PYTHON_VERSION=3.12 THERE=LIST)
	$(BIN)/python envs/collect_wheels.py --out "$$OUT" \
	    $(if $(PYTHON_VERSION),--python "$$PYTHON_VERSION") $(if $(THERE),--there "$$THERE") \
	    $(if $(MACHINE),--machine "$$MACHINE")

hashes: env ## write envs/hashes.txt from the index that pip uses here (MACHINE=x86_64)
	$(BIN)/python envs/hash_packages.py $(if $(MACHINE),--machine "$$MACHINE")

clean: ## remove the demo's data and results and all caches, nothing else
	rm -rf data/demo results/demo .pytest_cache .ruff_cache .hypothesis
	find scripts src workflow_tests -name __pycache__ -prune -exec rm -rf {} +

# .venv/installed is written last: without it an installation was cut off, and all starts afresh.
.venv/installed: envs/requirements.txt envs/constraints.txt pyproject.toml
	@"$$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	    echo "panorgan needs Python 3.11, 3.12 or 3.13, and '$$PYTHON' is missing or another." >&2; \
	    echo "Name one: make $(or $(MAKECMDGOALS),env) PYTHON=python3.12" >&2; exit 1; }
	@"$$PYTHON" -c 'import ensurepip, venv' 2> /dev/null || { \
	    echo "'$$PYTHON' cannot create environments." >&2; \
	    echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv: 2 GB or more, a few minutes"
	@[ -e $@ ] || "$$PYTHON" -m venv --clear .venv
	@rm -f $@
ifneq ($(strip $(HASHES)),)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: \
	    -r envs/hashes.txt
	PIP_USE_PEP517=1 $(BIN)/python -m pip install --quiet --require-hashes --no-deps \
	    --no-build-isolation -r envs/hashes-sources.txt
endif
	$(BIN)/python -m pip install --quiet -c envs/constraints.txt -r envs/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
