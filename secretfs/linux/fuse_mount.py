"""Make a FUSE mount, by mount(2) or, for a user who may not, by fusermount3. libfuse gets it when it is there."""

import errno
import os
import socket
import subprocess
from pathlib import Path
from typing import Final

from secretfs.linux.mount_api import NODEV, NOEXEC, NOSUID, make_read_only, new_mount, place
from secretfs.linux.mountinfo import FSTYPE
from secretfs.linux.preflight import DEVICE, explain, require_device, require_fusermount

_LONGEST_OPTION: Final = 255  # bytes that fsconfig(2) takes


def connect(path: Path, source: str, *, allow_other: bool) -> tuple[int, str]:
    """Mount at ``path``. Returns the descriptor behind the mount, and what is to be logged about it, if anything.

    A process that may mount calls mount(2), any other runs fusermount3. ``source`` is the first column of the table of
    mounts. Raises `MountError` with the reason and the way out.
    """
    require_device()
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        notice = _mount(descriptor, path, source, allow_other=allow_other)
    except PermissionError:
        os.close(descriptor)
        return _fusermount(path, source, allow_other=allow_other), ""
    except OSError as error:
        os.close(descriptor)
        raise explain(error.strerror or "", path) from None
    return descriptor, notice


def _mount(descriptor: int, path: Path, source: str, *, allow_other: bool) -> str:
    """Mount. Returns what is to be logged. Raises OSError.

    Root gets a mount that is read-only before anybody sees it, also in other mount namespaces: it may open every file,
    and what it writes would be in the page cache until we refuse it. We write through a mount of our own. Another user
    who may mount could not: requests go through /proc of a process that has more rights than that user's others.
    """
    fstype, _, subtype = FSTYPE.partition(".")
    options: dict[str, str | None] = {
        "source": os.fsdecode(os.fsencode(source)[:_LONGEST_OPTION]),
        "subtype": subtype,
        "fd": str(descriptor),
        "rootmode": "40000",
        "user_id": str(os.geteuid()),
        "group_id": str(os.getegid()),
        "default_permissions": None,
    }
    if allow_other:
        options["allow_other"] = None
    mount = new_mount(fstype, options, NOSUID | NODEV | NOEXEC)
    try:
        notice = _make_read_only(mount) if os.geteuid() == 0 else ""
        place(mount, os.fsencode(path))
    finally:
        os.close(mount)
    return notice


def _make_read_only(mount: int) -> str:
    """Make a mount read-only. Returns why that cannot be, if it cannot."""
    try:
        make_read_only(mount)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # an older kernel; the seccomp filter of a container
            raise
        return f"the mount is not read-only for root (mount_setattr: {error.strerror}): writes are refused one by one"
    return ""


def _fusermount(path: Path, source: str, *, allow_other: bool) -> int:
    """Have fusermount3 mount, which is setuid root; it sends the descriptor back through a socket."""
    subtype = FSTYPE.removeprefix("fuse.")
    options = f"nosuid,nodev,noexec,default_permissions,fsname={_escaped(source)},subtype={subtype}"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(  # noqa: S603 - no shell
            ["fusermount3", "-o", options, "--", str(path)],  # noqa: S607 - `executable` is its path
            executable=require_fusermount(),
            env={"_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C", "PATH": os.defpath},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            errors="surrogateescape",  # it quotes paths
            check=False,
        )
        theirs.close()
        if done.returncode == 0:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            if descriptors:
                os.set_inheritable(descriptors[0], False)  # noqa: FBT003 - the library's signature
                return descriptors[0]
    raise explain(done.stderr, path)


def _escaped(value: str) -> str:
    """Escape a value for fusermount3, which takes a comma for the end of an option."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
