# What the README names: `make demo`, `make test`, `make docs`. Each sets up what it needs, and says so.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
WORKERS := $(shell n=$$(nproc); [ $$n -gt 8 ] && n=8; echo $$((n + 2)))
DEMO := $(VENV)/.demo
TOOLS := $(VENV)/.tools

# Compiled modules are kept: most processes of the tests import the same ones.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-thorough sites lint types imports unit docs format benchmark clean

demo: $(DEMO)
	@echo "qgexec demo: simulates a sky survey in qgexec-demo and reduces it"
	$(BIN)/qgexec demo qgexec-demo --overwrite

# A first look at everything: minutes.
test: lint types imports unit

# What is slow by nature: every kill at every record, every case of the comparison with pipetask on both models, ...
test-thorough: $(TOOLS)
	$(BIN)/pytest -m "thorough and not site" -n $(WORKERS) --dist loadfile

# Every way in which a job, a driver or a daemon of a real HTCondor and a real Slurm can end: half an hour, mostly waiting.
sites: $(TOOLS)
	$(BIN)/pytest -m "condor or slurm" -n 4 --dist loadfile tests/sites tests/bps

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)
	$(BIN)/mypy

imports: $(TOOLS)
	$(BIN)/lint-imports

# More workers than cores: some tests wait for other programs. A file stays together.
unit: $(TOOLS)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# The site, in build/docs. A warning is an error; `make test-thorough` builds it too, and throws it away.
docs: $(TOOLS)
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(TOOLS)
	$(BIN)/python -m benchmarks

$(DEMO): pyproject.toml
	@echo "Setting up $(VENV) for the demo: about 600 MB from PyPI, a few minutes on a slow line ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[demo]'
	@touch $@

$(TOOLS): $(DEMO)
	@echo "Adding what tests and documentation need: about 500 MB from PyPI ..."
	$(PIP) --editable '.[demo,docs,test]'
	@touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info qgexec-demo .mypy_cache .ruff_cache
