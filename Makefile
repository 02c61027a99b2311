# Everything sets itself up: a virtual environment in .venv, the build, the installation.
#   make demo    run the main job          make test    run every test, Elixir's too
#   make lint    every linter              make bench   the round-trip table
#   make fuzz    random requests and sessions against live workers, FUZZ_SECONDS each
#   make coverage   lines of the compiled files that the tests run
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src capi -name '*.py' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.json' \
  -o -name '*.[ch]' -o -name '*.hpp' -o -name '*.cmake' -o -name '*.in' -o -name CMakeLists.txt)
PYTEST_FLAGS ?=
# Without compiled files beside the tests, each process that runs them takes 5 s longer to start.
unexport PYTHONDONTWRITEBYTECODE
# Processes that run tests; most tests wait for others most of the time.
TEST_JOBS ?= 3

# The compiled modules by their names, as bridge.wire._etf.
COMPILED := $(subst /,.,$(patsubst src/%.pyx,%,$(shell find src -name '_*.pyx')))

# mix for the Elixir client, with the worker of this checkout.
MIX := cd elixir && BRIDGE_PYTHON=$(abspath $(BIN))/python mix

# Tests of the Elixir client that run a second time with workers at a Unix socket.
BY_SOCKET := $(foreach name,bridge stream tools tensors,test/dspex/python_bridge/$(name)_test.exs)

.PHONY: demo test lint lint-python lint-compiled lint-elixir lint-deploy fuzz fuzz-frames fuzz-sessions \
  bench coverage clean elixir hosts postgres containers

demo: $(VENV)/.installed
	@$(BIN)/python -m bridge demo $(DEMO_FLAGS)

# pytest and mix one after the other: side by side they take two minutes less, but make each other miss deadlines.
# Without --no-loadscope-reorder, files with few but long tests, as those that build the package, come last.
test: $(VENV)/.installed elixir hosts postgres containers
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)
	@! command -v mix >/dev/null || { $(MIX) test $(MIX_FLAGS); }
	@! command -v mix >/dev/null || { export BRIDGE_TEST_TRANSPORT=socket; $(MIX) test $(BY_SOCKET); }

# Installed where that may be done without asking; else a word on what is left out.
elixir:
	@command -v mix >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends elixir >/dev/null; } || \
	  echo "Elixir is not installed, so its tests are left out (Debian: apt-get install elixir)" >&2

# What the C library and the hosts in C, C++ and JavaScript are built and run with.
hosts:
	@{ command -v cmake && cmake --version | awk '/version/ { split($$3, v, "."); exit v[1] * 100 + v[2] < 320 }' && \
	  command -v c++ && command -v node; } >/dev/null 2>&1 || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake g++ nodejs >/dev/null; } || \
	  echo "CMake (3.20 or newer), a C++ compiler or Node is not installed, so the tests of hosts in C or JavaScript are left out (Debian: apt-get install cmake g++ nodejs)" >&2

# Only the programs: the file in createcluster.d keeps Debian from creating and starting a server.
NO_SERVER := /etc/postgresql-common/createcluster.d/programs-only.conf

postgres:
	@ls /usr/lib/postgresql/*/bin/initdb "$$(pg_config --bindir 2>/dev/null)/initdb" 2>/dev/null | grep -q . || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    mkdir -p $(dir $(NO_SERVER)) && echo "create_main_cluster = false" >$(NO_SERVER) && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null && \
	    rm $(NO_SERVER); } || \
	  echo "PostgreSQL is not installed, so the tests of its store are left out (Debian: apt-get install postgresql)" >&2

# What tests run the image of the server with.
containers:
	@command -v bwrap >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends bubblewrap >/dev/null; } || \
	  echo "bubblewrap is not installed, so the tests of the image are left out (Debian: apt-get install bubblewrap)" >&2

# The type checkers take a minute of CPU time.
lint: $(VENV)/.installed $(VENV)/.linters elixir
	@$(MAKE) --no-print-directory -j 2 --output-sync lint-python lint-compiled lint-elixir lint-deploy

lint-python:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lint-compiled:
	MYPYPATH=src $(BIN)/python -m mypy.stubtest --ignore-missing-stub --allowlist tests/stubtest-allow.txt \
	  $(COMPILED)

lint-elixir:
	@! command -v mix >/dev/null || { $(MIX) format --check-formatted && mix compile --force --warnings-as-errors; }
	@! command -v mix >/dev/null || { cd deploy/elixir && mix format --check-formatted && \
	  MIX_ENV=prod MIX_BUILD_PATH=$(abspath build/answers) mix compile --force --warnings-as-errors; }

lint-deploy:
	$(BIN)/hadolint deploy/Dockerfile deploy/elixir/Dockerfile
	$(BIN)/yamllint --strict deploy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/kubernetes-validate --quiet --strict --kubernetes-version 1.29.0 deploy/kubernetes.yaml

FUZZ_SECONDS ?= 60
FUZZ_FLAGS ?=

fuzz: $(VENV)/.installed
	@$(MAKE) --no-print-directory -j 2 fuzz-frames fuzz-sessions

fuzz-frames fuzz-sessions: fuzz-%: $(VENV)/.installed
	$(BIN)/python tests/fuzz/$*.py --seconds $(FUZZ_SECONDS) $(FUZZ_FLAGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/roundtrip.py $(BENCH_FLAGS)

# In a copy, because traced modules are built in place and are several times slower. Left out: the
# packaging, a BEAM that would not wait so long, and what works without the GIL, which tracing takes.
coverage: $(VENV)/.installed
	rm -rf build/trace && mkdir -p build/trace
	cp -r pyproject.toml setup.py Makefile README.md LICENSE CHANGELOG.md CONTRIBUTING.md MANIFEST.in \
	  CMakeLists.txt .dockerignore capi deploy src tests docs examples benchmarks elixir build/trace
	cd build/trace && BRIDGE_TRACE=1 $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/trace && export PYTHONPATH=$(abspath build/trace/src) COVERAGE_CORE=ctrace && \
	  $(abspath $(BIN))/coverage run -m pytest --timeout 900 $(PYTEST_FLAGS) --deselect tests/interop/test_packaging.py \
	  --deselect tests/interop/test_capi.py \
	  --deselect tests/interop/test_etf_elixir.py \
	  --deselect tests/adversity/test_bad_input.py::test_heartbeats_while_a_handler_holds_the_gil; \
	  $(abspath $(BIN))/coverage combine -q && $(abspath $(BIN))/coverage report

clean:
	rm -rf build dist $(VENV) elixir/_build

# The build's own tools come from pyproject.toml, so that there is one list of them.
$(VENV)/.tools: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "bridge needs Python 3.11 or newer: no '$(PYTHON)' found; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "bridge needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/a/newer/one" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || { echo "bridge needs a C compiler; on Debian or Ubuntu: apt-get install gcc libc6-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; p = os.path.join(sysconfig.get_path("include"), "Python.h"); os.path.exists(p) or exit(1)' || { echo "bridge needs Python's headers; on Debian or Ubuntu: apt-get install python3-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "bridge needs Python's venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $$($(BIN)/python -c "import tomllib; print(*(repr(r) for r in tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires']))" | tr -d "'")
	@touch $@

# build/lib is removed because setuptools installs what lies there, also files that have moved since.
$(VENV)/.installed: $(VENV)/.tools setup.py $(SOURCES)
	@rm -rf build/lib build/lib.*
	$(BIN)/pip install -q --no-build-isolation '.[dev]'
	@touch $@

# The linters of deploy/ are large, and the tests do not need them.
$(VENV)/.linters: pyproject.toml | $(VENV)/.installed
	$(BIN)/pip install -q $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['deploy'])")
	@touch $@
