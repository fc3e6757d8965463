"""Who asks: the process for which the kernel makes a request. Pure."""

from typing import Final, NamedTuple


class Caller(NamedTuple):
    """A process, as the kernel names it to us: its credentials and its id are those of the host, not of a namespace.

    ``pid`` is that of the calling thread, and 0 for a process outside our pid namespace. It names a caller in a log; a
    decision about access must not rest on it, for a process may end and its id be used again.
    """

    uid: int
    gid: int
    pid: int


UNKNOWN: Final = Caller(uid=65534, gid=65534, pid=0)
"""Nobody in particular: with the overflow ids, which own nothing."""
