# Everything from nothing but Python 3.11 to 3.13 and make. `make help` lists the targets.
# Where packages come from is pip's configuration (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf).

PYTHON ?= python3
MODEL  ?= smollm2
HOST   ?= 127.0.0.1
PORT   ?= 8000
# More flags for octavo or pytest, such as ARGS="--max-model-len 4096".
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
PIN  := constraints/cpu.txt

# The stamps' names hold what was installed and where, so an unchanged tree installs nothing.
KEY   := $(shell (cat pyproject.toml $(PIN) 2>/dev/null; pwd) | cksum | tr ' ' '-')
SERVE := $(VENV)/.octavo-serve-$(KEY)
DEV   := $(VENV)/.octavo-dev-$(KEY)
PIP   := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c $(PIN)

.DEFAULT_GOAL := help
.PHONY: help serve chat bench test check format models docs constraints clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  printf '  make %-12s %s\n' "$$name" "$$text"; done
	@echo '  variables: MODEL=$(MODEL) HOST=$(HOST) PORT=$(PORT) PYTHON=$(PYTHON) ARGS=...'

serve: $(SERVE)  ## set up, pull MODEL if it is missing, and serve it on HOST:PORT
	@exec $(BIN)/octavo serve $(MODEL) --pull --host $(HOST) --port $(PORT) $(ARGS)

chat: $(SERVE)  ## talk to the server that runs here, or to MODEL in this process
	@exec $(BIN)/octavo chat $(MODEL) --url http://$(HOST):$(PORT)/v1 $(ARGS)

bench: $(SERVE)  ## load the server that runs here
	@exec $(BIN)/octavo bench serve --url http://$(HOST):$(PORT) $(ARGS)

test: check models  ## all checks and all tests, as CI runs them
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not gpu" \
	  -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(DEV)  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## let ruff format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

models: $(DEV)  ## pull the small models that tests use
	@$(BIN)/octavo pull smollm2 gemma3-270m all-minilm >/dev/null

docs: $(DEV)  ## write the generated parts of docs/ and deploy/
	$(BIN)/python scripts/cli_docs.py
	$(BIN)/python scripts/gateway_config_docs.py
	$(BIN)/python -m scripts.grafana

constraints:  ## choose new versions of all packages: TORCH=x.y.z, oldest PYTHON
	$(PYTHON) scripts/constraints.py --torch $(TORCH)

clean:  ## remove the environment and caches; pulled models stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
	  .hypothesis
	find octavo tests scripts -name __pycache__ -prune -exec rm -rf {} +

$(SERVE):
	$(call environment)
	$(INSTALL) --no-build-isolation -e .
	@rm -f $(VENV)/.octavo-serve-* && touch $@

$(DEV):
	$(call environment)
	$(INSTALL) --no-build-isolation -e '.[dev]'
	@rm -f $(VENV)/.octavo-* && touch $(SERVE) $@

# An environment that is missing, broken or of another Python is made anew. Torch comes first and
# alone: it is most of the bytes, and what fails there should say so.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "Octavo needs Python 3.11 to 3.13; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing packages into $(VENV); the first time this takes a few minutes"
	$(INSTALL) pip scikit-build-core cmake ninja
	$(INSTALL) torch
endef
