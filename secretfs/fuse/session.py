"""The session of pyfuse3: it reads the kernel's requests and calls `SecretOperations`, until the mount is gone."""

import logging
from typing import Final

import pyfuse3

from secretfs.fs.requests import PLACES
from secretfs.fuse import inode_for_handle
from secretfs.fuse.connection import Connection
from secretfs.fuse.operations import SecretOperations

log = logging.getLogger(__name__)

HOOK: Final = inode_for_handle.install(pyfuse3.__file__)
"""How requests without a handle get their inode, if they do."""


def begin(connection: Connection, operations: SecretOperations) -> None:
    """Give libfuse the connection in the place of a mount point; it mounts nothing itself."""
    connection.why_asked = operations.why_asked
    pyfuse3.init(operations, connection.offer(), set())


async def serve_requests() -> None:
    """Serve until the mount is gone, or its connection has been aborted."""
    try:
        await pyfuse3.main(max_tasks=PLACES)
    except* ConnectionAbortedError:  # the other answer is ENODEV, which libfuse takes for an unmount
        log.info("the connection of the mount has been aborted")


def end() -> None:
    """Let go of the connection; the mount stays."""
    pyfuse3.close(unmount=False)
