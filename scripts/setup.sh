#!/usr/bin/env bash
# Installs what is missing on a Debian machine, and nothing else: packages, then .venv with the locked dependencies.
#
#   setup.sh run    what `make demo` needs
#   setup.sh dev    what `make test` needs as well
#
# A second run does nothing and needs no network. Exit status 69: Debian packages are missing and we are not root
# (make itself then ends with 2).
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:?usage: setup.sh run|dev}
python=${PYTHON:-/usr/bin/python3}
venv=$PWD/.venv

packages=(
    ca-certificates
    fuse3         # fusermount3
    gcc           # pyfuse3 is compiled here: this, and the four below
    libc6-dev
    libfuse3-dev
    pkg-config
    python3-dev
    python3-venv
)
dev_packages=(
    attr          # getfattr
    dbus          # the systemd that the tests boot: this, and the two below
    systemd
    systemd-container
    gnome-keyring # a keyring, and secret-tool to put secrets into it: this, and the next
    libsecret-tools
    dpkg-dev      # scripts/build-kube-apiserver: this, and the next two
    jq
    make
    postgresql    # what OpenBao's database engine makes users in
    inotify-tools # inotifywait
    nginx-light   # the fastest way to ask a local process for a secret, for `make bench`
    runc          # a container with the mount in it
    rsync         # read secrets as users do: this, and the two below
    tar
    tree
    procps        # pgrep
    shellcheck
    util-linux    # nsenter, setpriv, umount, unshare
)

say() { echo "setup: $*"; }

stop() {
    local status=$1
    shift
    printf 'setup: %s\n' "$@" >&2
    exit "$status"
}

install_packages() {
    local wanted=("${packages[@]}") missing=() name
    [[ $profile == run ]] || wanted+=("${dev_packages[@]}")
    if ! command -v dpkg-query >/dev/null; then
        say "this is not Debian; going on in the hope that it has what these packages hold: ${wanted[*]}"
        return
    fi
    local installed
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null || true)
    for name in "${wanted[@]}"; do
        grep -qxF "installed $name" <<<"$installed" || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        stop 69 "these Debian packages are missing; as root, run" \
            "    apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    fi
    say "installing Debian packages: ${missing[*]}"
    keep_postgresql_quiet
    keep_nginx_quiet
    export DEBIAN_FRONTEND=noninteractive
    apt_get install "${missing[@]}" 2>/dev/null && return
    say "fetching the package lists"
    apt_get update
    apt_get install "${missing[@]}"
}

# The tests start servers of their own: a machine that has no PostgreSQL should not get a running one from us.
keep_postgresql_quiet() {
    local config=/etc/postgresql-common/createcluster.conf
    [[ " ${missing[*]} " != *" postgresql "* || -e $config ]] && return
    mkdir -p "${config%/*}"
    echo "create_main_cluster = false" >"$config"
}

# The benchmark starts nginx when it needs it: neither now nor after the next boot is it to run because of us.
keep_nginx_quiet() {
    local policy=/usr/sbin/policy-rc.d unit=/etc/systemd/system/nginx.service
    [[ " ${missing[*]} " == *" nginx-light "* ]] || return 0
    if [[ ! -e $unit ]]; then
        mkdir -p "${unit%/*}"
        ln -s /dev/null "$unit"
    fi
    if [[ ! -e $policy ]]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
}

# Quiet unless it fails: then apt says why.
apt_get() {
    local said
    said=$(apt-get -qq -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 --no-install-recommends "$@" 2>&1 </dev/null) || {
        echo "$said" >&2
        return 1
    }
}

# Whatever decides what ends up in .venv. The path is part of it: a virtual environment cannot be moved.
fingerprint() {
    { echo "$venv" && "$python" -VV && cat pyproject.toml setup.py secretfs/*/*.c requirements/*.txt scripts/setup.sh; } |
        sha256sum
}

pip_install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@" </dev/null
}

# Only pyfuse3 is built from source, with build tools that are locked as well; everything is checked against its hash.
locked() { pip_install --require-hashes --no-deps --no-build-isolation --only-binary :all: --no-binary pyfuse3 "$@"; }

install_python() {
    local now
    now=$(fingerprint)
    is_ready "$profile" "$now" && return
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop 1 "$python is older than Python 3.11; name another one: make PYTHON=/path/to/python3 ..."
    if ! is_ready run "$now"; then
        say "making .venv"
        "$python" -m venv --clear "$venv"
        locked -r requirements/build.txt
        say "installing what secretfs needs (pyfuse3 is compiled, which takes a moment)"
        locked -r requirements/run.txt
        pip_install --no-deps --no-build-isolation --no-index --editable . # compiles what is optional, where that works
        echo "$now" >"$venv/.ready-run"
    fi
    if [[ $profile == dev ]]; then
        say "installing what the tests need"
        locked -r requirements/dev.txt
        echo "$now" >"$venv/.ready-dev"
    fi
    "$venv/bin/python" -m pip --disable-pip-version-check check >/dev/null ||
        stop 1 "the locked requirements do not fit together; run: make lock"
}

# Written last: an interrupted installation is not ready.
is_ready() { [[ -x $venv/bin/python && -f $venv/.ready-$1 && $(<"$venv/.ready-$1") == "$2" ]]; }

exec 9<"$0"
flock 9 # one at a time, also under make -j
install_packages
install_python
