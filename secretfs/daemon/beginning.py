"""The beginning of ``secretfs mount``: its first worker imports libraries while the command is still being read.

A mount takes three processes: the command, a supervisor, a worker. One after another, each would wait until Python and
its imports are there. So the command forks before it has imported anything: from the process that the shell waits for,
if the mount is to go on in the background, and once more for a process that imports what a worker needs. That one is a
standby of the supervisor (`secretfs.daemon.standby`), but it does not read the flags: the command sends it the request.

Imports next to nothing: all three wait for it.
"""

import os
import signal
import socket
from collections.abc import Sequence


class Beginning:
    """What has been started for a command that is being read."""

    def __init__(self, ready: int | None, worker: int, turn: socket.socket) -> None:
        self.ready = ready
        """The descriptor that gets a byte when the mount answers, if somebody waits for it in front of us."""
        self._worker = worker
        self._turn = turn

    def hand_over(self, request: bytes) -> list[str]:
        """Send the worker what to serve. Returns arguments for the supervisor, which is executed next."""
        try:
            self._turn.send(request)
        except OSError:  # it has been killed, or this is too long for one message: the supervisor starts another
            self.end()
            return []
        self._turn.set_inheritable(True)
        if self.ready is not None:
            os.set_inheritable(self.ready, True)  # noqa: FBT003 - positional only
        return ["--first", str(self._worker), str(self._turn.fileno())]

    def end(self) -> None:
        """End the worker: there is nothing to mount."""
        os.kill(self._worker, signal.SIGKILL)
        os.waitpid(self._worker, 0)


begun: Beginning | None = None
"""That of this process, if it is such a command."""


def begin(arguments: Sequence[str]) -> socket.socket | None:
    """Fork what a command will need, if it is a mount; see `begun`. Returns the socket of the worker, in the worker.

    Raises OSError, if there are too many processes; the command can do without.
    """
    global begun  # noqa: PLW0603 - of the process
    if list(arguments[:1]) != ["mount"] or not {"LISTEN_PID", "NOTIFY_SOCKET"}.isdisjoint(os.environ):
        return None  # the environment is that of a worker, or of a service
    ready = None if _may_stay_in_foreground(arguments) else _leave_front()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = os.fork()
    if worker:
        theirs.close()
        begun = Beginning(ready, worker, ours)
        return None
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the command, too; here it ends without a word
    os.closerange(3, theirs.fileno())
    os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    return theirs


def _may_stay_in_foreground(arguments: Sequence[str]) -> bool:
    return any(word == "--foreground" or (word[:1] == "-" != word[1:2] and "f" in word) for word in arguments)


def _leave_front() -> int:
    """Leave the process that the shell waits for behind: it ends when the mount answers, or as we do.

    Returns the descriptor that gets a byte when the mount answers. We stay in the session: an automount lets only the
    process group that asked for the mount through to the mount point.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.closerange(3, read_end + 1)  # what the shell has open is not for the daemon
        os.closerange(write_end + 1, os.sysconf("SC_OPEN_MAX"))
        return write_end
    os.close(write_end)
    try:
        code = 0 if os.read(read_end, 1) else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    os._exit(code if code >= 0 else 128 - code)
