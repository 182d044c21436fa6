# The verbs. Continuous integration runs the same ones. Each uses the tools on PATH: activate the environment first
# (`make setup && . .venv/bin/activate`).
.PHONY: setup native lint test test-fast test-clients native-test bench native-bench docs clean

setup:           ## an environment with everything for development, package installed in place
	python3 -m venv .venv
	.venv/bin/pip install -q '.[test]'

native:          ## the kernel library, built into the source tree
	cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DLEGATO_IN_TREE=ON
	cmake --build build/dev

lint: docs       ## style, types, layer contract, size report, documents
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	python tools/sizes.py

test:            ## everything
	pytest

test-fast:       ## on every change
	pytest -m "not slow"

test-clients:    ## clients as others install them; LEGATO_CLIENTS_PYTHON=PYTHON[:PYTHON] has those that this Python lacks
	pytest -rs -n 1 tests/clients

native-test:     ## the kernels' own tests, as shipped and with address and undefined-behaviour sanitizers
	cmake -S . -B build/tests -G Ninja -DCMAKE_BUILD_TYPE=Release -DLEGATO_TESTS=ON
	cmake --build build/tests
	ctest --test-dir build/tests -j 2 --output-on-failure
	cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLEGATO_TESTS=ON -DLEGATO_SANITIZE=ON
	cmake --build build/sanitize
	ctest --test-dir build/sanitize -j 2 --output-on-failure

bench:           ## the machine's walls, then the built-in model against them
	legato calibrate
	legato bench decode

ISA ?= avx512
native-bench:    ## the kernels alone, beside plain reads and products from registers; ISA=avx2 for another level
	cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release -DLEGATO_BENCH=ON
	cmake --build build/bench
	build/bench/bench_linear walls stream matrix --isa $(ISA)
	build/bench/bench_attention $(filter portable avx2 avx512,$(ISA))

docs:            ## check that documents name files that exist
	python tools/check_docs.py

clean:
	rm -rf build .venv
