# Every target makes its own environment: .venv, installed once with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# Two threads suit the small networks of the demonstration. A waiting thread sleeps: where other
# programs run too, spinning would take the cores from the threads that have work.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo demo-digits test test-all parity browser lint format clean

.venv/.installed: pyproject.toml constraints.txt
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

test-all: .venv/.installed  ## the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not parity and not gpu and not browser"

parity: .venv/.installed  ## against diffusers, POT and torchmetrics, which it installs
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[parity]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m parity

browser: .venv/.installed  ## the page, in the chromium and chromedriver of the system
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ui]" selenium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
