#!/usr/bin/env bash
# Builds the documentation site into build/site, with what requirements/docs.txt locks, in a virtual environment of its
# own. A link that leads nowhere, or to a heading that is not there, fails.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-docs
now=$(sha256sum requirements/docs.txt)
if [[ ! -f $venv/.ready || $(<"$venv/.ready") != "$now" ]]; then
    "${PYTHON:-/usr/bin/python3}" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --require-hashes --no-deps \
        --only-binary :all: -r requirements/docs.txt
    echo "$now" >"$venv/.ready"
fi
said=$(NO_MKDOCS_2_WARNING=1 "$venv/bin/mkdocs" build --strict 2>&1) || { # --quiet would let it count no warnings
    echo "$said" >&2
    exit 1
}
echo "docs: build/site/index.html"
