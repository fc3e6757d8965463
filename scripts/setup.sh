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
    age           # age-keygen: keys for files that SOPS encrypts
    pipx          # which README names for installing it
    attr          # getfattr
    dbus          # the systemd that the tests boot: this, and the two below
    systemd
    systemd-container
    gnome-keyring # a keyring, and secret-tool to put secrets into it: this, and the next
    libsecret-tools
    build-essential # make deb: dpkg-buildpackage does nothing without it; this, and lintian complains of what was built
    debhelper
    lintian
    mmdebstrap    # a clean Debian to install it in, and what scripts/build-image builds in
    mandoc        # shows manual pages, and complains
    dpkg-dev      # scripts/build-kubernetes: this, and the two below
    jq
    make
    postgresql    # what OpenBao's database engine makes users in
    inotify-tools # inotifywait
    haproxy       # docs/pairs.md says how it takes a new certificate: this, and the two below
    socat
    nginx-light   # and the fastest way to ask a local process for a secret, for `make bench`
    docker.io     # what volumes of containers are tested with: this, and the ten below
    containerd
    containernetworking-plugins
    docker-compose
    podman
    crun
    fuse-overlayfs
    slirp4netns
    uidmap
    bubblewrap
    busybox-static
    prometheus    # promtool checks metrics, alert rules and their tests
    runc          # a container with the mount in it
    rsync         # read secrets as users do: this, and the two below
    tar
    tree
    curl          # the recipes of docs/index.md: this, and the three below
    default-jdk-headless # 0.25 GB; a source file is run as it stands, which takes the compiler
    openssh-server
    redis-server
    procps        # pgrep
    shellcheck
    iproute2      # ip, in the network namespaces of tests
    util-linux    # nsenter, setpriv, umount, unshare
)

# A plug-in in JavaScript. Who has Node.js from elsewhere has npm with it.
command -v npm >/dev/null || dev_packages+=(nodejs npm)

# Since Debian 13 the command `docker` is in a package of its own.
# shellcheck source=/dev/null
case $(. /etc/os-release 2>/dev/null && echo "$ID ${VERSION_ID:-sid}") in
    "debian 12") ;;
    "debian "*) dev_packages+=(docker-cli) ;;
esac

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
    keep_quiet nginx-light nginx.service
    keep_quiet docker.io docker.{service,socket}
    keep_quiet containerd containerd.service
    keep_quiet podman podman{,-auto-update,-restart}.service podman.socket podman-auto-update.timer
    keep_quiet prometheus prometheus.service
    keep_quiet haproxy haproxy.service
    keep_quiet redis-server redis-server.service
    keep_quiet openssh-server ssh.service ssh.socket
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

# The tests and the benchmark start these programs when they need them: neither now nor after the next boot are their
# services to run because of us. Takes a package, and its units.
keep_quiet() {
    local package=$1 policy=/usr/sbin/policy-rc.d units=/etc/systemd/system unit
    [[ " ${missing[*]} " == *" $package "* ]] || return 0
    mkdir -p "$units"
    for unit in "${@:2}"; do
        [[ -e $units/$unit ]] || ln -s /dev/null "$units/$unit"
    done
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
