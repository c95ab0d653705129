# Every target prepares .venv first (scripts/bootstrap; a second when nothing changed).
.PHONY: help demo test check lint format lock environment
.DEFAULT_GOAL := help
# Images of containers set it, and every process would then compile PyTorch anew: twice the time of an import.
unexport PYTHONDONTWRITEBYTECODE
RUN := .venv/bin/python -m
# One process per core, at most 8; each keeps to one thread (tests/conftest.py).
PYTEST := $(RUN) pytest -n auto --maxprocesses 8 --dist worksteal

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment:  ## prepare .venv as requirements.lock says
	@scripts/bootstrap

demo: environment  ## every stage on the built-in pictures; leaves runs/demo/report.html
	@.venv/bin/moce demo

test: environment  ## the tests, slow ones left out
	$(PYTEST)

lint: environment  ## what make check does before the tests
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

check: lint test  ## everything a change has to pass

format: environment  ## repair what can be repaired: imports, layout
	$(RUN) ruff check --fix
	$(RUN) ruff format

# Pins stay as they are where pyproject.toml still allows them; `make lock UPGRADE=1` takes the newest of everything.
lock:  ## write requirements.lock from pyproject.toml
	@uv=$$(scripts/bootstrap uv) && $$uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" --group dev --all-extras $(if $(UPGRADE),--upgrade) \
	  pyproject.toml -o requirements.lock
