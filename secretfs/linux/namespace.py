"""A mount namespace of our own, inside a user namespace where the process may not create one otherwise.

The kernel removes the namespace and its mounts when its last process has ended. Call nothing here once there are
threads: unshare(2) concerns the thread that calls it.
"""

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from secretfs.errors import MountError
from secretfs.linux.mountinfo import mounts

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19  # linux/mount.h

PLACES: Final = tuple(map(Path, ("/mnt", "/media", "/srv", "/opt")))
"""Where to find an empty directory to mount on: these are for temporary mounts (hier(7))."""

_SYSCTLS: Final = Path("/proc/sys")
_SWITCHES: Final = (
    ("user/max_user_namespaces", "0", "10000"),
    ("user/max_mnt_namespaces", "0", "10000"),
    ("kernel/unprivileged_userns_clone", "0", "1"),  # Debian's
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu's
)
"""Sysctls that can forbid namespaces: name, forbidding value, allowing value."""


_CHROOT: Final = (
    "this is a chroot, in which the kernel makes none: run it outside; or, as root, make the new root directory a mount"
    " point (mount --rbind DIR DIR) before chroot DIR"
)


def enter() -> bool:
    """Enter a new mount namespace. Mounts of the host are seen in it, also later ones; its mounts are not seen outside.

    Without CAP_SYS_ADMIN a user namespace is created first, which maps only our own ids. Returns whether the ids of
    other users are valid, which they are not in a user namespace. Raises `MountError` with the reason and, where known,
    the fix.
    """
    failed = _unshare(_CLONE_NEWNS)
    if rightless := failed == errno.EPERM:
        uid, gid = os.geteuid(), os.getegid()
        failed = _unshare(_CLONE_NEWUSER | _CLONE_NEWNS) or _map_ids(uid, gid)
    failed = failed or _mount_as_slaves()
    if failed:
        raise MountError(f"cannot make a mount namespace: {os.strerror(failed)}{remedy(failed)}")
    return not rightless


def empty_directory() -> Path:
    """Return a directory to mount on that hides nothing. Raises `MountError` if there is none."""
    for path in PLACES:
        try:
            if not path.is_symlink() and not path.is_mount() and not any(path.iterdir()):
                return path
        except OSError:
            continue
    raise MountError(f"none of {', '.join(map(str, PLACES))} is an empty directory; say where to mount: --at DIR")


def remedy(failed: int, sysctls: Path = _SYSCTLS) -> str:
    """Return what to do when a namespace is refused with this errno, to append to the reason."""
    for name, forbids, allows in _SWITCHES:
        try:
            value = (sysctls / name).read_text("ascii").strip()
        except OSError:
            continue
        if value == forbids:
            return f" ({name.replace('/', '.')} is {forbids}; as root: sysctl -w {name.replace('/', '.')}={allows})"
    if failed in (errno.EPERM, errno.EINVAL) and not any(mount.path == "/" for mount in mounts()):
        return f" ({_CHROOT})"
    if failed == errno.EPERM:
        return " (in a container it needs --security-opt seccomp=unconfined, or --cap-add SYS_ADMIN and to run as root)"
    if failed in (errno.ENOSPC, errno.EUSERS):
        return " (too many of them: see user.max_user_namespaces and user.max_mnt_namespaces)"
    return ""


def _unshare(flags: int) -> int:
    """Return the errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.unshare(flags) != 0 else 0


def _map_ids(uid: int, gid: int) -> int:
    """Map our own ids. An unprivileged process may map no others, and has to deny setgroups(2) (user_namespaces(7))."""
    try:
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", "ascii")
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def _mount_as_slaves() -> int:
    """Make all mounts slaves: they receive mounts of the host, and propagate none. Returns the errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) != 0 else 0
