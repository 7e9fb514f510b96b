# Everything happens in .venv, made on first use. PYTHON picks the interpreter: make demo PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifndef DEMO_OUT
DEMO_OUT := runs/demo-$(shell date +%Y%m%d-%H%M%S)
endif

# A file of tests is one worker's, so that what its tests share is made once. Each core has a worker: more threads in
# each would only wait for each other.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: help demo test check format docs results results-tables site clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[viewer]'
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed ## SLAM on the bundled sequence; leaves a run folder with a recording
	$(BIN)/slam run sequences/room_loop --out $(DEMO_OUT) --record $(DEMO_OUT)/run.rrd

test: $(VENV)/.developed ## the tests
	$(PYTEST)

check: $(VENV)/.developed ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(PYTEST)

format: $(VENV)/.developed ## put the sources in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed ## the generated pages
	$(BIN)/slam config --markdown > docs/configuration.md

results: $(VENV)/.installed ## measure the figures of README and docs/results.md; SEQUENCES=DIR STRESS=DIR
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python docs/measure_results.py \
		$(if $(SEQUENCES),--sequences $(SEQUENCES)) $(if $(STRESS),--stress $(STRESS))

results-tables: $(VENV)/.installed ## put docs/results/*.json into README and docs/results.md
	$(BIN)/python docs/results_tables.py

$(VENV)/.documented: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

site: $(VENV)/.documented ## the documentation site, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean: ## remove the environment and caches
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
