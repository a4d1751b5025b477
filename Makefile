# One vocabulary for people and CI. `make run` and `make test` need nothing but Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
USERS ?= 20000
DAYS ?= 90
SEED ?= 7

# Telemetry of every part off; one thread per process: the nets are small and two threads on busy cores are slower.
export DO_NOT_TRACK := 1
export BENTOML_DO_NOT_TRACK := True
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE
# The lock is installed without bytecode (half the time): let Python keep what it compiles on first use.
export PYTHONDONTWRITEBYTECODE :=
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test check bench serve ui clean

$(VENV): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-compile --no-deps -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(VENV)

run: $(VENV)
	$(BIN)/tactful run --users $(USERS) --days $(DAYS) --seed $(SEED)

test: $(VENV)
	$(BIN)/python -m pytest -m "not slow"

check: $(VENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow"

bench: $(VENV)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

serve: $(VENV)
	$(BIN)/bentoml serve

ui: $(VENV)
	$(BIN)/evidently ui --workspace data/monitoring/workspace --host 127.0.0.1 --port 8001

clean:
	rm -rf data feature_repo/data
