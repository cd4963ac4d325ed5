# The two commands: `make demo` runs the main job, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch==2.13.0
# pip's other messages say what happens; this one only asks for a newer pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# idle llama.cpp threads wait instead of spinning on cores that others need
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint typecheck bench reproduce docs docs-serve clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv with everything

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# resolves in a third of the time that the pip of Python 3.11 takes, and shows what setuptools says
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local,rl,report,split,embedding,serve,ray,docs,dev]'
	$(BIN)/icl-optimizer setup
	touch $(READY)

demo: $(READY)  ## compare policies on offloading with the embedded model; writes a report
	$(BIN)/icl-optimizer compare offloading --out runs/demo --jobs 2 --resume

test: lint typecheck $(READY)  ## lint, types and all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(READY)  ## mypy on a built tree, where modules nest as they are imported
	rm -rf build/lib
	$(BIN)/python -c "from setuptools import setup; setup()" --quiet build
	cd build/lib && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p icl_optimizer

bench: $(READY)  ## ratios against peers, into benchmarks/results.json
	$(BIN)/icl-optimizer bench

reproduce: $(READY)  ## every table and figure of the papers; hours; goes on where it was
	$(BIN)/icl-optimizer reproduce

docs: $(READY)  ## the site, into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-serve: $(READY)  ## the site at http://127.0.0.1:8008, built again when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --livereload --dev-addr 127.0.0.1:8008

clean:  ## remove the environment and build products
	rm -rf $(VENV) build *.egg-info runs
