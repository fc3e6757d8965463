"""Why nobody serves a mount any more: kept for who asks for its status, until it is mounted again or unmounted."""

import contextlib
import os
from pathlib import Path
from urllib.parse import quote


def write(mountpoint: str, reason: str) -> None:
    """Keep a reason. Where that cannot be done the log has it alone."""
    path = _path(mountpoint)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(reason, encoding="utf-8", errors="backslashreplace")


def read(mountpoint: str) -> str:
    """Return the reason; nothing if there is none."""
    try:
        return _path(mountpoint).read_text(encoding="utf-8")
    except OSError:
        return ""


def remove(mountpoint: str) -> None:
    """Forget the reason."""
    path = _path(mountpoint)
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # the last one


def _path(mountpoint: str) -> Path:
    runtime = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(runtime, "secretfs", quote(os.fsencode(mountpoint), safe=""))
