"""The files of a mount that last until the machine is started again (``/run``, XDG_RUNTIME_DIR)."""

import binascii
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

_LONGEST_NAME: Final = 240  # bytes, which leaves some for suffixes


def runtime_file(mountpoint: Path | str, suffix: str = "") -> Path:
    """Return the path of a file of this user's about a mount. Neither it nor its directory need exist.

    Its name is the mount point; of a long one the beginning, a checksum and the end.
    """
    runtime = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    name = quote(os.fsencode(mountpoint), safe="")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:100]}-{binascii.crc32(name.encode()):08x}-{name[-100:]}"  # hashlib weighs the supervisor down
    return Path(runtime, "secretfs", name + suffix)


def make_runtime_directory(file: Path | str) -> None:
    """Make the directory of a `runtime_file`, which is nobody else's business. Raises OSError."""
    Path(file).parent.mkdir(mode=0o700, exist_ok=True)
