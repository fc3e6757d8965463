"""Programs in JavaScript: ``from tests.support.node import require_node``."""

import hashlib
import os
from pathlib import Path

from tests.support.command import ROOT
from tests.support.lacking import cannot_test


def require_node() -> dict[str, str]:
    """Return the environment in which ``node`` finds packages, where ``scripts/install-node-packages`` has put them."""
    modules = node_modules()
    if not modules.is_dir():
        cannot_test(f"{modules} does not exist: run scripts/install-node-packages")
    return os.environ | {"NODE_PATH": str(modules)}


def node_modules() -> Path:
    """Return the directory for which these versions of the packages are."""
    versions = b"".join((ROOT / "tests/node" / name).read_bytes() for name in ("package.json", "package-lock.json"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    return cache / "secretfs-tests" / f"node-{hashlib.sha256(versions).hexdigest()[:16]}" / "node_modules"
