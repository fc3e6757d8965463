#!/usr/bin/env bash
# Puts secretfs where the system looks for it: links to the command, and the units of systemd. Keeps updatedb(8), which
# walks all that is mounted and whose index everybody may search, out of secrets.
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
updatedb=$root/etc/updatedb.conf

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
    prune
}

uninstall_all() {
    local link
    for link in "$root$bin/secretfs" "$root/sbin/mount.secretfs"; do
        [[ ! -L $link ]] || rm "$link" # the command itself is not ours to remove
    done
    rm -f "$root$units"/{system,user}/secretfs@.service
    [[ ! -e $updatedb ]] || sed -i -E '/^\s*PRUNEFS\s*=/ s/ ?\bfuse\.secretfs\b//' "$updatedb"
}

# Adds our type of file system to those that updatedb leaves out. There is no other file in which to say so.
prune() {
    if [[ ! -e $updatedb ]] || grep -qE '^\s*PRUNEFS\s*=.*\bfuse\.secretfs\b' "$updatedb"; then
        return
    elif grep -qE '^\s*PRUNEFS\s*=' "$updatedb"; then
        sed -i -E 's/^(\s*PRUNEFS\s*=\s*"[^"]*)"/\1 fuse.secretfs"/' "$updatedb"
    else
        echo 'PRUNEFS="fuse.secretfs"' >>"$updatedb"
    fi
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
