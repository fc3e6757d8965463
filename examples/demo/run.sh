#!/usr/bin/env bash
# A tour of one mount, taken down again at the end. `make demo` runs it; by hand it needs `secretfs` on the PATH.
set -euo pipefail
cd "$(dirname "$0")"

export LC_ALL=C
mnt=$(mktemp -d /tmp/secretfs-demo.XXXXXX)

clean_up() {
    local status=$?
    trap - EXIT
    if mounted; then
        secretfs unmount "$mnt" || fusermount3 -u -z "$mnt" || umount --lazy "$mnt" || true
    fi
    rmdir "$mnt" || true # never rm -r: that would go into a mount
    rm -f {/run,"${XDG_RUNTIME_DIR:-/run}"}/secretfs/*"${mnt##*/}.log" # where there is no syslog, it logs there
    ((status == 0)) || echo "The demo failed." >&2
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mounted() { grep -qF " $mnt " /proc/self/mountinfo; }

title() { printf '\n# %s\n' "$*"; }

# Shows a command as a person would type it, and runs it.
run() {
    echo "\$ $*"
    eval "$*"
}

# Runs a command that has to fail, saying what the first argument says.
fails() {
    echo "\$ $2"
    local said
    if said=$(eval "$2" 2>&1); then
        echo "This should have failed: $2" >&2
        return 1
    fi
    echo "$said"
    grep -q -- "$1" <<<"$said"
}

export DEMO_API_KEY=not-a-real-key

title "An app called shop, its Dapr components, and what its configuration lets it read. Mount them:"
run "secretfs mount --resources-path components --config config.yaml --app-id shop $mnt"

title "Every secret store is a directory, every secret a file"
if command -v tree >/dev/null; then
    run "tree --noreport $mnt"
else
    run "find $mnt"
fi
run "ls -l $mnt/files/db"

title "A file holds the value, and not a byte more"
run "cat $mnt/files/db/password; echo"
run "cat $mnt/env/API_KEY; echo"
run "wc -c < $mnt/files/db/password"

title "A whole store at once: as the answer of Dapr's bulk request, and for a shell. Not listed, but there"
run "cat $mnt/files/.bulk.json"
run "cat $mnt/files/.bulk.env"
run "(. $mnt/files/.bulk.env; echo \"\$db_username\")"

title "The secret scope hides signing-key: there is no such file, and no trace of it"
fails "No such file or directory" "cat $mnt/files/signing-key"
fails "^0$" "grep -c signing-key $mnt/files/.bulk.json"

title "Nothing here can be changed"
fails "Read-only file system" "touch $mnt/files/db/password"

title "That is all"
run "secretfs unmount $mnt"
if mounted; then exit 1; fi
