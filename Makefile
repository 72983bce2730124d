# make demo             train a CNN on a cluster of processes on this machine (no Docker)
# make test             everything that needs no Docker: linters, types, imports, tests
# make test-containers  the Compose suite; needs a Docker engine
# make proto            generate the code from the .proto files
PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.stamp-dev
PROTOS := $(wildcard proto/hubring_proto/v1/*.proto)
GEN    := .venv-proto
OUT    ?= proto
PIP    := -m pip install -q --disable-pip-version-check
ARGS   ?=
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := demo
.PHONY: demo test lint unit test-containers proto proto-check clean

demo: $(STAMP)
	$(VENV)/bin/hubring demo $(ARGS)

test: lint proto-check unit

unit: $(STAMP)
	$(VENV)/bin/pytest -q -m "not containers" $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

test-containers: $(STAMP)
	$(VENV)/bin/pytest -q -m containers tests/containers $(ARGS)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e '.[dev,page]'
	touch $@

$(GEN)/.stamp: proto/requirements.txt
	test -x $(GEN)/bin/python || $(PYTHON) -m venv $(GEN)
	$(GEN)/bin/python $(PIP) -r proto/requirements.txt
	touch $@

proto: $(GEN)/.stamp
	PATH="$(CURDIR)/$(GEN)/bin:$$PATH" $(GEN)/bin/python -m grpc_tools.protoc -Iproto \
	  --python_out=$(OUT) --grpc_python_out=$(OUT) --mypy_out=quiet:$(OUT) --mypy_grpc_out=quiet:$(OUT) \
	  $(PROTOS)

proto-check:
	rm -rf build/proto && mkdir -p build/proto && $(MAKE) -s proto OUT=build/proto
	cd build/proto && find . -type f | while read f; do cmp -s "$$f" "../../proto/$$f" || { echo "stale: $$f (make proto)"; exit 1; }; done

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
