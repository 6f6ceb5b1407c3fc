# make setup | demo | test | lint, and for longer runs test-features | test-versions | coupling-points | train-tiny | fuzz |
# attack | soak | bench | bench-tiny | bench-media: all in .venv. make bench-gpu | bench-gpu-engine | bench-gpu-rest: with
# $(PYTHON).
PYTHON ?= python3
SHELL := /bin/bash
# Versions of vLLM for test-versions, such as 0.29 0.31, or newest; all supported ones if it is empty.
VERSIONS ?=
# Folder for the rows of bench-gpu and its like.
OUTPUT ?= benchmarks/results
BENCH = .venv/bin/python -m benchmarks
BENCH_GPU = $(PYTHON) -m benchmarks
WITHIN = timeout --signal=INT

.PHONY: setup demo test lint test-features test-versions coupling-points
.PHONY: train-tiny fuzz attack soak bench bench-tiny bench-media
.PHONY: bench-gpu bench-gpu-engine bench-gpu-rest
setup:
	@$(PYTHON) scripts/setup_venv.py

demo: setup
	@.venv/bin/vllm-videollava demo

test: setup
	.venv/bin/python -m pytest --ignore tests/kernels
	TRITON_INTERPRET=1 .venv/bin/python -m pytest tests/kernels tests/model/test_original_parity.py

test-features: setup
	.venv/bin/python -m pytest --features tests

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check

test-versions: setup
	.venv/bin/python -m scripts.versions --versions "$(VERSIONS)"

# Compares .venv's vLLM with those of test-versions.
coupling-points: setup
	.venv/bin/python scripts/coupling_points.py --against build/versions/*/.venv/bin/python

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

# Takes about 16 minutes on two CPU cores.
bench: setup
	$(BENCH).throughput --size tiny --rounds 4
	$(BENCH).throughput --size middle --rounds 2
	$(BENCH).serving --size tiny
	$(BENCH).where_time_goes --size middle
	.venv/bin/python -m benchmarks.report

# On a machine with a GPU, each in less than 10 minutes. $(PYTHON) has what this package needs; only the first works
# without vLLM. An interrupt lets a benchmark end its server; a plain timeout would not.
bench-gpu:
	-$(BENCH_GPU).kernel_speed --seconds 250 --output $(OUTPUT)
	-$(WITHIN) 220 $(BENCH_GPU).throughput --size 7B --ways transformers --output $(OUTPUT)

bench-gpu-engine:
	-$(WITHIN) 120 $(BENCH_GPU).encoder_speed --output $(OUTPUT)
	-$(WITHIN) 190 $(BENCH_GPU).throughput --size 7B --ways "this package" --output $(OUTPUT)
	-$(WITHIN) 260 $(BENCH_GPU).serving --size 7B --seconds 200 --output $(OUTPUT)

bench-gpu-rest:
	-$(WITHIN) 190 $(BENCH_GPU).throughput --size 7B --ways "encoder graphs" --output $(OUTPUT)
	-$(WITHIN) 190 $(BENCH_GPU).throughput --size 7B --ways "LLaMA alone" --output $(OUTPUT)
	-$(WITHIN) 190 $(BENCH_GPU).where_time_goes --size 7B --output $(OUTPUT)
