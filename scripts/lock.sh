#!/usr/bin/env bash
# Pins and hashes everything that setup.sh and docs.sh install. Versions younger than a week wait (pyproject.toml, tool.uv).
set -euo pipefail
cd "$(dirname "$0")/.."

tools=.venv-lock
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-/usr/bin/python3}" -m venv --clear "$tools"
"$tools/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r requirements/lock.txt

compile() {
    local out=requirements/$1.txt
    shift
    echo "lock: $out"
    "$tools/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --custom-compile-command "make lock" --output-file "$out" "$@"
}

compile lock requirements/lock.in
compile build requirements/build.in
compile archive requirements/archive.in
compile docs requirements/docs.in
compile run pyproject.toml --extra all
compile dev pyproject.toml --extra all --group dev --constraints requirements/run.txt
