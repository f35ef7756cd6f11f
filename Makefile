# make demo   set up .venv, then the whole road on embedded data: anchors, training, attacks, report
# make test   set up .venv, then lint, types and tests
# make coverage  the tests, and the lines that none of them ran (a seventh longer)
# make mutants  faults put into the code on purpose: each must fail a test (minutes)
# make bench  side-by-side measurements
# make gpu    a pass over a GPU: tests on it, then ratios side by side (under 8 minutes); writes benchmarks/RESULTS_GPU.md
#             where there is no GPU: make gpu GPU_FLAGS='--device=cpu --tiny'
# make docs   the documents as a site to read without a network: build/site/index.html
# make notebooks  run docs/notebooks again and keep what they print
# make release  build a version, check it, and try the wheel in new environments; uploads nothing (minutes, 6 GB):
#             make release RELEASE_FLAGS='--pythons=python3.10,python3.13'; --rehearse before the version is ready
# make soak   20 minutes and more: random kills, 1,000 bad inputs, two nodes, the report in a browser (where there is chromium), the site

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python nonisotropic.py
TESTS := $(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder
DEMO := --dataset_name=mnist_5k --model_name=mnist_lenet

.PHONY: demo test coverage mutants bench gpu docs notebooks release soak clean

.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	$(RUN) compute_threat --dataset_name=mnist_5k
	$(RUN) evaluate_threat --dataset_name=mnist_5k --num_examples=200
	$(RUN) train $(DEMO)
	$(RUN) test $(DEMO) --standard_eval --adv_eval --N_adv_eval --num_examples=200
	$(RUN) report --dataset_name=mnist_5k

# One thread a process: two spinning ones on a busy machine take many times as long.
test: export OMP_NUM_THREADS = 1
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TESTS)

coverage: export OMP_NUM_THREADS = 1
coverage: .venv/installed
	$(TESTS) --cov --cov-report=term:skip-covered

mutants: export OMP_NUM_THREADS = 1
mutants: .venv/installed
	$(BIN)/python tests/mutants

soak: export OMP_NUM_THREADS = 1
soak: export NONISOTROPIC_SOAK = 1
soak: export NONISOTROPIC_BAD_INPUTS ?= 112
soak: export NONISOTROPIC_KILLS ?= 10
soak: .venv/docs-installed
	$(BIN)/python -m pytest -n 2 --dist=load tests/faults
	$(BIN)/python -m pytest -rs tests/runners/test_report.py tests/test_site.py

.venv/bench-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/torchattacks 'torchattacks>=3.5,<4'
	touch $@

bench: export OMP_NUM_THREADS = 1
bench: .venv/bench-installed
	$(BIN)/python -m benchmarks

gpu: .venv/installed
	$(BIN)/python -m benchmarks.gpu $(GPU_FLAGS)

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

docs: .venv/docs-installed
	$(BIN)/python docs/site/build.py

notebooks: .venv/docs-installed
	$(BIN)/python docs/notebooks/build.py

.venv/release-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	touch $@

release: .venv/release-installed
	$(BIN)/python -m release $(RELEASE_FLAGS)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
