# Everything here works in a fresh clone on Debian 12 and newer; scripts/setup.sh installs what is missing.

PYTHON ?= /usr/bin/python3
export PYTHON PREFIX DESTDIR SECRETFS

bin := .venv/bin
shell_files := $(wildcard scripts/* examples/*/*.sh) .ci/run

.DEFAULT_GOAL := help
.PHONY: help demo install uninstall test test-quick bench lint lock clean setup-run setup-dev

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup-run ## Mount an example and look around in it
	@PATH="$(CURDIR)/$(bin):$$PATH" examples/demo/run.sh

install: setup-run ## Link the command, mount.secretfs and units for systemd (PREFIX=/usr/local DESTDIR= SECRETFS=)
	@scripts/install.sh install

uninstall: ## Remove what install has put there
	@scripts/install.sh uninstall

test: lint ## Check the code and run all tests, or those of ARGS="..." (for pytest)
	@scripts/test.sh $(ARGS)

test-quick: setup-dev ## Run the quick tests, for the work in between: no mount, no server
	@scripts/test.sh quick $(ARGS)

bench: setup-dev ## Measure how fast it is
	@$(bin)/python -m benchmarks $(ARGS)

lint: setup-dev ## Check style, types and the direction of imports
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy
	@$(bin)/lint-imports
	@shellcheck $(shell_files)

lock: ## Pin the newest versions of all dependencies
	@scripts/lock.sh

clean: ## Remove what was installed and built here
	rm -rf .venv .venv-lock build dist *.egg-info .coverage .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-run:
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev
