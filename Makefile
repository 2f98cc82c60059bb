# Every target makes .venv first where it is missing or out of date; that takes a moment where it is not.
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help install install-gpu demo test check fmt lock clean

help:
	@echo "make demo         install, then one round of the whole loop on the embedded model"
	@echo "make install      .venv from locks/cpu.lock"
	@echo "make install-gpu  .venv from locks/gpu.lock"
	@echo "make test         all tests: the fast ones, then the slow ones"
	@echo "make check        format, lint, types and the fast tests"
	@echo "make fmt          format, and fix what ruff can fix"
	@echo "make lock         locks/ from pyproject.toml (UPGRADE=--upgrade: with the newest versions)"
	@echo "make clean        remove caches and build leftovers (.venv and runs stay)"

install:
	@scripts/install

install-gpu:
	@scripts/install gpu

demo: install
	@$(BIN)/moot demo

# Two at a time, as many of them wait for a cluster or a model more than they work; those of a module stay together.
test: install
	@$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

check: install
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(PYTEST) -m "not slow"

fmt: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock:
	@scripts/install lock $(UPGRADE)

clean:
	@rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +
