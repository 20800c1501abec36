# The two commands of the README: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types imports unit format benchmark clean

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

# A worker for each core, of which test files with processes of their own keep about one busy; a file stays together.
unit: $(STAMP)
	$(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP)
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info qgexec-demo .mypy_cache .ruff_cache
