# `make` lists the targets. All of them share one virtual environment, .venv, which is made and
# filled on first use and again whenever the dependencies in setup.cfg or pyproject.toml change.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The Python that .venv is made from, 3.11 or newer: `make test PYTHON=python3.13`.
PYTHON ?= python3
# Where that is the default and too old, these are tried.
ifeq ($(origin PYTHON),file)
PYTHONS := $(PYTHON) python3.13 python3.12 python3.11 python3.14
else
PYTHONS := $(PYTHON)
endif

VENV := .venv
BIN := $(VENV)/bin
METADATA := setup.cfg pyproject.toml

# Two processes of one thread each take half the time of one that has all threads.
PYTEST := python -m pytest --numprocesses 2 --dist worksteal

# Estimators, parameters, callbacks, model files, scikit-learn's own checks.
SMOKE := tests/_utils tests/density tests/model_selection tests/contracts/test_estimators.py \
	tests/calibration

# Of pip's output, what was downloaded and installed; its errors go to stderr and stay whole.
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --editable
PROGRESS = awk '(/^ *(Downloading|Using cached) / && !/\.metadata/) || /^(Installing|Success)/ \
	{ print substr($$0, 1, 160); fflush() }'

# Whether `make docs` runs the examples (1), or leaves their pictures out (0), which takes seconds.
GALLERY ?= 1
SPHINX = GALLERY=$(GALLERY) $(BIN)/python -m sphinx --fail-on-warning --keep-going

.PHONY: help demo test lint docs docs-links lowest middle older smoke engines audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo ## find defects in real solar cells and draw them: solar_cells.png
	$(BIN)/python examples/plot_solar_cells.py

test: export OMP_NUM_THREADS := 1
test: lint ## all checks: those of lint, then all tests with coverage
	$(BIN)/$(PYTEST) --cov

lint: $(VENV)/.installed-test ## style, types and docstrings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/contracts/test_docstrings.py

docs: $(VENV)/.installed-docs ## the documentation, docs/_build/html/index.html; GALLERY=0 runs no example
	rm -rf docs/generated
	$(SPHINX) --builder html docs docs/_build/html

docs-links: GALLERY = 0
docs-links: $(VENV)/.installed-docs ## whether links to other sites still lead somewhere (needs a network)
	$(SPHINX) --builder linkcheck docs docs/_build/linkcheck

# Which tests run with other versions: `make lowest SUITE=tests/onnx`.
SUITE ?= tests
LOWEST := --resolution lowest-direct --editable '.[test]'
MIDDLE := --editable '.[test]' 'scikit-learn==1.7.*' 'torch==2.11.*'

define TEST_OTHER_VERSIONS
$(BIN)/python -m venv --clear $(VENV)-$@
@$(VENV)-$@/bin/python -m pip install --disable-pip-version-check --quiet uv
@echo "Installing the $@ versions into $(VENV)-$@ (PyTorch is large)"
@$(VENV)-$@/bin/uv pip install --quiet --python $(VENV)-$@/bin/python $(1)
$(VENV)-$@/bin/$(PYTEST) $(SUITE)
endef

lowest middle: export OMP_NUM_THREADS := 1
lowest: $(BIN)/python ## all tests with the lowest versions that setup.cfg allows
	$(call TEST_OTHER_VERSIONS,$(LOWEST))

middle: $(BIN)/python ## all tests with versions between the lowest and the newest
	$(call TEST_OTHER_VERSIONS,$(MIDDLE))

# scikit-learn in front of the installed one: no other environment, which takes minutes and GBs.
OLDER := 1.6.1 1.7.2
older: export OMP_NUM_THREADS := 1
older: $(VENV)/.installed-test ## callbacks, searches and parts with older versions of scikit-learn
	@set -e; for version in $(OLDER); do \
		echo "scikit-learn $$version"; \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade \
			--target $(VENV)/scikit-learn-$$version "scikit-learn==$$version"; \
		PYTHONPATH=$(CURDIR)/$(VENV)/scikit-learn-$$version $(BIN)/$(PYTEST) -q \
			tests/_utils tests/model_selection tests/detector/test_score_groups.py; \
	done

smoke: export OMP_NUM_THREADS := 1
smoke: $(VENV)/.installed-test ## what depends on versions, in minutes; SCIPY_ARRAY_API=1 make smoke
	$(BIN)/$(PYTEST) -q $(SMOKE)

engines: export OMP_NUM_THREADS := 1
engines: $(VENV)/.installed-test ## Dask, Ray and Spark for real (Spark needs Java); workers are killed
	@$(PIP_INSTALL) '.[test,engines]' | $(PROGRESS)
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest tests/distributed

audit: $(VENV)/.installed-test ## whether installed packages are consistent, and all looked up without a known weakness
	$(BIN)/python -m pip check
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet pip-audit
	@# Of the log, what went wrong; the verdict comes from the report, which says what was looked up.
	@{ $(BIN)/pip-audit --progress-spinner off --format json 2> $(VENV)/audit.log || true; } \
		| $(BIN)/python .ci/audit.py || { tail -n 3 $(VENV)/audit.log >&2; exit 1; }

clean: ## remove .venv and everything that was built or measured
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-middle build dist *.egg-info .coverage htmlcov *.png
	rm -rf docs/_build docs/auto_examples docs/generated examples/*.png
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find benchmarks docs examples skanomaly_vit tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-demo: $(METADATA) | $(BIN)/python
	@echo "Installing skanomaly-vit and the demo's packages into $(VENV) (PyTorch is large)"
	@$(PIP_INSTALL) '.[demo]' | $(PROGRESS)
	@touch $@

$(VENV)/.installed-docs: $(METADATA) | $(BIN)/python
	@echo "Installing skanomaly-vit and the documentation's packages into $(VENV) (PyTorch is large)"
	@$(PIP_INSTALL) '.[docs]' | $(PROGRESS)
	@touch $@

# The test extra holds the demo extra.
$(VENV)/.installed-test: $(METADATA) | $(BIN)/python
	@echo "Installing skanomaly-vit and the tests' packages into $(VENV) (PyTorch is large)"
	@$(PIP_INSTALL) '.[test]' | $(PROGRESS)
	@touch $@ $(VENV)/.installed-demo

$(BIN)/python:
	@for python in $(PYTHONS); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$("$$python" --version)"; \
			exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "skanomaly-vit needs Python 3.11 or newer; none found as: $(PYTHONS)." >&2; \
	echo "Say where it is: make PYTHON=/path/to/python3.11 ..." >&2; \
	exit 1
