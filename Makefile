# `make train` and `make test` are all you need; both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/debug.yaml
ARGS ?=
WORKERS ?= -n 2 --dist loadscope --no-loadscope-reorder
STAMP := $(VENV)/.installed

.PHONY: train test soak lint venv clean

train: $(STAMP)
	@$(VENV)/bin/translution train $(CONFIG) --picture $(ARGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest $(WORKERS) $(ARGS)

soak: $(STAMP)
	$(VENV)/bin/python -m pytest $(WORKERS) -m "soak or not soak" $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is missing or older than 3.11; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make virtual environments; install them with: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; the downloads can take minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
