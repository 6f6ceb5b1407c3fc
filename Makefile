# make setup | demo | test | lint: everything happens in .venv.
PYTHON ?= python3
SHELL := /bin/bash

.PHONY: setup demo test lint
setup:
	@$(PYTHON) scripts/setup_venv.py

demo: setup
	@.venv/bin/python examples/demo.py

test: setup
	.venv/bin/python -m pytest

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
