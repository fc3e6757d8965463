# Everything here works in a fresh clone on Debian 12 and newer; scripts/setup.sh installs what is missing.

PYTHON ?= /usr/bin/python3
export PYTHON

bin := .venv/bin
command := $(or $(SECRETFS),$(CURDIR)/$(bin)/secretfs)
install-units = $(CURDIR)/$(bin)/secretfs install-units --command "$(command)" --prefix "$(or $(PREFIX),/usr/local)" --root "$(or $(DESTDIR),/)"
shell_files := $(wildcard scripts/* examples/*/*.sh) .ci/run

.DEFAULT_GOAL := help
.PHONY: help demo install uninstall archive deb test test-quick fuzz bench image lint docs lock clean setup-run setup-dev

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup-run ## Mount an example and look around in it
	@PATH="$(CURDIR)/$(bin):$$PATH" examples/demo/run.sh

install: setup-run ## Install units, links, manual pages and completions (PREFIX=/usr/local DESTDIR= SECRETFS=)
	@$(install-units)

uninstall: setup-run ## Remove what install has put there
	@$(install-units) --remove

archive: setup-run ## Build one file that is the command with all its libraries, into dist
	@scripts/build-archive dist

deb: setup-dev ## Build the Debian package, for this version of Debian, into dist
	@scripts/build-deb dist

test: lint ## Check the code and run all tests, or those of ARGS="..." (for pytest)
	@scripts/test.sh $(ARGS)

test-quick: setup-dev ## Run the quick tests, for the work in between: no mount, no server
	@scripts/test.sh quick $(ARGS)

fuzz: setup-dev ## Look for inputs that nobody has thought of, for FUZZ_SECONDS (600): with hypothesis, and with atheris if it is there
	@scripts/fuzz.sh

bench: setup-dev ## Measure how fast it is
	@$(bin)/python -m benchmarks $(ARGS)

image: setup-dev ## Build the image for containers, with a list of what is in it (dist/)
	@scripts/build-image

lint: setup-dev ## Check style, types and the direction of imports
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy
	@$(bin)/lint-imports
	@shellcheck $(shell_files)

docs: ## Build the documentation site, and check its links
	@scripts/docs.sh

lock: ## Pin the newest versions of all dependencies
	@scripts/lock.sh

clean: ## Remove what was installed and built here
	rm -rf .venv .venv-docs .venv-lock build dist *.egg-info .coverage .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-run:
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev
