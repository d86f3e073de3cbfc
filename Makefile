# make demo   set-up, train goldi_super on emoji scenes, evaluate, export to ONNX, verify
# make test   set-up, then the whole test suite
# VENV=/path  another virtual environment than .venv

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d' ' -f1)

export PYTHONPATH := $(CURDIR)  # this checkout's code, also where clones share an environment

.PHONY: demo test setup

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

demo: setup
	PATH="$(abspath $(BIN)):$$PATH" deepspeed tools/train.py recipes/goldi_super.yaml
	$(BIN)/python tools/evaluate.py runs/goldi_super-demo
	$(BIN)/python export/to_onnx.py runs/goldi_super-demo --out runs/goldi_super-demo/onnx

test: setup
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest
