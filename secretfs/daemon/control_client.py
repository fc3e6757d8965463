"""Read the status of a mount, and write requests to it, through its control files."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from secretfs.daemon.processes import last_failure
from secretfs.errors import ConfigurationError, MountError, SecretFSError, StoreError
from secretfs.fs.names import CONTROL
from secretfs.linux.mountinfo import require_mounted
from secretfs.linux.mountpoint import call_with_timeout

_LARGEST_STATUS: Final = 64 << 20
"""Bytes that are read from a file system of somebody else."""


def read_status(mountpoint: Path) -> bytes:
    """Read the status of a mount. Raises `MountError` with the reason and the way out."""
    path = _control(mountpoint, "status.json")
    try:
        return call_with_timeout(mountpoint, path.read_bytes)
    except OSError as error:
        if error.errno == errno.EACCES and os.geteuid() == 0:
            return _read_as_owner(mountpoint, path)
        raise _explained(mountpoint, error) from None


def read_metrics(mountpoint: Path) -> str:
    """Read the metrics of a mount of this user, as OpenMetrics. Raises `MountError` with the reason and the way out."""
    path = _control(mountpoint, "metrics")
    try:
        return call_with_timeout(mountpoint, partial(path.read_text, "utf-8"))
    except OSError as error:
        raise _explained(mountpoint, error) from None


def _read_as_owner(mountpoint: Path, path: Path) -> bytes:
    """Read a file as the user who mounted: without --allow-other the kernel lets nobody else in, not even root.

    That user may trace the process that reads, so it gets nothing of ours: no environment, no terminal.
    """
    mount = require_mounted(mountpoint)
    command = ["head", "-c", str(_LARGEST_STATUS), "--", str(path)]
    env = {"PATH": os.defpath, "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command, env=env, user=mount.user, group=mount.group, extra_groups=[], start_new_session=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=2.0, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MountError(f"the secretfs at {mountpoint} does not answer", "ask as the user who mounted it") from None
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode(errors="replace")
    codes = (code for code in (errno.ENOTCONN, errno.ENOENT) if os.strerror(code) in said)
    raise _explained(mountpoint, OSError(next(codes, errno.EACCES), said.strip()))


def refresh(mountpoint: Path, given: Path, paths: Sequence[str]) -> Iterator[SecretFSError]:
    """Refresh paths below a mount point, or everything. Yields an error for each path that fails.

    Absolute paths begin with the mount point, or with ``given``: the mount point as the user wrote it.
    """
    control = _control(mountpoint, "refresh")
    root = os.path.abspath(given)  # noqa: PTH100 - resolves no links: that could hang
    for path in [_below(mountpoint, root, path) for path in paths] or ["*"]:
        try:
            call_with_timeout(mountpoint, partial(_write, control, path), while_alive=True)
        except OSError as error:
            if error.filename is not None:  # the open failed, not the request
                raise _explained(mountpoint, error) from None
            reason = os.strerror(error.errno or 0)
            yield StoreError(f"{'everything' if path == '*' else path}: {reason}; see secretfs status {mountpoint}")


def reload(mountpoint: Path) -> str:
    """Have a mount read its declaration again. Returns the mistake that kept all as it was, or nothing.

    Raises `MountError` if the mount does not answer.
    """
    control = _control(mountpoint, "reload")
    try:
        call_with_timeout(mountpoint, partial(_write, control, "*"), while_alive=True)
    except OSError as error:
        if error.filename is not None or error.errno != errno.EINVAL:
            raise _explained(mountpoint, error) from None
        return str(json.loads(read_status(mountpoint))["declaration"]["error"])
    return ""


def _control(mountpoint: Path, name: str) -> Path:
    require_mounted(mountpoint)
    return mountpoint / os.fsdecode(CONTROL) / name


def _write(control: Path, path: str) -> int:
    descriptor = os.open(control, os.O_WRONLY)
    try:
        return os.write(descriptor, os.fsencode(path))
    finally:
        os.close(descriptor)


def _below(mountpoint: Path, given: str, path: str) -> str:
    """Return a path as one below the mount point."""
    if "\n" in path:
        raise ConfigurationError("a path with a line break cannot be refreshed; refresh its store")
    if not path.startswith("/"):
        return path
    for root in dict.fromkeys((str(mountpoint), given)):
        if (path.rstrip("/") + "/").startswith(f"{root}/"):
            return path.removeprefix(root).strip("/") or "*"
    raise ConfigurationError(f"{path} is not below {mountpoint}")


def _end(mountpoint: Path) -> str:
    reason = last_failure(str(mountpoint))
    return f"could not be served any more ({reason})" if reason else "was killed"


def _explained(mountpoint: Path, error: OSError) -> MountError:
    explanations = {
        errno.ENOTCONN: (_end(mountpoint), f"mount again: secretfs mount ... {mountpoint}"),
        errno.EACCES: ("answers only to the user who runs it", "become that user"),
        errno.ENOENT: (f"is one without {os.fsdecode(CONTROL)}", "mount again"),
    }
    if error.errno not in explanations:
        return MountError(f"cannot ask {mountpoint}: {error.strerror}")
    reason, fix = explanations[error.errno]
    return MountError(f"the secretfs at {mountpoint} {reason}", fix)
