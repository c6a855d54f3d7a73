# Every target makes its own environment: .venv, installed once with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# Two threads suit the small networks of the demonstration. A waiting thread sleeps: where other
# programs run too, spinning would take the cores from the threads that have work.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo demo-digits test test-all parity browser docs wheel lint format clean

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'scoresde needs Python 3.11 or newer, \
	and $(PYTHON) is %d.%d: name another one, as in make demo PYTHON=python3.12' % sys.version_info[:2])"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/.installed  ## learn portraits from sentences, draw what is said, score: runs/demo
	$(BIN)/python experiments/demo.py --out runs/demo

demo-digits: .venv/.installed  ## the smaller one, digits class by class: runs/digits
	$(BIN)/python experiments/demo_digits.py --out runs/digits

test: .venv/.installed  ## the default suite, two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: .venv/.docs  ## the slow tests too, the site and the wheel among them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not parity and not gpu and not browser"

parity: .venv/.installed  ## against diffusers, POT and torchmetrics, which it installs
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[parity]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m parity

browser: .venv/.installed  ## the page, in the chromium and chromedriver of the system
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ui]" selenium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

docs: .venv/.docs  ## the site, its lessons executed: build/site/index.html
	rm -rf build/site
	$(BIN)/sphinx-build -q -W --keep-going -c docs -d build/doctrees . build/site

wheel: .venv/.installed  ## dist/: built, installed into an empty environment, and used there
	$(BIN)/python experiments/wheel.py --out dist

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
