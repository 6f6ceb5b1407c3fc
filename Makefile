# make setup | demo | test | lint, and for longer runs fuzz | soak | bench-media: everything happens in .venv.
PYTHON ?= python3
SHELL := /bin/bash

.PHONY: setup demo test lint fuzz soak bench-media
setup:
	@$(PYTHON) scripts/setup_venv.py

demo: setup
	@.venv/bin/python examples/demo.py

test: setup
	.venv/bin/python -m pytest

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check

fuzz: setup
	.venv/bin/python -m pytest tests/test_fuzz.py -s --fuzz-videos 2000 --fuzz-images 1000

soak: setup
	.venv/bin/python benchmarks/soak.py

bench-media: setup
	.venv/bin/python benchmarks/media.py
