"""The count of messages: each is in it once, whatever its end."""

import errno

import pytest

from secretfs.fuse.messages import MessageStats, counted


class Handlers:
    """Answers two kinds of messages."""

    def __init__(self) -> None:
        self.messages = MessageStats()

    @counted
    async def read(self, size: int) -> bytes:
        return bytes(size)

    @counted
    async def open(self) -> None:
        raise OSError(errno.EACCES, "no")


async def test_messages_are_counted_by_kind_and_error() -> None:
    handlers = Handlers()
    assert await handlers.read(3) == bytes(3)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            await handlers.open()
    durations = {kind: sum(histogram.now().counts) for kind, histogram in handlers.messages.durations.items()}
    assert durations == {"read": 1, "open": 2}
    assert handlers.messages.errors == {errno.EACCES: 2}
