#!/usr/bin/env bash
# Runs all tests with an empty temporary directory, and fails when they leave anything behind.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d -t secretfs-test.XXXXXX)

if ! scripts/build-kube-apiserver >/dev/null; then
    echo "The Kubernetes API server that the tests talk to could not be built." >&2
    exit 1
fi

# Processes that have the directory of the tests in their arguments or their environment. Whoever has lost its parent has
# that still. The brackets keep grep from finding itself.
started() {
    local name=${scratch##*/}
    { grep --files-with-matches --no-messages --text "[${name:0:1}]${name:1}" /proc/[0-9]*/{cmdline,environ} || true; } |
        cut -d/ -f3 | sort -u | xargs --no-run-if-empty ps -o pid=,args= --pid || true
}

# What a careless test could leave: mounts, processes, control groups, files. Those that are there before the tests do
# not count.
traces() {
    { grep -F ' - fuse.secretfs ' /proc/self/mountinfo || true; } | cut -d' ' -f5 | sed 's/^/mount /'
    { pgrep --full --list-full "^$PWD/.venv/" || true; } | sed 's/^/process /'
    started | sed 's/^ */process /'
    find /sys/fs/cgroup -type d -name 'secretfs-*' 2>/dev/null | sed 's/^/cgroup /' || true
    find /run/secretfs -type f 2>/dev/null | sed 's/^/file /' || true
    find "$scratch" -mindepth 1 -maxdepth 1 ! -name pytest | sed 's/^/file /'
}

before=$(traces)
status=0
TMPDIR=$scratch .venv/bin/python -m pytest --basetemp="$scratch/pytest" "$@" --cov || status=$?
left=$(comm -13 <(sort <<<"$before") <(traces | sort))
if [[ -n $left ]]; then
    printf 'The tests left something behind:\n%s\n' "$left" >&2
    exit 1
fi
if ((status == 0)); then
    rm -rf --one-file-system "$scratch"
    echo "Nothing left behind: no mount, no process, no control group, no file."
else
    echo "The files of the failed tests are in $scratch" >&2
fi
exit "$status"
