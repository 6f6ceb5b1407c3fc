# make setup | demo | test | lint, and for longer runs train-tiny | fuzz | attack | soak | bench-tiny | bench-media |
# bench-kernels | bench-throughput: all in .venv.
PYTHON ?= python3
SHELL := /bin/bash

.PHONY: setup demo test lint train-tiny fuzz attack soak bench-tiny bench-media bench-kernels bench-throughput
setup:
	@$(PYTHON) scripts/setup_venv.py

demo: setup
	@.venv/bin/vllm-videollava demo

test: setup
	.venv/bin/python -m pytest --ignore tests/kernels
	TRITON_INTERPRET=1 .venv/bin/python -m pytest tests/kernels tests/model/test_original_parity.py

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check

train-tiny: setup
	.venv/bin/python -m training.train_tiny build/tiny vllm_videollava/tiny/checkpoint

fuzz: setup
	.venv/bin/python -m pytest tests/whole/test_fuzz.py -s --fuzz-videos 2000 --fuzz-images 1000

attack: setup
	.venv/bin/python -m pytest tests/whole/test_attack.py tests/rendering/test_attacked_renderer.py -s --attack-rounds 60

soak: setup
	.venv/bin/python -m benchmarks.soak

bench-tiny: setup
	.venv/bin/python -m benchmarks.tiny_accuracy

bench-media: setup
	.venv/bin/python -m benchmarks.media

bench-kernels: setup
	.venv/bin/python -m benchmarks.kernel_speed

bench-throughput: setup
	.venv/bin/python -m benchmarks.throughput
