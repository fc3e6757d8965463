#!/usr/bin/env bash
# Runs the tests with empty temporary directories, and fails when they leave anything behind.
#
#   test.sh                 all of them: suites that know nothing of each other, as many at once as there are processors
#   test.sh quick           those that need no mount, no server and no process of their own
#   test.sh ARGUMENT...     those that pytest finds for these arguments
#
# A suite is one pytest process. The same tests run in the same order in it every time, however many suites run at once.
# Servers that have to be built are built before, once per machine.
set -euo pipefail
cd "$(dirname "$0")/.."

# Nothing that starts a server, or a process for each test: two parts that take as long as each other.
only='not mount and not root'
quick=(tests/{fs,fuse,fuzz,vectors,stores/_http})
quick_too=(tests/{cache,dapr,registry} tests/stores/test_*.py tests/test_{durations,scopes,settings}.py)

# What differs where the daemon answers each open and listing (--no-kernel-answers) is tested once more, in the suite "messages".
again=(tests/behaviour/test_{access,apps,audit,control,life,reload,rotation,takeover,use}.py)

# The longest first: name, then what pytest is given. The last one has whatever the others have not.
suites=(
    "behaviour tests/behaviour --ignore=tests/behaviour/test_systemd.py"
    "messages ${again[*]}"
    "stores tests/stores"
    "containers tests/containers"
    "kubernetes tests/kubernetes"
    "daemon tests/daemon tests/linux"
    "systemd tests/behaviour/test_systemd.py"
    "others tests --ignore=tests/behaviour --ignore=tests/stores --ignore=tests/daemon --ignore=tests/linux --ignore=tests/containers --ignore=tests/kubernetes"
)

scratch=$(mktemp -d -t secretfs-test.XXXXXX) # not exported: it is by this that processes of the tests are known

build_servers() {
    scripts/build-kubernetes >/dev/null || stop "The Kubernetes that the tests talk to could not be built."
    scripts/install-node-packages >/dev/null || stop "The npm packages of the tests could not be installed."
}

stop() {
    echo "$1" >&2
    exit 1
}

# Runs one suite; its output comes in one piece at its end. Names are short: sockets are made below this directory.
# shellcheck disable=SC2317  # xargs calls it
run_suite() {
    local scratch=$1 name=$2 status=0
    mkdir "$scratch/$name"
    [[ $name != messages ]] || export SECRETFS_KERNEL_ANSWERS=0
    TMPDIR=$scratch/$name COVERAGE_FILE=$scratch/coverage.$name .venv/bin/python -m pytest \
        --basetemp="$scratch/$name/pytest" -o cache_dir="$scratch/$name/cache" "${@:3}" \
        >"$scratch/$name.log" 2>&1 || status=$?
    { echo && echo "=== $name ===" && cat "$scratch/$name.log"; } | flock "$scratch" cat
    return "$status"
}
export -f run_suite

# Takes suites. Not with "&": what a shell starts so ignores SIGINT, and the tests send it.
run_suites() { printf '%s\n' "$@" | xargs -P "${JOBS:-$(nproc)}" -L 1 bash -c 'run_suite "$@"' bash "$scratch"; }

run_all() {
    local status=0
    run_suites "${suites[@]/%/ --cov --cov-report=}" || status=$?
    .venv/bin/coverage combine --quiet "$scratch"/coverage.* && .venv/bin/coverage report
    return "$status"
}

run_some() {
    mkdir "$scratch/some"
    TMPDIR=$scratch/some .venv/bin/python -m pytest --basetemp="$scratch/some/pytest" "$@"
}

# Processes that have the directory of the tests in their arguments or their environment. Those that have lost their
# parent have it still. The brackets keep grep from finding itself.
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
    find "$scratch" -mindepth 2 -maxdepth 2 ! -name pytest ! -name cache | sed 's/^/file /'
}

before=$(traces)
[[ -d /run/secretfs ]] && was_there=yes || was_there=no
status=0
case ${1:-} in
    "") build_servers && run_all || status=$? ;;
    quick)
        if (($# > 1)); then # a choice, which one part may have nothing of
            run_some "${quick[@]}" "${quick_too[@]}" -m "$only" "${@:2}" || status=$?
        else
            run_suites "quick -m '$only' ${quick[*]}" "quick_too -m '$only' ${quick_too[*]}" || status=$?
        fi
        ;;
    *) build_servers && run_some "$@" --cov || status=$? ;;
esac
[[ $was_there == yes ]] || rmdir /run/secretfs 2>/dev/null || true # no daemon does it: another one may write there
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
