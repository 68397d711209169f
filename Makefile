# The commands of the book. Only python3 (>= 3.11) and make are needed; everything else goes into .venv.
#   make help     lists them

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export PYTHONUTF8 := 1
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help book test test-browser lint types layers unit lab chapter notebooks bench bench-gpu format clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed; set PYTHON=..." && false)
	@test -x $(BIN)/python || (echo "Creating $(VENV)" && $(PYTHON) -m venv $(VENV))
	@echo "Installing flowlib and what the book needs (a few minutes the first time)"
	@$(PIP) setuptools wheel
	@$(PIP) --no-build-isolation --editable ".[book,gpu,recipes]"
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Installing what the tests need"
	@$(PIP) --no-build-isolation --editable ".[book,gpu,recipes,dev]"
	@touch $@

book: $(VENV)/.base ## run the chapters that changed and build the whole book (_build/html)
	@$(BIN)/python -m bookbuild book

test: $(VENV)/.dev lint types layers unit ## lint, types, layers, all tests

lint: $(VENV)/.dev ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy flowlib bookbuild

layers: $(VENV)/.dev ## import-linter: who may import whom
	$(BIN)/lint-imports

unit: $(VENV)/.dev ## unit, property, doc and browser tests (ARGS="-k name" selects)
	$(BIN)/python -m pytest $(ARGS)

test-browser: $(VENV)/.dev ## every page of the built book in headless Chromium
	$(BIN)/python -m pytest tests/browser $(ARGS)

lab: $(VENV)/.base ## JupyterLab, with the chapters opening as notebooks
	@JUPYTER_CONFIG_DIR=$(CURDIR)/.jupyter_config $(BIN)/jupytext-config set-default-viewer markdown > /dev/null
	JUPYTER_CONFIG_DIR=$(CURDIR)/.jupyter_config $(BIN)/jupyter lab

chapter: $(VENV)/.base ## run and build one chapter: make chapter NAME=flow-matching
	@test -n "$(NAME)" || (echo "Say which: make chapter NAME=flow-matching" && false)
	@$(BIN)/python -m bookbuild chapter $(NAME)

notebooks: $(VENV)/.base ## write every chapter as a clean .ipynb into notebooks/
	@$(BIN)/python -m bookbuild notebooks

bench: $(VENV)/.dev ## flowlib beside its peers; writes book/results/benchmarks.json
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PIP_FLAGS) torchcfm==1.0.7
	$(BIN)/python -m benchmarks.run

bench-gpu: $(VENV)/.dev ## kernels on a GPU: accuracy, then times; writes book/results/gpu-kernels.json
	$(BIN)/python -m pytest tests/kernels
	$(BIN)/python -m benchmarks.gpu

format: $(VENV)/.dev ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built (not .venv)
	rm -rf _build notebooks book/api .jupyter_config
