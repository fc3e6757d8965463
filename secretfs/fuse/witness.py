"""Who opens what, and who is refused what, for the audit log: as the kernel's requests tell it.

Each open of a file is a request, unless the kernel opens files by itself: then `secretfs.fuse.opens` hears of it.
"""

import errno
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from secretfs.errors import NoSuchAttribute, RecordLost, SecretFSError, Superseded
from secretfs.fs.caller import Caller
from secretfs.fs.descriptions import Descriptions
from secretfs.linux.fanotify import OVERFLOW, Open
from secretfs.observe.audit import NOBODY, AuditLog

_NO_REFUSAL: Final = (NoSuchAttribute, Superseded, RecordLost)
"""What most files do not have, what the kernel asks again (see `secretfs.errors`), and what comes of us."""


class Witness:
    """Tells the audit log what processes do. This one tells nobody."""

    strict = False
    """Whether each open has to be a request."""
    hears_reports = False
    """Whether the kernel has to report the opens that are no request: then `reported` is told."""

    def found(self, inode: int, caller: Caller) -> None:
        """Take note that a process has looked up a control file that takes requests, as it does before it opens it."""

    async def opened(self, inode: int, caller: Caller) -> None:
        """Tell that a process opens a file. Raises `RecordLost` if it must not, because there is no record of it."""

    async def written(self, inode: int, text: bytes) -> None:
        """Tell that a process has written a request to a control file that it has opened. Raises `RecordLost`."""

    def forget(self, inode: int) -> None:
        """Take note that the kernel has forgotten a file."""

    def reported(self, opened: Open) -> None:
        """Tell of an open that the kernel has reported. Called in a thread."""

    async def refused(self, request: str, inode: int, name: bytes | None, caller: Caller, error: SecretFSError) -> None:
        """Tell that a request about an inode, or about a name in a directory, ends with an error."""


class AuditWitness(Witness):
    """Tells the audit log. What the processes ``ours`` do is no news.

    ``unasked`` is whether the kernel opens files by itself: until then each open that it reports is a request, too.
    """

    def __init__(
        self,
        audit: AuditLog,
        descriptions: Descriptions,
        ours: Callable[[], Collection[int]],
        unasked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.strict = audit.strict
        self.hears_reports = not audit.strict
        self._audit = audit
        self._descriptions = descriptions
        self._ours = ours
        self._unasked = unasked
        self._writers: dict[int, Caller] = {}
        """Who has found or opened control files to write. A write does not say who makes it, and each has an inode."""

    def found(self, inode: int, caller: Caller) -> None:
        """Take note who looks a control file up: where the kernel opens files by itself, nothing else tells of him."""
        self._writers[inode] = caller

    async def opened(self, inode: int, caller: Caller) -> None:
        """Tell that a process opens a file."""
        self._descriptions.recall(inode)
        described = self._descriptions.opened(inode)
        if described is not None and caller.pid not in self._ours():
            event, fields = described
            await self._audit.witness(event, {**fields, "result": "ok"}, caller)
            if event == "control":
                self._writers[inode] = caller

    async def written(self, inode: int, text: bytes) -> None:
        """Tell that a process has written a request."""
        caller = self._writers.get(inode, NOBODY)
        await self._audit.witness("request", self._descriptions.requested(inode, text), caller)

    def forget(self, inode: int) -> None:
        """Take note that the kernel has forgotten a file."""
        self._writers.pop(inode, None)

    def reported(self, opened: Open) -> None:
        """Tell of an open that the kernel has reported: it names the process, and not its user. Called in a thread."""
        if not self._unasked():
            return
        if opened.inode == OVERFLOW:
            self._audit.note("overflow", {})
            return
        described = self._descriptions.opened(opened.inode)
        if described is not None and opened.pid not in self._ours():
            event, fields = described
            self._audit.note(event, {**fields, "result": "ok"}, (-1, -1, opened.pid))

    async def refused(self, request: str, inode: int, name: bytes | None, caller: Caller, error: SecretFSError) -> None:
        """Tell that a request ends with an error; of an open, with which."""
        if isinstance(error, _NO_REFUSAL) or caller.pid in self._ours():
            return
        fields = self._descriptions.asked_for(inode, name)
        result = errno.errorcode[error.errno]
        with suppress(RecordLost):  # it is refused anyway
            await self._audit.witness("refused", {"request": request, **fields, "result": result}, caller)
