# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= outputs/demo
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
# The CPU build of torch: gigabytes of CUDA are never pulled unasked. On a GPU machine say
# `make TORCH=torch==2.13.0`, on macOS that is the default.
ifeq ($(shell uname -s),Darwin)
TORCH ?= torch==2.13.0
else
TORCH ?= torch==2.13.0+cpu
endif

.PHONY: demo test test-slow coverage mutants versions bench docs style check clean

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q $(TORCH) || \
	  { echo "No CPU wheel of torch was found: add PyTorch's CPU index to pip (https://pytorch.org/get-started)," \
	    "or accept another build with: make TORCH=torch==2.13.0"; exit 1; }
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
	  --dynamo_backend no --num_cpu_threads_per_process $(CORES) \
	  examples/train_mnist.py --dataset_name digits --output_dir $(DEMO) --block_out_channels 32 64 \
	  --train_batch_size 64 --max_train_steps 3000 --validation_steps 1500 --checkpointing_steps 1500 \
	  --overwrite_output_dir
	$(BIN)/python examples/sample_mnist.py --model $(DEMO)
	$(BIN)/python examples/evaluate.py --model $(DEMO) --dataset_name digits --num_samples 500
	@echo "The pipeline, its pictures and its figures are in $(DEMO)."

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal -q

# The page of examples/app.py is driven in Chromium, where there is one (apt install chromium).
test-slow: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[browser,docs]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal -q -m slow

# What the quick tests run of the package, line by line.
coverage: $(VENV)/installed
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(CORES) --dist worksteal -q
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Which small faults in the mathematics the quick tests would not notice.
mutants: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation.py

# The oldest and the newest releases that setup.cfg allows, each in an environment of its own.
versions: $(VENV)/installed
	$(BIN)/python tests/versions.py $(ROWS)

# What README and docs quote, measured again: without PARTS all that is quick, about 10 minutes of
# one core, and 20 more with MNIST=ylecun/mnist (or a folder of it). PARTS="ode network" takes the
# named ones, for hours if need be; `python -m benchmarks --list` shows all with their minutes.
RESULTS ?= outputs/benchmarks
bench: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(PARTS) --output_dir $(RESULTS) $(if $(MNIST),--mnist $(MNIST))

# The site, in build/site/index.html. (Its search wants a server: python -m http.server -d build/site)
docs: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

style: $(VENV)/installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

clean:
	rm -rf $(VENV) outputs build dist src/*.egg-info
