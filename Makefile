# One vocabulary for people and CI. `make run` and `make test` need nothing but Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SPARK := .venv-spark
USERS ?= 20000
DAYS ?= 90
SEED ?= 7

# Telemetry of every part off; one thread per process: the nets are small and two threads on busy cores are slower.
export DO_NOT_TRACK := 1
export BENTOML_DO_NOT_TRACK := True
export NO_MKDOCS_2_WARNING := 1
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE
# The lock is installed without bytecode (half the time): let Python keep what it compiles on first use.
export PYTHONDONTWRITEBYTECODE :=
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Two tests at a time, each file in one process: fixtures are shared within a file.
PYTEST := $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-spark test-docs check coverage audit docs bench serve ui clean $(VENV) $(SPARK)

# The stamp is written last: an installation that was killed half-way is begun anew.
INSTALLED := $(VENV)/.installed

$(VENV): $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Tactful needs Python 3.11, and \`$(PYTHON)\` is not; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-compile --no-deps -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# PySpark on top of what is in .venv: nothing is installed twice, and .venv stays without it.
SPARK_INSTALLED := $(SPARK)/.installed

$(SPARK): $(SPARK_INSTALLED)

$(SPARK_INSTALLED): requirements-spark.lock $(INSTALLED)
	$(BIN)/python -m venv --clear --without-pip $(SPARK)
	echo 'import site; site.addsitedir("$(CURDIR)/$(VENV)/lib/python3.11/site-packages")' > $(SPARK)/lib/python3.11/site-packages/base.pth
	$(SPARK)/bin/python -m pip install -q --disable-pip-version-check --no-compile --no-deps -r requirements-spark.lock
	for command in feast tactful; do \
	  sed '1s|.*|#!$(CURDIR)/$(SPARK)/bin/python|' $(BIN)/$$command > $(SPARK)/bin/$$command && chmod +x $(SPARK)/bin/$$command || exit 1; done
	touch $@

run: $(INSTALLED)
	$(BIN)/tactful run --users $(USERS) --days $(DAYS) --seed $(SEED)

test: $(INSTALLED)
	$(PYTEST)

# Spark against DuckDB, value by value; needs Java 17 (Debian: apt-get install openjdk-17-jre-headless).
test-spark: $(SPARK_INSTALLED)
	$(SPARK)/bin/python -m pytest tests/spark

# Every command of README and docs/, page by page, on small platforms.
test-docs: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/docs

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

# Lines of our packages that the tests run, those on Spark too where `make .venv-spark` was made. One process: a worker
# that ends slowly is killed, and with it what it counted. Nothing else needs the tool, so it is no part of the lock.
coverage: $(INSTALLED)
	$(BIN)/python -m coverage --version > /dev/null 2>&1 || $(BIN)/pip install -q --no-deps coverage==7.17.4
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "not slow"
	[ ! -e $(SPARK_INSTALLED) ] || $(SPARK)/bin/python -m coverage run -m pytest tests/spark
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --skip-covered --sort=cover

# Known faults of what the lock installs; asks PyPI or OSV.
audit: $(INSTALLED)
	$(BIN)/python -m venv .venv-audit
	.venv-audit/bin/pip install -q pip-audit
	.venv-audit/bin/pip-audit --no-deps --disable-pip -r requirements.lock

# A broken link is an error. The tests run by `make check` build the site too.
docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

bench: $(INSTALLED)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

serve: $(INSTALLED)
	$(BIN)/bentoml serve

ui: $(INSTALLED)
	$(BIN)/evidently ui --workspace data/monitoring/workspace --host 127.0.0.1 --port 8001

clean:
	rm -rf data feature_repo/data
