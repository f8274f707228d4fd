# One way to run things; continuous integration calls the same targets. `make help` lists them.

PYTHON ?= python
SOURCES := cnnext bench examples tests build_tools setup.py
CPP_SOURCES := $(shell find csrc tests bench -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help build test doctest lint format typecheck bench gpu-check static-report triton-report matrix tutorial clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## compile the kernels and install the package, editable, with all development tools
	$(PYTHON) -m pip install --editable ".[dev]"

test: ## run the tests
	$(PYTHON) -m pytest

doctest: ## run the examples in the docstrings
	$(PYTHON) -m pytest --doctest-modules cnnext bench

lint: ## check style: ruff for Python, clang-format for C++ and CUDA
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m ruff format --check $(SOURCES)
	clang-format --dry-run --Werror $(CPP_SOURCES)

format: ## rewrite sources in that style
	$(PYTHON) -m ruff check --fix $(SOURCES)
	$(PYTHON) -m ruff format $(SOURCES)
	clang-format -i $(CPP_SOURCES)

typecheck: ## check the type hints
	$(PYTHON) -m mypy

bench: ## measure accuracy and speed against PyTorch
	$(PYTHON) -m bench

gpu-check: ## on a machine with a GPU: build, test, sanitize and measure, in ten minutes
	$(PYTHON) -m bench.gpu_check

static-report: ## registers, spills and predicted times of the CUDA kernels, for every architecture, against their budget
	$(PYTHON) -m bench.static_report --arch 80 --arch 90 --arch 100 --arch 120 --check

triton-report: ## compile the Triton kernels of every layer with every setting for every architecture: registers and spills
	$(PYTHON) -m bench.static_report.triton

matrix: ## install the package in fresh environments: CPU torch, CUDA torch with and without nvcc, no torch
	$(PYTHON) build_tools/install_matrix.py

tutorial: ## execute examples/tutorial.py into the notebook beside it
	cd examples && $(PYTHON) -m jupytext --to ipynb --execute tutorial.py
	cd examples && $(PYTHON) -m nbconvert --to notebook --inplace --coalesce-streams \
	  --ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.clear_notebook_metadata=False tutorial.ipynb

clean: ## remove what builds and tools leave behind
	rm -rf build dist *.egg-info cnnext/*.so cnnext/build_info.json .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
