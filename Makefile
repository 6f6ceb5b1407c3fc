# make setup | demo | test | lint, and for longer runs fuzz | soak | bench-media | bench-kernels: all in .venv.
PYTHON ?= python3
SHELL := /bin/bash

.PHONY: setup demo test lint fuzz soak bench-media bench-kernels
setup:
	@$(PYTHON) scripts/setup_venv.py

demo: setup
	@.venv/bin/python examples/demo.py

test: setup
	.venv/bin/python -m pytest --ignore tests/kernels
	TRITON_INTERPRET=1 .venv/bin/python -m pytest tests/kernels tests/test_original_parity.py

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check

fuzz: setup
	.venv/bin/python -m pytest tests/test_fuzz.py -s --fuzz-videos 2000 --fuzz-images 1000

soak: setup
	.venv/bin/python benchmarks/soak.py

bench-media: setup
	.venv/bin/python benchmarks/media.py

bench-kernels: setup
	.venv/bin/python benchmarks/kernel_speed.py
