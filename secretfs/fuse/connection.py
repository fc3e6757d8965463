"""The kernel's end of a mount: a descriptor of /dev/fuse, mounted by us, not by libfuse, so that it can be handed on.

A process that has the descriptor can serve the mount. As long as any process holds it, the kernel keeps the mount alive
and lets requests wait. A process that takes over gets the FUSE_INIT that the kernel sent to the first one, and asks the
kernel to send again what was read and not answered (FUSE_NOTIFY_RESEND, Linux 6.9). See linux/fuse.h.
"""

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import Final

from secretfs.errors import MountError
from secretfs.fs.journal import Journal
from secretfs.fs.kernel import Kernel, WarmReads
from secretfs.fuse import handshake, inode_for_handle, notifications

_LARGEST: Final = 64 << 10  # bytes; no message before FUSE_INIT is answered is longer


class Connection(Kernel):
    """The kernel's side of a mount. Has a journal of what the kernel has been told."""

    def __init__(self, descriptor: int, journal: Journal, *, kernel_answers: bool = False) -> None:
        """Begin with a mount that is new, or go on with the one that a journal tells of.

        ``kernel_answers`` is whether the kernel is to answer warm reads by itself, if that can be done. A mount that
        somebody has served before stays as it was made.
        """
        self.descriptor = descriptor
        self.journal = journal
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._ours: socket.socket | None = None
        self._place = -1
        self.why_asked: Callable[[], str] = lambda: "nobody serves yet"
        """Return why the kernel has to ask at each open; nothing if it can open files by itself."""
        self.taken_over = bool(journal.init)
        """Somebody has served it before."""
        if not self.taken_over:
            kernel_opens = kernel_answers and inode_for_handle.installed() is not None
            journal.store_init(handshake.accept(_read_init(descriptor), kernel_opens=kernel_opens))

    @property
    def obstacle(self) -> str:
        """Why it cannot be taken over; nothing if it can."""
        if has_ended(self.descriptor):
            return "the kernel has ended the connection"
        if not handshake.knows_resend(self.journal.init):
            return "a kernel before Linux 6.9 does not send again what was read and not answered"
        if self.journal.kernel_opens and inode_for_handle.installed() is None:
            return "the kernel opens its files by itself, and requests to read do not tell pyfuse3 here which they mean"
        return ""

    @property
    def kernel_may_open(self) -> bool:
        """Whether the mount was made so that the kernel may open files by itself."""
        return handshake.kernel_opens(self.journal.init)

    @property
    def warm_reads(self) -> WarmReads:
        """Who answers warm reads and listings: the kernel, if it opens files by itself."""
        hook = inode_for_handle.installed()
        if not self.kernel_may_open:
            return WarmReads(by_kernel=False, reason="mounted with --no-kernel-answers, or where it cannot be had")
        if hook is None or not hook.requests():
            return WarmReads(by_kernel=False, reason=inode_for_handle.LACKING)
        reason = "" if self.journal.kernel_opens else self.why_asked()
        if reason:
            return WarmReads(by_kernel=False, reason=reason)
        return WarmReads(by_kernel=True, reason=f"requests get their inode as handle ({hook.name})")

    def has_requests(self) -> bool:
        """Whether there are requests that nobody has read yet."""
        return bool(self._poll.poll(0))

    def open_by_itself(self) -> bool:
        """Whether to tell the kernel to open files and directories by itself. Then it is as good as told."""
        if not self.warm_reads.by_kernel:
            return False
        if not self.journal.kernel_opens:
            self.journal.note_kernel_opens()
        return True

    def offer(self) -> str:
        """Return a path for libfuse to mount at: a socket with the kernel's FUSE_INIT in it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.send(self.journal.init)
        self._ours, self._place = ours, theirs.detach()
        return f"/dev/fd/{self._place}"

    def attach(self) -> None:
        """Put the kernel in the place of that socket. Call it when libfuse has read FUSE_INIT and not yet answered.

        It sends our answer first, also when it takes over: the worker before may have been killed before it answered.
        """
        if self.journal.kernel_opens and not self.warm_reads.by_kernel:
            raise MountError(f"the kernel opens files by itself, but {inode_for_handle.LACKING}")
        if handshake.is_accepted(self.journal.init):
            with contextlib.suppress(FileNotFoundError):  # it had answered
                os.write(self.descriptor, handshake.answer(self.journal.init))
        os.dup2(self.descriptor, self._place, inheritable=False)
        if self._ours is not None:
            self._ours.close()
        if self.taken_over:
            os.write(self.descriptor, notifications.resend())

    def wake_up_call(self, notify: Callable[[], None]) -> bytes:
        """Return the message that a poll handle would send to wake a waiting program.

        The handle ends with this process, and the program goes on waiting: `wake` sends the message from any process.
        libfuse writes it to where it believes the kernel to be, which is a socket of ours meanwhile.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            os.dup2(theirs.fileno(), self._place, inheritable=False)
            try:
                notify()
            finally:
                os.dup2(self.descriptor, self._place, inheritable=False)
            return ours.recv(_LARGEST, socket.MSG_DONTWAIT)

    def wake(self, waiter: bytes) -> None:
        """Send the kernel a message of `wake_up_call`. One about a file that is closed by now does nothing."""
        with contextlib.suppress(OSError):  # if the mount is gone, no program waits
            os.write(self.descriptor, waiter)

    def forget_attributes(self, inode: int) -> None:
        """Have the kernel ask for the attributes of an inode again, if it knows it."""
        with contextlib.suppress(OSError):  # it does not, or the mount is gone
            os.write(self.descriptor, notifications.forget_attributes(inode))

    def close(self) -> None:
        """Close the kernel's end. Programs that have files open in the mount get ENOTCONN at once."""
        os.close(self.descriptor)


def has_ended(descriptor: int) -> bool:
    """Whether the kernel has ended a connection: it was unmounted, or aborted."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def _read_init(descriptor: int) -> bytes:
    """Read the first message of the kernel. It is there as soon as mount(2) has returned."""
    try:
        message = os.read(descriptor, _LARGEST)
    except OSError as error:
        raise MountError(f"the kernel ended the connection at once: {error.strerror}") from None
    handshake.require_init(message)
    return message
