# `make demo` and `make test` need Python 3.11 and a package registry, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test bench fuzz install lint lock database clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/cutline run data/sample

# Tests run side by side; `make test ARGS="-n 0 tests/tasks"` runs them one after the other.
test: install
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

bench: install
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Coverage-guided fuzzing of the parsers, ten minutes each: `make fuzz ARGS="--seconds 3600 tar npz"`.
fuzz: install
	$(BIN)/python -m tests.fuzz $(ARGS)

install: $(STAMP)

# The lock is complete, so nothing is resolved (--no-deps); every file is checked by its hash. Modules are
# compiled on all cores, which pip would do on one; some files of some packages are no Python, which is no harm.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -c 'import sys; assert sys.version_info[:2] == (3, 11), f"expected Python 3.11, found {sys.version}; set PYTHON=..."'
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $(STAMP)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf .venv/typed && mkdir -p .venv/typed/cutline
	ln -s $(CURDIR)/flows/api/__init__.py $(CURDIR)/flows $(CURDIR)/tasks $(CURDIR)/schemas .venv/typed/cutline/
	$(BIN)/mypy

# Writes the lock anew from pyproject.toml; needs uv.
lock:
	uv pip compile -q --universal --no-strip-extras --python-version 3.11 --generate-hashes --extra dev \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml -o requirements.lock

# Writes Prefect's empty database anew: with it, a new workspace is ready ten seconds sooner.
database: install
	rm -rf .venv/prefect
	PREFECT_HOME=$(CURDIR)/.venv/prefect $(BIN)/prefect server database upgrade -y
	gzip -9nc .venv/prefect/prefect.db > flows/orchestration/prefect.db.gz

clean:
	rm -rf .venv data/workspace
