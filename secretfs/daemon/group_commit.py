"""Group commit of documents: changes that wait at the same time are written together, and the mount reads them once.

A mount reads everything for each change, so changes of many at once would wait for as many reloads. While a reload is
under way the others gather; then one of them makes the changes of all.
"""

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secretfs.daemon.app_documents import change, locked
from secretfs.errors import ConfigurationError


@dataclass(eq=False, slots=True)
class _Change:
    document: Path
    text: bytes | None
    is_done: bool = False
    error: BaseException | None = None


class GroupCommit:
    """Changes the documents of a directory. Calls may be made by several threads, each for a document of its own."""

    def __init__(self, mountpoint: Path, directory: Path) -> None:
        self._mountpoint = mountpoint
        self._directory = directory
        self._waiting: list[_Change] = []
        self._is_led = False
        """Whether a thread is about to make, or makes, the changes of all that waited when it began."""
        self._progress = threading.Condition()

    def change(self, document: Path, text: bytes | None) -> None:
        """Write a document, or remove it if ``text`` is None, and have the mount read it. Undo it after a mistake.

        Raises what it would raise alone, whatever others change meanwhile: `ConfigurationError` with the mistake,
        `MountError` if the mount does not answer.
        """
        mine = _Change(document, text)
        with self._progress:
            self._waiting.append(mine)
            self._progress.wait_for(lambda: mine.is_done or not self._is_led)
            leads = not mine.is_done
            self._is_led = self._is_led or leads
        if leads:
            self._make_all()
        if mine.error is not None:
            raise copy.copy(mine.error)  # a copy for each: an instance that many threads raise has a traceback of all

    def _make_all(self) -> None:
        """Make the changes that wait by now."""
        group: Sequence[_Change] = ()
        try:
            with locked(self._directory):
                group = self._gathered()
                self._make(group)
        except BaseException as error:  # noqa: BLE001 - each of the others raises it in its own thread
            _end(group or self._gathered(), error)
        finally:
            with self._progress:
                self._is_led = False
                self._progress.notify_all()

    def _gathered(self) -> Sequence[_Change]:
        with self._progress:
            group, self._waiting = self._waiting, []
        return group

    def _make(self, group: Sequence[_Change]) -> None:
        """Make changes at once; after a mistake those of each half, so that it concerns nobody but who has made it."""
        try:
            change(self._mountpoint, {each.document: each.text for each in group})
        except ConfigurationError as error:
            if len(group) == 1:
                _end(group, error)
                return
            half = len(group) // 2
            self._make(group[:half])
            self._make(group[half:])
        else:
            _end(group)


def _end(group: Sequence[_Change], error: BaseException | None = None) -> None:
    for each in group:
        if not each.is_done:
            each.error, each.is_done = error, True
