"""Checks before a mount: what prevents it on this machine or for this user, each with its reason and its fix.

`explain` turns the messages of a mount that failed all the same into a reason and a fix.
"""

import errno
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final

from secretfs.errors import MountError
from secretfs.linux.process import CAP_SYS_ADMIN, has_capability, may_gain_privileges

DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")

_LOAD = "load the module fuse (modprobe fuse), or pass the device in (--device /dev/fuse, DeviceAllow=/dev/fuse rw)"
_OPEN_DEVICE = f"as root: chmod 0666 {DEVICE}; or mount as root"
_INSTALL = "install the package fuse3"
_GAIN = (
    "run it without NoNewPrivileges= (which, for a user, RestrictNamespaces=, LockPersonality=,"
    " MemoryDenyWriteExecute= and RestrictSUIDSGID= imply), or mount as root"
)
_ALLOW_OTHER = f"as root, put the line user_allow_other into {FUSE_CONF}; or do without --allow-other"
_SYS_ADMIN = "give it CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN, CapabilityBoundingSet=CAP_SYS_ADMIN)"
_PERMIT = (
    f"as root, {_SYS_ADMIN} and let seccomp and AppArmor allow mount(2) (--security-opt apparmor=unconfined);"
    f" as a user, {_GAIN}"
)
_OWN = "make it yours (chown), or name another directory"

_SAID: Final = (
    ("only allowed if 'user_allow_other' is set", _ALLOW_OTHER),
    ("no write access to mountpoint|not owned by user", _OWN),
    ("too many FUSE filesystems mounted", f"unmount some of yours, or raise mount_max in {FUSE_CONF} as root"),
    ("is forbidden$", "name a directory on an ordinary file system, such as below /run or /home"),
    (r"(failed to access|bad) mount ?point", "every directory on the way needs an x for this user (ls -ld)"),
    ("fuse device not found|device not found|No such device|failed to open /dev/fuse: No such", _LOAD),
    ("failed to open /dev/fuse", _OPEN_DEVICE),
    ("fusermount3.*No such file|failed to exec", _INSTALL),
    ("Operation not permitted", _PERMIT),
)
"""Messages of fusermount3 (util/fusermount.c of libfuse), libfuse (lib/mount.c) and the kernel, each with its fix."""


def may_mount() -> bool:
    """Tell whether this process may call mount(2): as root, or in its own user namespace. Others need fusermount3."""
    return has_capability(CAP_SYS_ADMIN)


def require_device() -> None:
    """Open /dev/fuse, as a mount does: its mode and owner do not tell all. Raises `MountError`."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountError(f"{DEVICE} is missing", _LOAD) from None
    except OSError as error:
        if error.errno == errno.EACCES:
            mode = stat.S_IMODE(DEVICE.stat().st_mode)
            raise MountError(f"{DEVICE} may not be opened by this user: its mode is {mode:04o}", _OPEN_DEVICE) from None
        raise MountError(f"{DEVICE} cannot be opened: {error.strerror}", _LOAD) from None


def require_privilege() -> None:
    """Make sure that this process can mount, itself or through fusermount3. Raises `MountError`."""
    if may_mount():
        return
    if os.geteuid() == 0:
        raise MountError("root may not mount here: it lacks CAP_SYS_ADMIN", _SYS_ADMIN)
    path = require_fusermount()
    if not path.stat().st_mode & stat.S_ISUID:
        raise MountError(f"{path} is not setuid, so it cannot mount for a user", f"as root: chmod u+s {path}")
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        fix = "mount that file system without nosuid, or mount as root"
        raise MountError(f"{path} cannot mount for a user: it lies on a file system with nosuid", fix)
    if not may_gain_privileges():
        raise MountError(f"{path} cannot mount for a user here: this process runs with no_new_privs", _GAIN)


def require_fusermount() -> Path:
    """Return the path of fusermount3, which mounts and unmounts for users. Raises `MountError` if it is missing."""
    path = shutil.which("fusermount3", path=os.environ.get("PATH") or os.defpath)  # mount(8) gives helpers none
    if path is None:
        raise MountError("fusermount3 is missing, which mounts for users other than root", _INSTALL)
    return Path(path)


def require_allow_other() -> None:
    """Make sure that this user may let other users into a mount. Raises `MountError`."""
    if may_mount():
        return
    try:
        lines = FUSE_CONF.read_text("ascii", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:  # as this user fusermount3 reads it, too
        raise MountError(f"{FUSE_CONF} cannot be read: {error.strerror}", f"as root: chmod 644 {FUSE_CONF}") from None
    if "user_allow_other" not in map(str.strip, lines):
        raise MountError(f"{FUSE_CONF} does not let users share their mounts (--allow-other)", _ALLOW_OTHER)


def explain(said: str, mountpoint: Path) -> MountError:
    """Make an error of what fusermount3 or libfuse wrote to standard error, or of the text of an errno."""
    said = "; ".join(line.strip() for line in said.splitlines() if line.strip())
    ways = (fix for pattern, fix in _SAID if re.search(pattern, said))
    fix = next(ways, f"ask for the reason: secretfs doctor {mountpoint}")
    return MountError(f"cannot mount at {mountpoint}: {said or 'no reason is given'}", fix)
