"""Callers that were told to look a path up again, and have not come back yet. Pure.

Linux repeats a call that ends with ESTALE once. What it finds then was right at some moment since the call began, so it
is a true answer to it, also if there is a newer one by the time that the kernel comes back: on a busy machine that may
be late, and a value may change faster than that.
"""

from typing import Final

from secretfs.fs.caller import Caller
from secretfs.fs.inodes import Version
from secretfs.fs.keys import LeafKey

PATIENCE: Final = 2.0
"""Seconds within which a caller comes back. As long a superseded version is held in memory at least."""


class Retries:
    """Calls to be repeated, by caller and place. Times are on the owner's clock."""

    def __init__(self) -> None:
        self._since: dict[tuple[Caller, LeafKey], tuple[float, Version]] = {}

    def __len__(self) -> int:
        return len(self._since)

    def told(self, caller: Caller, version: Version, since: float) -> None:
        """Take note that somebody who came for a version is told to look again. ``since`` is when the call began."""
        self._since[caller, version.key] = since, version

    def is_right(self, caller: Caller, version: Version, now: float) -> bool:
        """Whether somebody comes who was told to look again, with a version that was right since the call began."""
        if not self._since:
            return False
        since, refused = self._since.pop((caller, version.key), (now, version))
        return version is not refused and since <= version.right_at and now <= since + PATIENCE

    def drop_lost(self, now: float) -> None:
        """Forget those who did not come back."""
        for lost in [call for call, (since, _) in self._since.items() if now > since + PATIENCE]:
            del self._since[lost]
