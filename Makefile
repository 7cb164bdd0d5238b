# One command shows the main job (make demo), one runs the tests (make test); both set up what they need.

# The interpreter to build the environment with: the newest one found that is new enough.
PYTHON ?= $(shell for candidate in python3.13 python3.12 python3.11 python3 python; do \
	$$candidate -c 'import sys; sys.exit(not sys.version_info >= (3, 11))' 2>/dev/null && echo $$candidate && break; done)
VENV ?= .venv
# A requirement to pin Django by, as in DJANGO='django~=5.2.0'.
DJANGO ?= django
BIN := $(VENV)/bin
# The variable reaches the processes that run tests side by side; the option -X dev would not.
DEV := PYTHONDEVMODE=1
PYTEST := $(DEV) $(BIN)/python -m pytest
# Processes that run tests side by side.
JOBS ?= 2
SIDE_BY_SIDE := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo demo-serve test check lint types migrations coverage report chaos bench messages clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stamp for each set of extras; a changed pyproject.toml installs again.
$(VENV)/.installed-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed. Install it, or name it: make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (extras: $*) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]' '$(DJANGO)'
	@touch $@

demo: $(VENV)/.installed-demo ## break everything on purpose on real data, in about two minutes
	@$(BIN)/python manage.py demo $(ARGS)

demo-serve: $(VENV)/.installed-demo ## keep a server up with live data, to look at the dashboard
	@$(BIN)/python manage.py demo_serve $(ARGS)

test: $(VENV)/.installed-test ## run the tests, with every server found on this machine
	$(PYTEST) --quiet $(SIDE_BY_SIDE) $(ARGS)

check: lint types migrations coverage ## all that must hold: linters, types, migrations, and the tests with the branches they take

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

migrations: $(VENV)/.installed-dev
	$(BIN)/python manage.py check
	$(BIN)/python manage.py makemigrations --check --dry-run

coverage: $(VENV)/.installed-dev ## run the tests and tell which branches none of them takes
	$(BIN)/coverage erase
	$(DEV) $(BIN)/coverage run -m pytest --quiet $(SIDE_BY_SIDE) $(ARGS)
	@$(MAKE) --no-print-directory report

report: $(VENV)/.installed-dev
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

chaos: $(VENV)/.installed-test ## the long form of the tests that kill, freeze and flood
	RESILIENCE_CHAOS=long $(PYTEST) -m chaos --timeout 3600

bench: $(VENV)/.installed-bench ## compare speed and memory with the peers, as ratios in one run
	@for part in calls circuits db db_writes runs; do $(BIN)/python -m benchmarks.$$part || exit 1; done

messages: $(VENV)/.installed-dev ## compile the translations
	cd resilience && ../$(BIN)/python -m django compilemessages

clean: ## remove environments, caches and what the demo left behind
	rm -rf .venv* var build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache
