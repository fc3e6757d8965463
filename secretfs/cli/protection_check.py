"""What protects the secrets of the daemon that serves a mount, and what does not: findings for ``secretfs doctor``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from secretfs.cli.diagnose import Finding
from secretfs.daemon.control_client import read_status
from secretfs.errors import MountError
from secretfs.linux.mountinfo import is_mounted
from secretfs.linux.mountpoint import resolve

_CHECK: Final = "protections"


def examine_protections(mountpoint: Path) -> Iterator[Finding]:
    """Ask the daemon of the mount at a place. That there is none that answers us is no finding here."""
    try:
        path = resolve(mountpoint)
        if not is_mounted(path):
            return
        told = json.loads(read_status(path))["mount"].get("protections", {})  # versions before do not have it
    except MountError:
        return
    for name, protection in told.items():
        if not protection["holds"]:
            text = f"{name.replace('_', ' ')}: {protection['how']}"
            yield Finding.warn(_CHECK, text, "docs/security.md says what it takes")
    held = [protection["how"] for protection in told.values() if protection["holds"]]
    if held:
        yield Finding(_CHECK, "; ".join(held))
