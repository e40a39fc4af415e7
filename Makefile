PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= demo-run

.PHONY: demo demo-full test check lint audit slow tensorrt-check bench soak clean

$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(BIN)/.installed  ## the whole job on embedded digits
	$(BIN)/dcdm demo --run $(RUN)

demo-full: $(BIN)/.installed  ## all arms, 12 seeds: about an hour
	$(BIN)/dcdm demo --full --run $(RUN)-full

lint: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

audit: $(BIN)/.installed  ## known advisories of all that is installed (asks the package index)
	$(BIN)/pip-audit --skip-editable

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test: check  ## lint, types, layer contract and all tests but the slow ones

slow: $(BIN)/.installed  ## the tests that take long: exports, kills, workers, bases at their real size
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

tensorrt-check: $(BIN)/.installed  ## our graphs through TensorRT-RTX's parser and builder, on a CPU (148 MB of wheels)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[tensorrt-rtx]"
	$(BIN)/python -m pytest tests/export -m tensorrt_rtx

bench: $(BIN)/.installed  ## every script in benchmarks/ that needs no data, results in benchmarks/results/
	for script in $(filter-out benchmarks/bench_features.py benchmarks/bench_first_look.py benchmarks/bench_scoring.py,$(wildcard benchmarks/bench_*.py)); do $(BIN)/python $$script || exit 1; done

soak: $(BIN)/.installed  ## kills, failing disks, signals, hostile files, tampering and size: about an hour of a free core
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reliability.py

clean:
	rm -rf $(VENV) $(RUN) build dist
