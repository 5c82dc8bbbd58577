# Each command is complete on a fresh machine with Python 3.11 or newer:
#   make demo          environment, install, then the main job on glyphs, into runs/demo
#   make test          environment, install, lint, types, tests of up to a few seconds
#   make test-long     environment, install, the tests that start, stop and kill whole programs
#   make test-all      environment, install, both kinds of tests at once, which takes less time
#   make docs          environment, install, then the documentation as a site, into build/site
#   make gallery       environment, install, then run the notebooks of docs/gallery again
#   make check-wheel   environment, install, then build the wheel and try it in an empty environment
#   make bench         environment, install, then time and memory beside the peers, into runs/
#   make bench-all     likewise, all of benchmarks/races.py
#   make check-gpu     environment, install, then checks and times on one CUDA GPU, into runs/

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install demo test test-long test-all soak lint types docs gallery check-wheel bench bench-all check-gpu clean

install: $(INSTALLED)

# constraints.txt holds the versions that this was tested with; pyproject.toml allows newer ones.
# Nothing is compiled here: to compile all packages takes 40 seconds, those that are used 11.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gradshare needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version); run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	@rm -rf runs/demo
	$(BIN)/gradshare compare --control --out runs/demo --epochs 10 --iterations-per-epoch 16 --val-tasks 50 --test-tasks 150

# Compiled once, and not by each of the processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

# Three processes keep two cores busy, since long tests wait much. Each takes one thread and up to
# 2 GB; so do the programs that tests start.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 3 --dist worksteal

test: $(INSTALLED) lint types
	$(TESTS) -m "not long"

test-long: $(INSTALLED)
	$(TESTS) -m long

test-all: $(INSTALLED)
	$(TESTS)

# Runs of random settings, killed hundreds of times: make soak SOAK_MINUTES=20
soak: $(INSTALLED)
	$(BIN)/python -m tests.soak

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

# A link or an anchor that leads nowhere is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The notebooks are committed with what they print and draw.
gallery: $(INSTALLED)
	$(BIN)/jupyter-execute --inplace docs/gallery/*.ipynb

check-wheel: $(INSTALLED)
	.ci/check-wheel $(BIN)/python

# Up to 15 minutes on 2 cores, which nothing else should use meanwhile.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench

bench-all: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench --all

# Under 8 minutes. Without a GPU it runs what a CPU can.
check-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.check_gpu

clean:
	rm -rf .venv build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
