# `make train` and `make test` do all the set-up they need; Python 3.11 or newer must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, each process that a test starts would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test long browser coverage lint docs site package mutants bench check-gpu stand-ins rehearse faults fuzz soak audit clean

train: $(VENV)/.installed
	$(BIN)/unmask train

test: $(VENV)/.installed-test lint
	$(PYTEST)

long: $(VENV)/.installed-test
	$(PYTEST) -m long

# The run page in a real browser: Debian's packages chromium and chromium-driver.
browser: $(VENV)/.installed-test
	$(BIN)/pytest -m browser $(BROWSER)

coverage: $(VENV)/.installed-test
	$(PYTEST) --cov --cov-fail-under=90

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/unmask methods --markdown > docs/methods.md

# The site of docs/, in site/. What Material tells of its own future is left out.
site: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Wheel and sdist in dist/, tried in an empty environment.
package:
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/pip install --quiet --constraint constraints.txt build twine
	$(VENV)-package/bin/python tools/package.py --table

mutants: $(VENV)/.installed-test
	$(BIN)/python tools/mutants.py

fuzz: $(VENV)/.installed-test
	$(BIN)/python tools/fuzz.py

MINUTES ?= 60
soak: $(VENV)/.installed
	$(BIN)/python tools/soak.py --minutes $(MINUTES) --figure soak.png

audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/record.py
	-$(BIN)/python benchmarks/main_job.py --steps 10

check-gpu: $(VENV)/.installed-test
	$(BIN)/python benchmarks/gpu.py $(CHECKOUTS)

stand-ins: $(VENV)/.installed
	$(BIN)/python tools/stand_ins.py runs/stand-ins

rehearse: $(VENV)/.installed
	$(BIN)/python tools/rehearse.py --stand-ins runs/stand-ins

faults: $(VENV)/.installed
	PYTHONPATH=tools $(BIN)/python -m faults $(FAULTS)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-package build dist site .pytest_cache .mypy_cache .ruff_cache .coverage
