"""The command line in a process of its own: run to its end, in the background, or in a mount namespace."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.canary import leaked
from tests.support.lacking import require_root
from tests.support.mounted import daemons, fuse_mounts, unmount, wait_for_end
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SECRETFS = (sys.executable, "-m", "secretfs")
NOBODY = 65534


@dataclass(frozen=True)
class Done:
    """What a command left: its status and what it said. It never says a secret, and never shows a traceback."""

    status: int
    out: str
    err: str

    def __post_init__(self) -> None:
        assert "Traceback" not in self.out + self.err, self.err
        assert not leaked(self.out + self.err), "the command printed a test secret"

    @property
    def lines(self) -> list[str]:
        """What it said on standard error."""
        return self.err.splitlines()


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a command; PYTHONPATH is added to the path to this project."""
    more = dict(env or {})
    path = ":".join(filter(None, (str(ROOT), more.pop("PYTHONPATH", ""))))
    return os.environ | {"PYTHONPATH": path} | more


def secretfs(*arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Done:
    """Run ``secretfs``."""
    return run([*SECRETFS, *map(str, arguments)], env=environment(env), cwd=cwd)


def run(command: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Done:
    """Run a command. Waits until nobody holds its standard output and error any more."""
    done = subprocess.run(
        command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@contextlib.contextmanager
def background(
    mountpoint: Path, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[int]:
    """Mount in the background; yields the process id of the daemon. In the end the mount and the daemon are gone.

    It logs to a file beside the mount point unless the arguments name another.
    """
    if "--log-file" not in arguments:
        arguments = ("--log-file", mountpoint.with_name(f"{mountpoint.name}.log"), *arguments)
    with contextlib.suppress(OSError):  # there is one; it may be a dead mount
        mountpoint.mkdir()
    try:
        done = secretfs("mount", *arguments, mountpoint, env=env, cwd=cwd)
        assert done.status == 0, done.err
        (pid,) = daemons(mountpoint)
        yield pid
    finally:
        end_daemons(mountpoint)


def end_daemons(mountpoint: Path) -> None:
    """Unmount, and wait until those who served the mount have ended."""
    while str(mountpoint) in fuse_mounts():
        unmount(mountpoint)
    wait_for_end(mountpoint)


def in_namespace(script: str, env: Mapping[str, str] | None = None, *, says_where_it_logs: bool = False) -> Done:
    """Run a bash script as root of mount and process namespaces that end with it.

    There ``secretfs`` is the command, ``as_nobody`` runs what follows as a user without rights, ``kill_daemon`` kills
    all that serve a mount, supervisors first, ``env_component`` makes ./c with the store env of variables that begin
    with its argument, and ``bare_dev`` leaves nothing in /dev but what it takes to mount. /mnt/repo is this project,
    /mnt/nobody that user's home and current directory, /run is empty, and /dev/fuse is open to everybody. Whether this
    machine has a syslog makes no difference, unless ``says_where_it_logs`` asks for it.
    """
    require_root("only root may make a mount namespace with a device in it")
    prelude = f"""
        set -eu
        mount -t tmpfs none /mnt
        mount -t tmpfs none /run
        mkdir /mnt/repo /mnt/python /mnt/nobody
        mount --bind {shlex.quote(str(ROOT))} /mnt/repo
        mount --bind {shlex.quote(sys.prefix)} /mnt/python
        mknod -m 666 /mnt/fuse c 10 229
        mount --bind /mnt/fuse /dev/fuse
        chown {NOBODY} /mnt/nobody
        cd /mnt/nobody
        export HOME=/mnt/nobody PYTHONPATH=/mnt/repo TMPDIR=/mnt/nobody PYTHONDONTWRITEBYTECODE=1
        kill_daemon() {{ pkill -KILL -f 'secretfs[.]daemon[.]supervisor'; pkill -KILL secretfs:; }}
        env_component() {{
            mkdir c
            printf '%s\\n' 'apiVersion: dapr.io/v1alpha1' 'kind: Component' 'metadata: {{name: env}}' \
                "spec: {{type: secretstores.local.env, metadata: [{{name: prefix, value: '${{1:-}}'}}]}}" > c/env.yaml
        }}
        bare_dev() {{ mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229; }}
        as_nobody() {{ setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"; }}
        cat > /mnt/secretfs <<-'END'
\t\t#!/bin/sh
\t\texec /mnt/python/bin/python -m secretfs "$@"
\t\tEND
        chmod 755 /mnt/secretfs
        PATH=/mnt:$PATH
    """
    unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = run([*unshare, "bash", "-c", prelude + script], env=os.environ | dict(env or {}))
    if says_where_it_logs:
        return done
    return replace(
        done, err="".join(line for line in done.err.splitlines(keepends=True) if "there is no syslog" not in line)
    )
