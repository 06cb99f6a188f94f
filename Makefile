PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
STUBS := .types/tensorrt_bindings/tensorrt.pyi
OPTIMUM := .venv-optimum
GENAI := .venv-genai
SDCPP := .venv-sdcpp
FOLDERS := benchmarks export reference runtime
RESULTS := benchmarks/results
SHAPES := $(BIN)/safelight bench --runs 1 --cold-runs 0
OURS := --contender 'safelight onnxruntime' --contender 'safelight openvino'
BF16 := --contender 'safelight openvino bf16' --contender 'diffusers bf16'
BALANCED := --contender 'safelight openvino bf16, balanced'
PYTORCH := --contender 'reference (PyTorch)' --contender diffusers --contender 'diffusers, torch.compile' \
  --contender 'diffusers bf16, torch.compile'
PEERS := --contender optimum-onnx --contender 'OpenVINO GenAI' --contender 'OpenVINO GenAI bf16' \
  --contender 'stable-diffusion.cpp bf16'
CHECKPOINT := reference/emoji/checkpoint
# what `make test` runs: all that needs no minutes, no browser, no GPU and no environment of its own
HERE := not (browser or engine_matrix or full_shape or fuzz or gpu or interchange or peers or ray or soak)

.PHONY: setup lint types test test-engines test-full test-fuzz test-gpu test-page interchange-setup test-interchange \
  peers-setup peers-genai peers-sdcpp test-peers ray-setup test-ray test-soak demo bench bench-cpu bench-serving clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,export,bench,test]'
	touch $@

# Without what they depend on, which PyPI does not have; five lines of theirs are no Python.
$(STUBS): constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --upgrade --target .types -c $< tensorrt-stubs
	sed -i.orig -E 's/([(, ])in: list/\1in_: list/; s/channel_axis: int\)/channel_axis: int = ...)/' $@
	touch $@

types: $(INSTALLED) $(STUBS)
	@mkdir -p .types/safelight
	@for folder in $(FOLDERS); do ln -sfn ../../$$folder .types/safelight/$$folder; done

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread for each worker's torch: there are as many workers as processors.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "$(HERE)"

# Engines of tiny networks for every GPU that TensorRT for RTX knows, in fp16 and bf16: ten minutes, on any machine.
test-engines: $(INSTALLED)
	$(BIN)/pytest -m engine_matrix

# Also the networks at their published shapes: six minutes more, and gigabytes of memory.
test-full: lint
	$(BIN)/pytest -m "full_shape or $(HERE)"

# What reads clients' bytes, fuzzed for that many seconds each, and requests by the thousand that the OpenAPI document
# allows or forbids: half an hour. What is found is left in output/fuzz/.
FUZZ_SECONDS ?= 200
test-fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt atheris
	@mkdir -p output/fuzz
	for target in image mask request form; do \
	  $(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=output/fuzz/ || exit 1; \
	done
	$(BIN)/pytest -m fuzz tests/serving/test_schemathesis.py

# The server's page in a real Chromium (Debian's is enough: apt-get install chromium), which is skipped where there is none.
test-page: $(INSTALLED)
	$(BIN)/pytest -m browser -rs tests/serving/test_page.py

# On a machine with an NVIDIA GPU; what its engines lack is skipped, with the reason.
test-gpu: $(INSTALLED)
	$(BIN)/pytest -m gpu -rs tests/gpu

# optimum-onnx, whose transformers and diffusers are older than ours: 1.3 GB, in an environment of its own.
interchange-setup: $(OPTIMUM)/.installed

$(OPTIMUM)/.installed: tests/interchange/constraints.txt
	test -x $(OPTIMUM)/bin/python || $(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install --quiet -c $< 'optimum-onnx[onnxruntime]' diffusers accelerate
	touch $@

# Folders of ours in optimum-onnx, and of optimum-onnx here: some minutes.
test-interchange: $(INSTALLED) interchange-setup
	$(BIN)/pytest -m interchange

# The tools that `safelight bench` measures beside safelight and diffusers: each in an environment of its own.
peers-setup: interchange-setup peers-genai peers-sdcpp

# OpenVINO GenAI, and optimum-intel, which makes its models and brings a PyTorch with CUDA: 7 GB.
peers-genai: $(GENAI)/.installed

$(GENAI)/.installed: benchmarks/peers/constraints-openvino-genai.txt
	test -x $(GENAI)/bin/python || $(PYTHON) -m venv $(GENAI)
	$(GENAI)/bin/python -m pip install --quiet -c $< openvino-genai openvino-tokenizers optimum-intel diffusers accelerate
	touch $@

# Compiled for this machine (minutes; needs a C++ compiler), with the faster of its products of matrices. Not from
# pip's cache, which may have one that was compiled otherwise.
peers-sdcpp: $(SDCPP)/.installed

$(SDCPP)/.installed: benchmarks/peers/constraints-stable-diffusion-cpp.txt
	test -x $(SDCPP)/bin/python || $(PYTHON) -m venv $(SDCPP)
	$(SDCPP)/bin/python -m pip install --quiet -c $< numpy pillow
	CMAKE_ARGS="-DGGML_LLAMAFILE=ON" $(SDCPP)/bin/python -m pip install --quiet -c $< --no-cache-dir \
	  --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python
	touch $@

# Every tool that is installed makes the picture that diffusers makes: some minutes.
test-peers: $(INSTALLED) peers-setup
	$(BIN)/pytest -m peers tests/benchmarks/test_peers.py

# Ray Serve beside the rest: 300 MB.
ray-setup: $(BIN)/.ray-installed

$(BIN)/.ray-installed: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	touch $@

# Two replicas on this machine, which are killed, hung, replaced and ended under load: some minutes.
test-ray: $(INSTALLED) ray-setup
	$(BIN)/pytest -m ray tests/serving/test_ray.py
# A server for some seconds, with clients that misbehave, and a worker that is killed.
test-soak: $(INSTALLED)
	$(BIN)/pytest -m soak tests/benchmarks/test_serving_load.py

# The whole way on this machine: checkpoint -> model folder -> pictures -> comparison with the PyTorch reference.
demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/safelight export $(CHECKPOINT) demo/model --weights-dtype fp16
	$(BIN)/safelight generate --model demo/model --seed 0 --num-images-per-prompt 3 --grid --output demo/grid.png \
	  "cat face on a blue background" "red apple on a white background" "pizza on a green background"
	$(BIN)/safelight bench demo/model --checkpoint $(CHECKPOINT) --against 'reference (PyTorch)' \
	  --contender 'reference (PyTorch)' --contender 'safelight onnxruntime' --rounds 1 --runs 3 --cold-runs 0 --no-ceiling
	@echo "the picture: demo/grid.png"

# The bundled model, on an otherwise idle machine. A contender that fails or differs says so in the tables, and ends nothing.
bench: $(INSTALLED)
	-$(BIN)/safelight bench --rounds 3 --json benchmarks/results/emoji-cpu.json --html output/bench/emoji-cpu.html \
	  --scaling 'safelight onnxruntime' --scaling diffusers

# Published shapes, random weights, on an otherwise idle machine: two hours, 60 GB of disk, 24 GB of memory.
bench-cpu: $(INSTALLED)
	-$(SHAPES) --case sd15 --rounds 1 --timeout 1500 $(OURS) $(BF16) $(BALANCED) $(PYTORCH) $(PEERS) \
	  --json $(RESULTS)/sd15-cpu.json --html output/bench/sd15-cpu.html
	-$(SHAPES) --case sd15 --rounds 3 --no-ceiling $(BF16) --contender 'OpenVINO GenAI bf16' --against 'diffusers bf16' \
	  --json $(RESULTS)/sd15-bf16-rounds-cpu.json
	-$(SHAPES) --case sd15 --rounds 1 --no-ceiling $(BF16) --against 'diffusers bf16' --num-inference-steps 4 \
	  --scaling 'safelight openvino bf16' --scale-sides 256,512,768,1024 \
	  --json $(RESULTS)/sd15-curves-cpu.json --html output/bench/sd15-curves-cpu.html
	-$(SHAPES) --case sd15 --rounds 1 --no-ceiling $(BF16) --against 'diffusers bf16' --num-inference-steps 2 \
	  --size 1024x1024 --json $(RESULTS)/sd15-1024-cpu.json
	-$(SHAPES) --case sd15 --rounds 1 --no-ceiling $(BF16) --against 'diffusers bf16' --num-inference-steps 4 \
	  --batch 2 --batch 4 --json $(RESULTS)/sd15-batches-cpu.json
	-$(SHAPES) --case sd21 --rounds 1 --no-ceiling --contender diffusers $(BF16) $(BALANCED) --size 512x512 \
	  --json $(RESULTS)/sd21-512-cpu.json
	-$(SHAPES) --case sdxl --rounds 1 --no-ceiling --contender diffusers $(BF16) $(BALANCED) --size 512x512 \
	  --num-inference-steps 10 --json $(RESULTS)/sdxl-512-cpu.json
	-$(SHAPES) --case sdxl --rounds 1 --no-ceiling $(BF16) --against 'diffusers bf16' --num-inference-steps 2 \
	  --json $(RESULTS)/sdxl-1024-cpu.json

# A server under load, and for twenty minutes, on an otherwise idle machine. What is not as it should be ends it.
bench-serving: $(INSTALLED)
	$(BIN)/python -m safelight.benchmarks.serving_load --json benchmarks/results/serving-load-cpu.json
	$(BIN)/python -m safelight.benchmarks.serving_soak --minutes 20 --json benchmarks/results/serving-soak-cpu.json

clean:
	rm -rf .venv $(OPTIMUM) $(GENAI) $(SDCPP) .types .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist demo output *.egg-info
