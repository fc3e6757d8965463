"""What backends have lent our stores, kept where it outlives us: a memory file that the process after us gets back.

It holds tokens and credentials, so it is not a part of the journal, which holds none. It has no name in any file
system. Our supervisor, or systemd, keeps its descriptor and does not read it. While we run it is mapped, and so it is
kept out of swap as our own memory is.

A kill may come between any two instructions. A new content is written beside the one that counts, and counts once one
store of eight bytes has said so.
"""

import base64
import json
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Final

_PAGE: Final = 4096
_LENGTH_BITS: Final = 32

log = logging.getLogger(__name__)


TellLoan = Callable[[str, str, str, str], None]
"""Told what a component's backend lends and takes back: see `secretfs.store.StoreContext`."""


def ignore_loan_of(component: str, event: str, name: str, loan: str) -> None:
    """Ignore what a backend has lent."""


class LeaseFile:
    """The memory file. One process writes at a time; `file` is the descriptor to hand on. Safe for threads."""

    def __init__(self, file: int | None = None) -> None:
        """Begin a file, or go on with the one that a predecessor has left. One that cannot be read is begun anew."""
        self.file = os.memfd_create("secretfs-leases", os.MFD_CLOEXEC) if file is None else file
        self.close = weakref.finalize(self, os.close, self.file)
        """Close the descriptor. The memory is there for as long as somebody else has it."""
        self._lock = threading.Lock()
        self._slots: dict[str, LeaseSlot] = {}
        if os.fstat(self.file).st_size < 2 * _PAGE:
            os.ftruncate(self.file, 2 * _PAGE)

    def slot(self, component: str) -> "LeaseSlot":
        """Return the place for what a store of this name has been lent, with what a predecessor left in it.

        A place that the component had before in this process is not written to any more.
        """
        with self._lock:
            state = "" if component in self._slots else self._content.get(component, "")
            self._slots[component] = LeaseSlot(self, component, base64.b64decode(state))
            return self._slots[component]

    def write(self, slot: "LeaseSlot", state: bytes) -> None:
        """Keep the state of a store in the place of what was kept in its slot before."""
        with self._lock:
            if self._slots.get(slot.component) is slot:
                self._content[slot.component] = base64.b64encode(state).decode()
                self._write(json.dumps(self._content).encode())

    # Mapped and read when the first store needs it. The helper processes are forked before, and never see a secret.

    @cached_property
    def _map(self) -> mmap.mmap:
        return mmap.mmap(self.file, 0)

    @cached_property
    def _content(self) -> dict[str, str]:
        place, length = self._current()
        try:
            content: dict[str, str] = json.loads(self._map[place : place + length] or b"{}")
        except (ValueError, TypeError) as error:
            log.warning("leases of the process before are lost, and end by themselves: %s", type(error).__name__)
            return {}
        return content

    def _current(self) -> tuple[int, int]:
        with memoryview(self._map) as view, view.cast("Q") as words:
            return words[0] >> _LENGTH_BITS, words[0] & ((1 << _LENGTH_BITS) - 1)

    def _write(self, text: bytes) -> None:
        old, length = self._current()
        place = _PAGE if old == 0 or _PAGE + len(text) <= old else old + length
        if place + len(text) > len(self._map):
            size = -(-(place + len(text)) // _PAGE) * _PAGE
            self._map.close()
            os.ftruncate(self.file, size)
            self._map = mmap.mmap(self.file, size)
        self._map[place : place + len(text)] = text
        with memoryview(self._map) as view, view.cast("Q") as words:
            words[0] = place << _LENGTH_BITS | len(text)
        self._map[old : old + length] = bytes(length) if old else b""


class LeaseSlot:
    """Where one store keeps what it has been lent."""

    def __init__(self, file: LeaseFile, component: str, state: bytes) -> None:
        self._file = file
        self.component = component
        self.state = state
        """What a predecessor left; empty if there was none."""

    def save(self, state: bytes) -> None:
        """Keep this from now on. Does nothing when another store has taken the place of this one."""
        self._file.write(self, state)
