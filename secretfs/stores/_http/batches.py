"""Whether a backend lets us read many secrets at once: a policy may allow single reads only."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreError
from secretfs.store import Secret
from secretfs.stores._http.failures import NotKnown

logger = logging.getLogger(__name__)

PAUSE: Final = 600.0
"""Seconds after a refusal in which secrets are read one by one."""

Found = Mapping[str, Secret | StoreError]


class Batches:
    """The batch reads of one store. ``largest`` is how many secrets the backend takes in one request.

    ``right`` names what a policy has to allow.
    """

    def __init__(self, component: str, right: str, largest: int) -> None:
        self._component = component
        self._right = right
        self._largest = largest
        self._paused_until = 0.0

    @property
    def largest(self) -> int:
        """How many secrets to read at once, now."""
        return 1 if time.monotonic() < self._paused_until else self._largest

    def read(self, read: Callable[[], Found]) -> Found:
        """Read a batch. A refusal may be about one of its secrets, or about batches: then all are to be read alone."""
        try:
            return read()
        except NotKnown:
            raise
        except (AccessDenied, MalformedAnswer, SecretNotFound) as error:
            self._paused_until = time.monotonic() + PAUSE
            text = "%s: secrets are read one by one for %d s, because a batch is refused (%s): %s"
            logger.info(text, self._component, PAUSE, self._right, error)
            return {}
