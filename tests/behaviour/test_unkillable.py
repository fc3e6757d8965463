"""Everything that may happen to the daemon, at once, while the mount is in use. `benchmarks.unkillable` does more."""

import pytest

from tests.support.systemd import System
from tests.support.unkillable import Report, clear, install, participants, torment

pytestmark = pytest.mark.mount


def test_nobody_sees_an_error(system: System) -> None:
    """takeover-14: Readers, a container, a working directory and a mapping survive any number of kills and restarts."""
    reports: list[Report] = []
    install(system)
    try:
        with participants(system, reports):
            torment(system, kills=6, restarts=3, pause=(0.1, 0.7))
    finally:
        clear(system)
    assert [(one.who, one.failures) for one in reports if one.failed] == []
    assert len(reports) == 9
    assert all(one.done > 20 for one in reports)
