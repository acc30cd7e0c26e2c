# Both commands do their own set-up in .venv. Python must be 3.11 or newer: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
# Without compiled bytecode every start costs many seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-all check equivalence study clean

quickstart: .venv/installed
	$(BIN)/python -m hssl_hf pretrain resume_from_checkpoint=auto

# A process per core of a small machine; a file stays in one process, whose fixtures its tests share.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: .venv/installed-test check
	$(PYTEST)

test-all: .venv/installed-test check
	$(PYTEST) -m ""

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# One process, accumulation, and two processes under every engine: is it the same training?
equivalence: .venv/installed-test
	$(BIN)/python -m training.benchmarks.engine_equivalence

# Every variant of a study with every seed, a run per core; interrupted, the same command goes on. STUDY holds values for all variants.
study: .venv/installed
	$(BIN)/python training/study.py $(STUDY)

clean:
	rm -rf .venv runs

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12" >&2; exit 1)
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ .venv/installed

.PHONY: pages
pages: .venv/installed
	$(BIN)/python -m model_cards.pages
