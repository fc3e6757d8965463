"""Which rendered files of a directory fail: the log has each reason once, the status all that fail."""

import logging
import time
from collections.abc import Container, Iterator
from typing import Final, NamedTuple

import trio

from secretfs.cache.health import Failure, public_class
from secretfs.errors import StoreError

log: Final = logging.getLogger(__name__)


class _Failing(NamedTuple):
    reason: str
    """As the log has it."""
    failure: Failure
    tried: float
    """When, on trio's clock."""


class RenderingFailures:
    """The files that could not be rendered when that was last tried. Belongs to one trio thread."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._failing: dict[str, _Failing] = {}
        self.last: Failure | None = None
        """The last one, with the name of its file."""

    def __len__(self) -> int:
        return len(self._failing)

    def __iter__(self) -> Iterator[str]:
        return iter(self._failing)

    def get(self, name: str) -> Failure | None:
        """Return why a file fails, if it does. It names no secret."""
        failing = self._failing.get(name)
        return None if failing is None else failing.failure

    def note(self, name: str, error: StoreError) -> None:
        """Take note that a file has failed, and log why, unless the log has that."""
        reason, before = str(error), self._failing.get(name)
        failure = Failure(time.time(), public_class(error), error.meaning)
        self._failing[name] = _Failing(reason, failure, trio.current_time())
        self.last = failure._replace(message=f"{name}: {error.meaning}")
        if before is None or before.reason != reason:
            log.warning("%s/%s cannot be rendered: %s", self._component, name, reason, extra={"store": self._component})

    def forget(self, name: str) -> None:
        """Take note that a file has been rendered."""
        self._failing.pop(name, None)

    def keep_only(self, names: Container[str]) -> None:
        """Forget all other files."""
        self._failing = {name: failing for name, failing in self._failing.items() if name in names}

    def drop_idle(self, idle: float) -> None:
        """Forget the files that nobody has tried to read in ``idle`` seconds: who knows what they are now."""
        limit = trio.current_time() - idle
        self._failing = {name: failing for name, failing in self._failing.items() if failing.tried > limit}
