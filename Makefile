# make setup | demo | test | lint, and for longer runs train-tiny | fuzz | attack | soak | bench | bench-tiny |
# bench-media: all in .venv. make bench-gpu | bench-gpu-engine: with $(PYTHON).
PYTHON ?= python3
SHELL := /bin/bash
# Folder for the rows of bench-gpu and bench-gpu-engine.
OUTPUT ?= benchmarks/results
# Otherwise vLLM's CPU build computes with all cores but one.
BENCH = VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind .venv/bin/python -m benchmarks
BENCH_GPU = $(PYTHON) -m benchmarks

.PHONY: setup demo test lint train-tiny fuzz attack soak bench bench-tiny bench-media bench-gpu bench-gpu-engine
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

# On two CPU cores, in less than 20 minutes.
bench: setup
	$(BENCH).throughput --size tiny --rounds 3
	$(BENCH).throughput --size middle --rounds 3
	$(BENCH).serving --size tiny
	$(BENCH).where_time_goes --size middle
	.venv/bin/python -m benchmarks.report

# On a machine with a GPU, in less than 10 minutes; $(PYTHON) has PyTorch, Triton, transformers and PyAV.
bench-gpu:
	-$(BENCH_GPU).kernel_speed --seconds 250 --output $(OUTPUT)
	-timeout 220 $(BENCH_GPU).throughput --size 7B --ways transformers --output $(OUTPUT)

# The same, with vLLM as well.
bench-gpu-engine:
	-timeout 80 $(BENCH_GPU).encoder_speed --output $(OUTPUT)
	-timeout 220 $(BENCH_GPU).throughput --size 7B --ways "this package" --output $(OUTPUT)
	-timeout 250 $(BENCH_GPU).serving --size 7B --seconds 150 --output $(OUTPUT)
