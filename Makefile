# make setup | demo | test | lint, and for longer runs train-tiny | fuzz | attack | soak | bench-tiny | bench-media |
# bench-kernels: all in .venv.
PYTHON ?= python3
SHELL := /bin/bash

.PHONY: setup demo test lint train-tiny fuzz attack soak bench-tiny bench-media bench-kernels
setup:
	@$(PYTHON) scripts/setup_venv.py

demo: setup
	@.venv/bin/vllm-videollava demo

test: setup
	.venv/bin/python -m pytest --ignore tests/kernels
	TRITON_INTERPRET=1 .venv/bin/python -m pytest tests/kernels tests/test_original_parity.py

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check

train-tiny: setup
	.venv/bin/python training/train_tiny.py build/tiny vllm_videollava/tiny/checkpoint

fuzz: setup
	.venv/bin/python -m pytest tests/test_fuzz.py -s --fuzz-videos 2000 --fuzz-images 1000

attack: setup
	.venv/bin/python -m pytest tests/test_attack.py tests/test_attack_processor.py -s --attack-rounds 60

soak: setup
	.venv/bin/python benchmarks/soak.py

bench-tiny: setup
	.venv/bin/python benchmarks/tiny_accuracy.py

bench-media: setup
	.venv/bin/python benchmarks/media.py

bench-kernels: setup
	.venv/bin/python benchmarks/kernel_speed.py
