# The two commands of the README: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS := $(shell n=$$(nproc); [ $$n -gt 8 ] && n=8; echo $$((n + 2)))
STAMP := $(VENV)/.installed

.PHONY: demo test lint types imports unit sites docs format benchmark clean

demo: $(STAMP)
	$(BIN)/qgexec demo qgexec-demo --overwrite

test: lint types imports unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

# More workers than cores: those that test batch systems mostly wait for them. A file stays together.
unit: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# Every way in which a job, a driver or a daemon of a real HTCondor and a real Slurm can end: half an hour, mostly waiting.
sites: $(STAMP)
	$(BIN)/pytest -m "condor or slurm" -n 4 --dist loadfile tests/sites tests/bps

# The site, in build/docs. A warning is an error; `make test` builds it too, and throws it away.
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP)
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,docs,test]'
	touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info qgexec-demo .mypy_cache .ruff_cache
