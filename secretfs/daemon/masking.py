"""Output of a command in which secrets are replaced: ``secretfs run --mask``."""

import array
import contextlib
import fcntl
import os
import re
import select
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Set
from typing import Any, Final

MASK: Final = b"***"
"""What is written in place of a secret."""

_CHUNK: Final = 1 << 16
_LOOK_FOR_SIGNALS: Final = 0.2
"""Seconds between two looks at whether we are to end, while the last output is written."""


class Secrets:
    """What is to be masked: the values of now and those of before, which may still be on their way."""

    def __init__(self) -> None:
        self.values: frozenset[bytes] = frozenset()
        self._now: frozenset[bytes] = frozenset()

    def replace(self, values: Iterable[bytes]) -> None:
        """Mask other values. Newlines at the end of a value are no part of it: programs take them off."""
        now = frozenset(filter(None, (value.rstrip(b"\r\n") for value in values)))
        self.values, self._now = now | self._now, now


class Masker:
    """Masks one stream. Holds back no more than what may be the beginning of a secret.

    Secrets that overlap in the stream are one mask: no part of either is shown.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._held = b""
        self._masked = 0
        """How many bytes at the beginning of what is held are part of a secret whose mask has been shown."""

    def feed(self, data: bytes) -> bytes:
        """Take what has been written; returns what can be shown by now."""
        data = self._held + data
        return self._mask(data, _beginning(data, self._secrets.values))

    def end(self) -> bytes:
        """Return what was held back, when no more comes."""
        return self._mask(self._held, len(self._held))

    def _mask(self, data: bytes, held: int) -> bytes:
        """Return what is shown of data up to where what is held begins."""
        known = re.compile(b"|".join(map(re.escape, sorted(self._secrets.values, key=len, reverse=True))) or b"(?!)")
        shown, position, masked = [], 0, self._masked
        while True:
            while position < min(masked, held):  # a secret may begin in another one
                found = known.match(data, position)
                masked = max(masked, found.end()) if found else masked
                position += 1
            found = known.search(data, masked)
            if found is None or found.start() >= held:
                break
            shown += [data[masked : found.start()], MASK]
            position, masked = found.span()
        self._held, self._masked = data[held:], max(0, masked - held)
        return b"".join((*shown, data[masked:held]))


def _beginning(data: bytes, values: Set[bytes]) -> int:
    """Return where at the end of ``data`` the beginning of a value begins; the length of ``data`` if there is none."""
    first = len(data)
    for value in values:
        start = data.find(value[:1], max(0, len(data) - len(value) + 1))
        while 0 <= start < first and not value.startswith(data[start:]):
            start = data.find(value[:1], start + 1)
        first = min(first, start) if start >= 0 else first
    return first


class MaskedOutput:
    """Pipes for standard output and error of a command, and threads that write on what comes out of them.

    If both go to the same place they share a pipe, so that they keep their order.
    """

    def __init__(self) -> None:
        self._secrets = Secrets()
        self._streams: list[_Stream] = []
        self.ends: dict[int, int] = {}
        """Where to write instead of each descriptor, in the command."""
        numbers = [number for number, stream in ((1, sys.stdout), (2, sys.stderr)) if stream]
        shared = len(numbers) == 2 and os.path.sameopenfile(1, 2)
        for number in numbers[:1] if shared else numbers:
            stream = _Stream(number, Masker(self._secrets))
            self._streams.append(stream)
            self.ends[number] = stream.entrance
        if shared:
            self.ends[2] = self.ends[1]

    @property
    def actions(self) -> list[tuple[Any, ...]]:
        """What posix_spawn(3) is to do."""
        return [(os.POSIX_SPAWN_DUP2, end, number) for number, end in self.ends.items()]

    def mask(self, values: Iterable[bytes]) -> None:
        """Mask these values from now on."""
        self._secrets.replace(values)

    def end(self, give_up: Callable[[], bool]) -> None:
        """Write on what the command has written until now; unless nobody takes it, and we are to ``give_up``."""
        for stream in self._streams:
            stream.stop()
        for stream in self._streams:
            while stream.thread.is_alive() and not give_up():
                stream.thread.join(_LOOK_FOR_SIGNALS)


class _Stream:
    """One pipe and its thread."""

    def __init__(self, target: int, masker: Masker) -> None:
        self._target = target
        self._masker = masker
        self._exit, self.entrance = map(_high, os.pipe())
        self._stopped, self._stop = map(_high, os.pipe())
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Let the thread end when it has written what is in the pipe now."""
        os.close(self._stop)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # nobody takes our output, so nobody shall take the command's: SIGPIPE
            while self._stopped not in select.select([self._exit, self._stopped], [], [])[0]:
                self._write(self._masker.feed(os.read(self._exit, _CHUNK)))
            left = array.array("i", [0])
            fcntl.ioctl(self._exit, termios.FIONREAD, left)
            while left[0] > 0:
                data = os.read(self._exit, min(left[0], _CHUNK))
                left[0] -= len(data)
                self._write(self._masker.feed(data))
            self._write(self._masker.end())
        os.close(self._exit)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._target, data) :]
            except BlockingIOError:  # somebody has made it so
                select.select([], [self._target], [])


def _high(number: int) -> int:
    """Move a descriptor out of the way of the standard streams, which may be closed."""
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(number)
    return moved
