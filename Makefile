# From a clean checkout, `make demo` shows what privgen does and `make test` checks all of it.
# Both make a virtual environment in .venv first. Variables that may be given on the command line:
#   PYTHON       Python 3.11 or newer for the environment
#   ARGS         options of `make fuzz` and `make chaos`
#   SCREENSHOTS  folder where `make test-page` draws the tabs of the page
#   TORCH_INDEX  package index for PyTorch, for example its CPU-only one; empty means the configured index

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

NEW_ENOUGH := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
TORCH_INDEX ?=
VENV := .venv
APP := .venv-app
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help
help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

.PHONY: demo
demo: $(VENV)/.privgen ## Show what privgen does, with the model that it ships.
	$(BIN)/python examples/demo.py

.PHONY: test
test: check ## Check everything: style, types, tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: test-slow
test-slow: $(VENV)/.dev test-page ## Run the slow tests.
	$(BIN)/python -m pytest -m slow

.PHONY: test-page
test-page: $(APP)/.app links ## Test the page in a browser; SCREENSHOTS=docs/images draws the pictures of the docs.
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/.types PRIVGEN_SCREENSHOTS=$(SCREENSHOTS) $(APP)/bin/python -m pytest -m slow tests/webpage

.PHONY: mutants
mutants: $(VENV)/.dev ## Break the maths of the core line by line, and check that tests notice.
	$(BIN)/python tests/mutants.py

.PHONY: fuzz
fuzz: $(VENV)/.dev ## Damage 20,000 files, and check that reading them never crashes.
	$(BIN)/python tests/fuzz.py $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.dev ## Kill commands 200 times, and check that nothing is lost or half-written.
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos.py $(ARGS)

.PHONY: check
check: lint types ## Check style and types.

.PHONY: lint
lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# mypy takes a module's name from its folders, and pipelines/ is privgen.pipelines only once installed. So it
# is run inside .types/, where links give every room its import name; sed turns its paths back into ours.
.PHONY: types
types: $(VENV)/.dev links
	@set -o pipefail; cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p privgen \
		| sed -E 's#^privgen/(pipelines|attacks|cli)/#\1/#'

.PHONY: links
links:
	@mkdir -p .types/privgen
	@ln -sfn $(addprefix ../../,$(wildcard privgen/*) pipelines attacks cli) .types/privgen/
	@find -L .types/privgen -maxdepth 1 -type l -delete

.PHONY: docs
docs: $(VENV)/.docs links ## Build the documentation in site/.
	$(BIN)/mkdocs build --strict

.PHONY: format
format: $(VENV)/.dev ## Format the code and fix what can be fixed.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: help-texts
help-texts: $(VENV)/.dev ## Write docs/help/ from the commands.
	$(BIN)/python tests/cli/test_help_texts.py

.PHONY: tables
tables: $(VENV)/.dev ## Write the tables of README and docs from the records.
	$(BIN)/python tests/test_docs.py

.PHONY: wheel
wheel: $(VENV)/.dev ## Build the source archive and the wheel in dist/.
	$(BIN)/python -m build --no-isolation

.PHONY: clean
clean: ## Remove what the targets made, the environment too.
	rm -rf $(VENV) $(APP) .types .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info

# PyTorch comes first and alone, because only it may come from another index.
$(VENV)/.torch: constraints.txt
	$(if $(PYTHON),,$(error privgen needs Python 3.11 or newer with venv: make PYTHON=/path/to/python))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q --no-deps -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/.privgen: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.privgen

# Gradio wants an older Pillow than the one that the tests run with. So the page has an environment of its own, which
# finds everything else in the first one.
$(APP)/.app: $(VENV)/.dev
	$(BIN)/python -m venv --without-pip $(APP)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(APP)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth"
	$(PIP) --python $(APP)/bin/python install -q 'gradio==6.31.0' 'playwright==1.65.2'
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.privgen
