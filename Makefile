PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
STUBS := .types/tensorrt_bindings/tensorrt.pyi
OPTIMUM := .venv-optimum
FOLDERS := benchmarks export reference runtime
CHECKPOINT := reference/emoji/checkpoint

.PHONY: setup lint types test test-engines test-full test-gpu interchange-setup test-interchange demo bench clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "not engine_matrix and not full_shape and not gpu and not interchange"

# Engines of tiny networks for every GPU that TensorRT for RTX knows, in fp16 and bf16: ten minutes, on any machine.
test-engines: $(INSTALLED)
	$(BIN)/pytest -m engine_matrix

# Also the networks at their published shapes: six minutes more, and gigabytes of memory.
test-full: lint
	$(BIN)/pytest -m "not engine_matrix"

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

# The whole way on this machine: checkpoint -> model folder -> pictures -> comparison with the PyTorch reference.
demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/safelight export $(CHECKPOINT) demo/model --weights-dtype fp16
	$(BIN)/safelight generate --model demo/model --seed 0 --num-images-per-prompt 3 --grid --output demo/grid.png \
	  "cat face on a blue background" "red apple on a white background" "pizza on a green background"
	$(BIN)/safelight bench demo/model --checkpoint $(CHECKPOINT) --against 'reference (PyTorch)' \
	  --contender 'reference (PyTorch)' --contender 'safelight onnxruntime' --runs 3 --cold-runs 0
	@echo "the picture: demo/grid.png"

# The numbers of the README, on an otherwise idle machine.
bench: $(INSTALLED)
	$(BIN)/safelight bench --json benchmarks/results/emoji-cpu.json

clean:
	rm -rf .venv $(OPTIMUM) .types .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist demo output *.egg-info
