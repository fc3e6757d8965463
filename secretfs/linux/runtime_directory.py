"""The files of a mount that last until the machine is started again (``/run``, XDG_RUNTIME_DIR)."""

import os
from pathlib import Path
from urllib.parse import quote


def runtime_file(mountpoint: Path | str, suffix: str = "") -> Path:
    """Return the path of a file of this user's about a mount. Neither it nor its directory need exist."""
    runtime = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(runtime, "secretfs", quote(os.fsencode(mountpoint), safe="") + suffix)
