# make demo    a store, heat maps and tables from a corpus made on the spot, in demo/
# make test    the test suite; ONLY='-m "not long"', ONLY=tests/test_maps.py or the like, a part of it
# make check   format, lint and types
# make bench   every stage beside other software and the machine's limits, in bench/; MANIFEST=file.csv
#              has it listen to that corpus
#
# Each makes .venv and installs pinned versions first. PYTHON=python3.13 picks an interpreter,
# VENV=folder another place.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# One set of pins for Python 3.11, which newer releases of some libraries no longer support, and one
# for all later versions.
PINS = constraints/$(shell $(PYTHON) -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12-and-newer")').txt

.PHONY: demo test check bench clean

demo: $(VENV)/installed-demo
	$(VENV)/bin/featurestore demo demo

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ONLY)

check: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(VENV)/installed-bench
	$(VENV)/bin/featurestore bench $(MANIFEST)

$(VENV)/installed-demo: pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"featurestore needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c $(PINS) -e '.[egemaps,demo]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed-demo
	$(PIP) install -q -c $(PINS) -e '.[test]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed-demo
	$(PIP) install -q -c $(PINS) -e '.[bench,egemaps]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
