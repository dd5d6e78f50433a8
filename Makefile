# Two commands do everything: `make book` and `make test`. They need Python 3.11+ with venv, and a network once.
VENV    := .venv
PY      := $(VENV)/bin/python
READY   := $(VENV)/.ready
VENDOR  := book/_vendor/.ready
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
TORCH   ?= $(shell grep '^torch==' constraints.txt)
PIP     := $(PY) -m pip --disable-pip-version-check
# One thread: the same numbers on any number of cores.
export PIP_NO_INPUT = 1
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help book test check pages-check install clean
help:
	@echo 'make book         build the book into book/_build/html'
	@echo 'make test         run every test and every notebook'
	@echo 'make check        generated code is up to date, style'
	@echo 'make pages-check  open the built pages in headless Chromium with the network off'
	@echo 'make clean        remove what the build made (.venv stays)'

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'alignbook needs Python 3.11 or newer with venv: on Debian or Ubuntu, "apt-get install python3 python3-venv", then try again.' >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): a few minutes the first time.'
	@$(PIP) install -q '$(TORCH)'
	@$(PIP) install -q -e '.[dev]' -c constraints.txt
	@touch $@

$(VENDOR): book/vendor.py | $(READY)
	@$(PY) book/vendor.py
	@touch $@

install: $(READY)

book: $(READY) $(VENDOR)
	$(VENV)/bin/jupyter-book build . --config book/_config.yml --toc _toc.yml --path-output book -W --keep-going -q
	@echo 'The book is in book/_build/html/index.html'

test: $(READY)
	$(PY) -m pytest

check: $(READY)
	$(VENV)/bin/ruff check nbs tests book setup.py
	$(PY) -m pytest tests/test_drift.py tests/test_layers.py tests/test_budgets.py tests/test_packaging.py

pages-check: $(READY)
	$(PY) -m pytest tests/pages/check_pages.py

clean:
	rm -rf book/_build book/_vendor build dist *.egg-info .pytest_cache .ruff_cache
