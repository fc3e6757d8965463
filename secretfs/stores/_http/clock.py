"""How far the clock of a server is from ours: what signatures and tokens with a time depend on."""

import time
from email.utils import parsedate_to_datetime


class ServerClock:
    """The clock of a server, by the date of its latest answer (RFC 9110, 6.6.1), which is of whole seconds."""

    def __init__(self) -> None:
        self._dated: tuple[str | None, float] = (None, 0.0)
        """The date of the latest answer, and our time then."""

    def note(self, date: str | None) -> None:
        """Take note of the date of an answer. It is parsed when somebody asks, not at each read."""
        self._dated = date, time.time()

    @property
    def skew(self) -> float | None:
        """Seconds by which the server's clock is ahead of ours; None if it does not tell."""
        date, now = self._dated
        try:
            return parsedate_to_datetime(date).timestamp() - now if date else None
        except ValueError:
            return None
