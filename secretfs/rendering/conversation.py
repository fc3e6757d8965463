"""The conversation with a process about one file. What it sends is not trusted: it may come from a template."""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import trio

from secretfs.errors import DeadlineExceeded, RenderingFailed
from secretfs.rendering.job import (
    CPU_SECONDS,
    LARGEST_MESSAGE,
    MEMORY,
    MOST_PARTS,
    Fault,
    Job,
    Kind,
    Mode,
    job_to_json,
    pack,
    secret_to_json,
)

PATIENCE: Final = 30.0
"""Seconds for which we wait for the process to say something: it gets its processor time in that, or never."""


class Asked(NamedTuple):
    """How secrets are asked for on behalf of a file. Both raise a `SecretFSError`, which then ends the rendering."""

    secret: Callable[[str, str], Awaitable[Mapping[str, bytes]]]
    """Store and name."""
    folder: Callable[[str, str], Awaitable[list[str]]]
    """Store and folder; returns the full names of the secrets in it, in order."""


class Closed(Exception):
    """The process has closed its socket before the file was there: somebody has ended it, usually the kernel."""


class Misbehaves(Exception):
    """The process sends what it never should."""


def limits_exceeded() -> RenderingFailed:
    """Return why the kernel ends a process that renders."""
    limits = f"{CPU_SECONDS} s of processor time or {MEMORY >> 20} MiB of memory"
    return RenderingFailed(f"the template takes more than {limits}")


class Conversation:
    """The conversation about one file."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def run(self, job: Job, mode: Mode, asked: Asked) -> bytes:
        """Return the file. Raises `Closed`, `Misbehaves`, `RenderingFailed`, and whatever ``asked`` raises."""
        wanted = Kind.NEEDS if mode is Mode.NEEDS else Kind.OUTCOME
        await self._send(Kind.JOB, job_to_json(job, mode))
        parts = 0
        while True:
            kind, payload = await self._receive()
            if kind is wanted:
                _require_well_formed(kind, payload)
                return payload
            if kind is Kind.FAULT:
                message, line, field = _fields(payload, str, int, str)
                raise RenderingFailed(str(Fault(message, line, field)))
            if kind not in (Kind.SECRET, Kind.FOLDER):
                raise Misbehaves
            store, name = _fields(payload, str, str)
            parts += 1
            if parts > MOST_PARTS:
                raise RenderingFailed(f"it asks for more than {MOST_PARTS} secrets")
            if kind is Kind.SECRET:
                await self._send(Kind.ANSWER, secret_to_json(await asked.secret(store, name)))
            else:
                await self._send(Kind.ANSWER, json.dumps(await asked.folder(store, name)).encode())

    async def _send(self, kind: Kind, payload: bytes) -> None:
        with _in_time():
            await self._stream.send_all(pack(kind, payload))

    async def _receive(self) -> tuple[Kind, bytes]:
        with _in_time():
            header = await self._exactly(5)
            length = int.from_bytes(header[:4], "big")
            if length > LARGEST_MESSAGE or header[4:] not in _KINDS:
                raise Misbehaves
            return Kind(header[4:]), await self._exactly(length)

    async def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = await self._stream.receive_some(count - len(parts))
            if not part:
                raise Closed
            parts += part
        return bytes(parts)


_KINDS: Final = frozenset(kind.value for kind in Kind)


def _fields(payload: bytes, *types: type) -> list[Any]:
    """Return the fields of a message, which have to be of these types. Raises `Misbehaves`."""
    found = _items(payload)
    if list(map(type, found)) != list(types):
        raise Misbehaves
    return found


def _require_well_formed(kind: Kind, payload: bytes) -> None:
    """Refuse what a process says that a file needs, if it is something else. Raises `Misbehaves`."""
    for place in _items(payload) if kind is Kind.NEEDS else ():
        if not isinstance(place, list) or not all(isinstance(name, str) for name in place):
            raise Misbehaves


def _items(payload: bytes) -> list[Any]:
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        raise Misbehaves from None
    if not isinstance(found, list):
        raise Misbehaves
    return found


@contextmanager
def _in_time() -> Iterator[None]:
    """Wait for the process no longer than it may run. Raises `DeadlineExceeded`, and `Closed` if it has ended."""
    try:
        with trio.fail_after(PATIENCE):
            yield
    except trio.TooSlowError:
        raise DeadlineExceeded(f"the process that renders does nothing within {PATIENCE:.0f} s") from None
    except trio.BrokenResourceError:
        raise Closed from None
