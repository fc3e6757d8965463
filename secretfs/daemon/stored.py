"""What a supervisor and its workers agree on: names of descriptors, and how long a worker may be silent.

A supervisor may live as long as a mount, so a later version has to give them the same names.
"""

from typing import Final

CONNECTION: Final = "connection"
"""The mount itself: a worker removes it when the mount is gone."""
API: Final = "api"
"""The socket at which clients of the Secrets API connect: they do not wait for a mount that is given up."""
VALUES: Final = "values-"
"""What the names of memory with values begin with: they do not outlive a mount that is given up."""
JOURNAL: Final = "journal"
LEASES: Final = "leases"
OPENS: Final = "opens"
"""Only workers know these three, each version of its own."""

CHANNEL: Final = "supervisor"
"""What a worker notifies its supervisor through. Any process could flood an address such as systemd's."""
TURN: Final = "turn"
"""What a standby is told to begin by."""
MODULES: Final = "modules"
"""A file with the names of the modules that a worker has imported. A worker sends it some seconds after it is ready,
when it has read its first secrets."""

WATCHDOG: Final = 20.0
"""Seconds without a sign of life after which a worker that was ready is killed."""
