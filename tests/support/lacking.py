"""What a machine lacks for a test. Elsewhere the test is skipped; in CI a skipped promise is not a kept one."""

import os
from typing import NoReturn

import pytest


def cannot_test(reason: str) -> NoReturn:
    """Skip the test; in CI, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI no test may be skipped: {reason}", pytrace=False)
    pytest.skip(reason)


def require_root(reason: str) -> None:
    """Go on as root only. ``reason`` is why the test takes that."""
    if os.geteuid() != 0:
        cannot_test(reason)


def require_fuse() -> None:
    """Go on where something can be mounted."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot_test("/dev/fuse cannot be opened")
