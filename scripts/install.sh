#!/usr/bin/env bash
# Puts secretfs where the system looks for it: links to the command, and the units of systemd.
#
#   install.sh install|uninstall
#
# SECRETFS  the command; mount.secretfs is beside it. Default: that of .venv
# PREFIX    default /usr/local
# DESTDIR   for packages: a directory in whose place the root is imagined
set -euo pipefail
cd "$(dirname "$0")/.."

secretfs=${SECRETFS:-$PWD/.venv/bin/secretfs}
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
bin=$prefix/bin
units=$prefix/lib/systemd

install_all() {
    local helper=${secretfs%/*}/mount.secretfs kind
    [[ -x $secretfs && -x $helper ]] || {
        echo "install: there is no $secretfs with mount.secretfs beside it; name the command: make install SECRETFS=..." >&2
        exit 1
    }
    mkdir -p "$root$bin" "$root/sbin"
    link "$secretfs" "$root$bin/secretfs"
    link "$helper" "$root/sbin/mount.secretfs" # where mount(8) looks, whatever the prefix
    for kind in system user; do
        mkdir -p "$root$units/$kind"
        sed "s|@bindir@|$bin|" "systemd/$kind/secretfs@.service" >"$root$units/$kind/secretfs@.service"
        chmod 644 "$root$units/$kind/secretfs@.service"
    done
}

uninstall_all() {
    local link
    for link in "$root$bin/secretfs" "$root/sbin/mount.secretfs"; do
        [[ ! -L $link ]] || rm "$link" # the command itself is not ours to remove
    done
    rm -f "$root$units"/{system,user}/secretfs@.service
}

# Unless it is there already, as when a package has installed the command itself.
link() { [[ $1 -ef $2 ]] || ln -sfn "$1" "$2"; }

case ${1:-} in
    install) install_all ;;
    uninstall) uninstall_all ;;
    *) echo "usage: install.sh install|uninstall" >&2 && exit 2 ;;
esac
# A system that is imagined, or one without systemd, has nothing to be told.
if [[ -z $root && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi
