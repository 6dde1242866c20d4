# `make demo` and `make test` do all the set-up on a machine that has python3 (3.10 to 3.13), make and a C library.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench lock clean

help: ## Show this help.
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: .venv/ready ## Make .venv, with all that the other targets need.

.venv/ready: pyproject.toml tests/requirements.txt tests/bootstrap.py
	@$(PYTHON) tests/bootstrap.py .venv tests/requirements.txt
	@touch $@

demo: setup ## Train on Fashion-MNIST, kill it half way, continue, and compare the weights with an uninterrupted run.
	@$(BIN)/python tests/demo.py

test: setup ## Run the tests (those that need what this machine lacks say so). TESTS="-k name" picks some.
	$(BIN)/python -m pytest $(TESTS)

lint: setup ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## Measure the budgets, each beside what one would do instead.
	@$(BIN)/python tests/bench/all.py

lock: setup ## Make images/locks/ and tests/requirements.txt again; a second time changes nothing.
	@$(BIN)/python -c 'from runner.environments import relock; relock()'
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --python-version 3.10 --quiet --no-annotate \
		--custom-compile-command "make lock" --output-file tests/requirements.txt

clean: ## Remove what was made here; runs and caches stay.
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
