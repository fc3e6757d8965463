"""The files of a mount that last until the machine is started again (``/run``, XDG_RUNTIME_DIR)."""

import os
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

_LONGEST_NAME: Final = 240  # bytes, which leaves some for suffixes


def runtime_file(mountpoint: Path | str, suffix: str = "") -> Path:
    """Return the path of a file of this user's about a mount. Neither it nor its directory need exist.

    Its name is the mount point, or the end of a long one after a digest of it all.
    """
    runtime = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    name = quote(os.fsencode(mountpoint), safe="")
    if len(name) > _LONGEST_NAME:
        name = f"{sha256(name.encode()).hexdigest()[:32]}-{name[-100:]}"
    return Path(runtime, "secretfs", name + suffix)
