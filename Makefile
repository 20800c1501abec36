# What the README names: `make demo`, `make test`, `make docs`. Each sets up what it needs, and says so.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, which most never are: half a minute less.
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-compile
WORKERS := $(shell n=$$(nproc); [ $$n -gt 8 ] && n=8; echo $$((n + 2)))
DEMO := $(VENV)/.demo
TOOLS := $(VENV)/.tools

# Compiled modules are kept: most processes of the tests import the same ones.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-thorough test-newest test-oldest sites lint types imports unit docs format benchmark clean

demo: $(DEMO)
	@echo "qgexec demo: simulates a sky survey in qgexec-demo and reduces it"
	$(BIN)/qgexec demo qgexec-demo --overwrite

# A first look at everything: minutes.
test: lint types imports unit

# What is slow by nature: every kill at every record, every case of the comparison with pipetask on both models, ...
# SHARE=1/3 plays every third case of it, from the second on.
SHARE ?= 0/1
test-thorough: $(TOOLS)
	$(BIN)/pytest -m "thorough and not site" --share $(SHARE) -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What LSST's packages decide, with the newest of them, for which 3.11 is too old a Python, and with the oldest that we
# support (docs/design/0008): in virtual environments of their own, without what lints and documents.
LSST_TESTS := tests/peer tests/clustering/test_against_bps.py tests/bps/test_bpssettings.py \
  tests/bps/test_bpsservice.py::test_pipeline_to_the_end \
  $(patsubst %,tests/rubin/test_%.py,build compat graphfile ingest quantumlog recordtables scratch workbench)
PYTHON_NEWEST ?= $(call find_python,3.13)
PYTHON_OLDEST ?= $(call find_python,3.11)

test-newest: version = 3.13
test-newest: python = $(PYTHON_NEWEST)
test-newest: packages = --upgrade --upgrade-strategy eager --editable '.[demo,unit]'
test-newest: tests = $(LSST_TESTS) tests/batch tests/books tests/config tests/reports tests/cli/test_newer_options.py tests/cli/test_pipetask_options.py \
  tests/cli/test_provenance.py

test-oldest: version = 3.11
test-oldest: python = $(PYTHON_OLDEST)
test-oldest: packages = --constraint tests/oldest.txt --editable '.[unit]'
test-oldest: tests = $(LSST_TESTS)

test-newest test-oldest: test-%:
	$(if $(python),$(with_packages),$(no_python))

define with_packages
@echo "Setting up .venv-$* for $@: up to 1 GB from PyPI the first time ..."
@[ -x .venv-$*/bin/pip ] || $(python) -m venv .venv-$*
@.venv-$*/bin/pip --disable-pip-version-check install --quiet --no-compile $(packages)
@.venv-$*/bin/pip --disable-pip-version-check list | grep '^lsst'
.venv-$*/bin/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(tests)
endef

no_python = @echo "$@: nothing was tested, for there is no Python $(version) here: install one (pyenv install $(version))."

# The path of a Python of some version, which may be one of pyenv's; empty where there is none.
find_python = $(shell for version in '' $$(pyenv versions --bare 2>/dev/null); do \
  PYENV_VERSION=$$version python$(1) -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)

# Every way in which a job, a driver or a daemon of a real HTCondor and a real Slurm can end: half an hour, mostly waiting.
# Upstream's own executor too, under what is said of ours.
sites: $(TOOLS)
	$(BIN)/pytest -m "site or condor or slurm" -n 4 --dist loadfile --no-loadscope-reorder \
	  tests/sites tests/bps tests/test_graph_executor.py

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)
	$(BIN)/mypy

imports: $(TOOLS)
	$(BIN)/lint-imports

# More workers than cores: some tests wait for other programs. A file stays together.
unit: $(TOOLS)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The site, in build/docs. A warning is an error; `make test-thorough` builds it too, and throws it away.
docs: $(TOOLS)
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(TOOLS)
	$(BIN)/python -m benchmarks

$(DEMO): pyproject.toml
	@echo "Setting up $(VENV) for the demo: 800 MB, from PyPI: a few minutes on a slow line ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[demo]'
	@touch $@

$(TOOLS): $(DEMO)
	@echo "Adding what tests and documentation need: 300 MB more, from PyPI ..."
	$(PIP) --editable '.[demo,docs,test]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build src/*.egg-info qgexec-demo .mypy_cache .ruff_cache
